"""A model beside its baselines and through its index, all judged by one protocol: what `evaluate` answers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Scores, Vectors
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.evaluation.ann import AnnBenchmarkResult, benchmark_ann
from vecall.evaluation.baselines import Ease, Popularity, RecentCooccurrence
from vecall.evaluation.evaluator import EvaluationResult, Scorer, evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer
from vecall.index.base import Index, SearchParams
from vecall.index.planner import CostModel, plan_search
from vecall.index.search_params import SearchParamCurve

logger = logging.getLogger(__name__)

WITH_HISTORY = "with_history"  # the group of users that have one
_MAX_ANN_QUERIES = 1_000  # whose vectors the index is measured with


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served.

    Attributes:
        encode_users: [B, D] for B cases.
        index: over the item vectors.
        search_param_curve: how hard to search for k rows; None where the index scans them all.
        engine: what kind of index it is, for people.
        cost_model: of searching and of scanning, by which recall chooses between them.
        has_features: [U] users of whom the user tower reads some feature.
        reads_history: whether the user tower reads histories.
        tuning_points: efforts that were tried when the index was tuned: `k`, `recall`, `recall_ci95`, `p50_ms` of each.
    """

    encode_users: Callable[[EvalCases], Vectors]
    index: Index
    search_param_curve: SearchParamCurve | None
    engine: str
    cost_model: CostModel
    has_features: NDArray[np.bool_]
    reads_history: bool
    tuning_points: Sequence[Mapping[str, float]] = ()

    def wrap_with_fallback(self, scorer: Scorer, popularity: Scores) -> FallbackScorer:
        """The model's scores, and what is popular where recall would answer with that."""
        return FallbackScorer(scorer, popularity, reads_history=self.reads_history, has_features=self.has_features)

    def get_search_params(self, k: int) -> SearchParams | None:
        """How hard to search for k rows."""
        return None if self.search_param_curve is None else self.search_param_curve.look_up(k)


class IndexScorer:
    """Scores as recall sees them: of the rows that the index returns, and -inf for all others."""

    def __init__(self, served_model: ServedModel, k: int) -> None:
        self._served_model, self._k = served_model, k

    def __call__(self, cases: EvalCases) -> NDArray[np.float32]:
        """[B, N]; each case is searched for `depth` rows beyond its history, as a request with exclusions is."""
        index = self._served_model.index
        scores = np.full((len(cases), index.size), -np.inf, dtype=np.float32)
        for place, vector in enumerate(self._served_model.encode_users(cases)):
            k = min(self._k + len(np.unique(cases.histories[place])), index.size)
            hits = index.search(vector[None], k, search_params=self._served_model.get_search_params(k))
            found = hits.rows[0] >= 0
            scores[place, hits.rows[0][found]] = hits.scores[0][found]
        return scores


@dataclass(frozen=True)
class EvaluationReport:
    """All that was measured.

    Attributes:
        protocol: split and ranking, a sentence each.
        dropped: what was left out, by reason.
        results: `model`, then `index` (the model through its index), then the baselines, by name.
        ann_results: of the index alone, one for each k.
        route_counts: how many of the judged users' recalls at the first of these k would be answered in which way, see
            `vecall.recall.query.ExecutionPlan`.
        tuning_points: as in `Served`.
        item_counts: [N] how many users took each item in training.
    """

    protocol: tuple[str, ...]
    dropped: Mapping[str, int]
    results: Mapping[str, EvaluationResult]
    ann_results: tuple[AnnBenchmarkResult, ...]
    route_counts: Mapping[str, int]
    tuning_points: Sequence[Mapping[str, float]]
    item_counts: NDArray[np.float32]

    @property
    def route_summary(self) -> str:
        """How the judged users' recalls are answered, for people."""
        words = {
            "index": "search the index",
            "scan": "scan all items, which is exact and here the quicker way",
            "all": "return all items",
            "popular": "return what is popular",
        }
        told = ", ".join(f"{count:,} {words[path]}" for path, count in self.route_counts.items() if count)
        return f"of these users' recalls at k = {self.ann_results[0].k}: {told}"

    def as_json(self) -> dict[str, object]:
        """As `vecall evaluate --json` prints it; a baseline that was left out is null."""
        first, *others = [one.as_json() for one in self.ann_results]
        return {
            "protocol": " ".join(self.protocol),
            "dropped": dict(self.dropped),
            **self._results_to_json(None),
            "with_history": self._results_to_json(WITH_HISTORY),
            "ann": first | {"paths": dict(self.route_counts), "others": others},
        }

    def _results_to_json(self, group: str | None) -> dict[str, object]:
        names = ("model", "popularity", "ease", "cooccurrence", "index")
        return {name: self.results[name].as_json(group) if name in self.results else None for name in names}


def evaluate_all(
    dataset: Dataset, split: Split, scorer: Scorer, served_model: ServedModel, ks: Sequence[int], ann_ks: Sequence[int]
) -> EvaluationReport:
    """Judge a model, its index and the baselines on the test cases.

    Args:
        dataset: for its counts.
        split: baselines are fitted on `train` alone, as the model was, and read the same histories.
        scorer: of the model, exact.
        served_model: the same model with its index.
        ks: depths of model recall.
        ann_ks: depths of ANN recall; those beyond N are left out.
    """
    n_items = len(dataset.catalogue.items)
    popularity = Popularity(split.train, n_items)
    contenders: dict[str, Callable[[], Scorer]] = {
        "model": lambda: served_model.wrap_with_fallback(scorer, popularity.item_counts),
        "index": lambda: served_model.wrap_with_fallback(IndexScorer(served_model, max(ks)), popularity.item_counts),
        "ease": lambda: FallbackScorer(Ease(split.train, n_items), popularity.item_counts),
        "cooccurrence": lambda: FallbackScorer(RecentCooccurrence(split.train, n_items), popularity.item_counts),
        "popularity": lambda: popularity,
    }
    groups = {WITH_HISTORY: split.test.histories.lengths > 0}
    dropped = dict(dataset.dropped_counts) | dict(split.dropped_counts)
    judgements, left_out = {}, []
    with progress.track("judging", len(contenders)) as advance:
        for name, make in contenders.items():
            try:
                judgements[name] = evaluate_scorer(make(), split.test, n_items, ks, group_masks=groups)
            except ConfigError as error:  # a baseline too large for its data
                logger.warning("%s is left out: %s", name, error)
                left_out.append(f"{name} is left out: {error}.")
            advance(1, note=name)
    if repeats := judgements["model"].repeat_target_count:
        dropped["targets already in the history (not judged with seen items excluded)"] = repeats
    return EvaluationReport(
        protocol=(
            split.protocol[0].upper() + split.protocol[1:] + ".",
            f"{len(split.test):,} users judged over {n_items:,} items; a target ranks below all items with its score.",
            "Model, EASE, co-occurrence and popularity were fitted on the training part alone and read the same "
            "histories; `index` is the model through its index.",
            *_describe_users_without_history(groups[WITH_HISTORY]),
            *left_out,
        ),
        dropped=dropped,
        results=judgements,
        ann_results=_benchmark_index(split.test, served_model, popularity.item_counts, ann_ks),
        route_counts=_count_routes(split.test, served_model, popularity.item_counts, ann_ks),
        tuning_points=served_model.tuning_points,
        item_counts=popularity.item_counts,
    )


def _describe_users_without_history(has_history: NDArray[np.bool_]) -> list[str]:
    """What is said of users without a history, where there are some."""
    count = int((~has_history).sum())
    if not count:
        return []
    return [
        f"{count:,} of these users have no history: models are judged by what would be served to them, which is what "
        "is popular where nothing else is known; `with_history` is of the others alone."
    ]


def _benchmark_index(
    cases: EvalCases, served_model: ServedModel, popularity: Scores, ks: Sequence[int]
) -> tuple[AnnBenchmarkResult, ...]:
    """ANN recall and latency of the index's own search, on the vectors of the test's users."""
    known = np.flatnonzero(~served_model.wrap_with_fallback(IndexScorer(served_model, 1), popularity).is_unknown(cases))
    chosen = (known if len(known) else np.arange(len(cases)))[:_MAX_ANN_QUERIES]
    queries = served_model.encode_users(cases.take(chosen))
    return tuple(
        benchmark_ann(
            served_model.index, queries, k, engine=served_model.engine, search_params=served_model.get_search_params(k)
        )
        for k in _select_ann_ks(served_model, ks)
    )


def _select_ann_ks(served_model: ServedModel, ks: Sequence[int]) -> list[int]:
    return [k for k in ks if k <= served_model.index.size] or [served_model.index.size]


def _count_routes(cases: EvalCases, served_model: ServedModel, popularity: Scores, ks: Sequence[int]) -> dict[str, int]:
    """How the recalls of the judged users are answered, seen items excluded, as the planner decides."""
    unknown = served_model.wrap_with_fallback(IndexScorer(served_model, 1), popularity).is_unknown(cases)
    paths = {"index": 0, "scan": 0, "all": 0, "popular": int(unknown.sum())}
    size, k = served_model.index.size, _select_ann_ks(served_model, ks)[0]
    for place in np.flatnonzero(~unknown):
        seen = len(np.unique(cases.histories[int(place)]))
        plan = plan_search(
            k,
            size=size,
            allowed_count=size,
            excluded_count=seen,
            curve=served_model.search_param_curve,
            costs=served_model.cost_model,
        )
        paths[plan.route] += 1
    return paths
