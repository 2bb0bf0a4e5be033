"""Published results on the public data sets, and goals."""

from collections.abc import Mapping
from typing import NamedTuple

from vecall.evaluation.baseline_evaluation import BASELINES


class PublishedResult(NamedTuple):
    """Result of a paper: leave-one-out, all items ranked.

    Attributes:
        model: as the literature names it.
        seen_items: how the ranking treats items of the history, as far as the paper says.
        recall_at_10: recall@10.
        ndcg_at_10: NDCG@10.
    """

    model: str
    seen_items: str
    recall_at_10: float
    ndcg_at_10: float


class Goal(NamedTuple):
    """Goal of a metric, in the mean over the seeds.

    Attributes:
        metric: such as recall@100.
        bar: what must be reached.
        reach: what would be better still; None without such.
        relative_to: baselines; `bar` and `reach` are multiples of the best of them. Without any they are the metric's.
        seen_mode: "seen_excluded" or "seen_included".
    """

    metric: str
    bar: float
    reach: float | None = None
    relative_to: tuple[str, ...] = ()
    seen_mode: str = "seen_excluded"


_SET_GOALS = (
    Goal("recall@100", 1.0, 1.05, BASELINES),
    Goal("recall@10", 0.95, relative_to=("ease",)),
)

GOALS: Mapping[str, tuple[Goal, ...]] = {
    "beauty": (
        Goal("recall@100", 0.2916),
        Goal("recall@10", 0.1101),
        Goal("ndcg@10", 0.0646, 0.066),
        Goal("recall@10", 0.0951, 0.098, seen_mode="seen_included"),
    ),
    "sports": (Goal("recall@100", 0.2019), Goal("recall@10", 0.067), Goal("ndcg@10", 0.0379, 0.038)),
    "movielens": (Goal("recall@100", 0.465),),
    "steam": _SET_GOALS,
    "book-crossing": _SET_GOALS,
}

PUBLISHED_RESULTS: Mapping[str, tuple[PublishedResult, ...]] = {
    "beauty": (
        PublishedResult("SASRec, as in S3-Rec", "included", 0.0605, 0.0318),
        PublishedResult("TIGER", "included", 0.0648, 0.0384),
        PublishedResult("ActionPiece", "included", 0.0775, 0.0424),
        PublishedResult("SASRec + sampled softmax", "excluded, cold targets dropped", 0.0921, 0.0531),
        PublishedResult("eSASRec", "excluded, cold targets dropped", 0.0928, 0.0523),
        PublishedResult("BARGE", "excluded", 0.0927, 0.0547),
    ),
    "sports": (
        PublishedResult("SASRec, as in S3-Rec", "included", 0.0350, 0.0192),
        PublishedResult("TIGER", "included", 0.0400, 0.0225),
        PublishedResult("ActionPiece", "included", 0.0500, 0.0264),
        PublishedResult("SASRec + sampled softmax", "excluded, cold targets dropped", 0.0569, 0.0314),
        PublishedResult("eSASRec", "excluded, cold targets dropped", 0.0560, 0.0323),
        PublishedResult("BARGE", "excluded", 0.0544, 0.0308),
    ),
}
