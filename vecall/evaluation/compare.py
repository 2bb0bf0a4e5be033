"""Evaluation of a model, its index and the baselines by one protocol: the result of `vecall evaluate`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vecall.arrays import Mask, Scores, Vectors
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.evaluation.ann import AnnBenchmarkResult, benchmark_ann
from vecall.evaluation.baseline_comparison import BaselineComparison, compare_with_baselines
from vecall.evaluation.baseline_evaluation import (
    BASELINES,
    ScorerFactory,
    build_baseline_factories,
    evaluate_models,
)
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.channel_metrics import ChannelEvaluation
from vecall.evaluation.evaluator import EvaluationResult
from vecall.evaluation.fallback import FallbackScorer, compute_unknown_user_mask
from vecall.evaluation.sampling import describe_users, select_test_cases
from vecall.evaluation.scorer import BlockScorer, Scorer
from vecall.evaluation.segments import build_segments
from vecall.index.base import Index, SearchParams
from vecall.index.planner import CostModel, plan_search
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.search_params import SearchParamCurve

WITH_HISTORY = "with_history"  # name of the group of users that have a history
_MAX_ANN_QUERIES = 1_000  # user vectors that the index is benchmarked with


@dataclass(frozen=True)
class ServedModel:
    """A model with everything that serving it needs.

    Attributes:
        encode_users: Maps B cases to user vectors [B, D].
        index: Index over the item vectors.
        search_param_curve: Search parameters by k; None for an exact index.
        engine: Label of the kind of index.
        cost_model: Cost of an index search and of a scan, by which recall chooses between them.
        has_features_by_user: [U] whether each stored user has a feature that the user tower reads.
        reads_history: Whether the user tower reads histories.
        tuning_points: Search parameters tried when the index was tuned: `k`, `recall`, `recall_ci95`, `p50_ms` of each.
    """

    encode_users: Callable[[EvalCases], Vectors]
    index: Index
    search_param_curve: SearchParamCurve | None
    engine: str
    cost_model: CostModel
    has_features_by_user: Mask
    reads_history: bool
    tuning_points: Sequence[Mapping[str, float]] = ()

    def wrap_with_fallback(self, scorer: Scorer, popularity: Scores) -> FallbackScorer:
        """Return a scorer that gives popularity to the users whom recall would serve popular items."""
        return FallbackScorer(
            scorer, popularity, reads_history=self.reads_history, has_features_by_user=self.has_features_by_user
        )

    def get_unknown_user_mask(self, cases: EvalCases) -> Mask:
        """Return [B] whether recall would serve the user of each case popular items."""
        return compute_unknown_user_mask(
            cases, reads_history=self.reads_history, has_features_by_user=self.has_features_by_user
        )

    def get_search_params(self, k: int) -> SearchParams | None:
        """Return the search parameters for k rows; None for an exact index."""
        return None if self.search_param_curve is None else self.search_param_curve.look_up(k)


class IndexScorer:
    """Scores items as recall finds them: rows that the index returns have their score, all others -inf.

    Args:
        served_model: The model and its index.
        k: Number of unseen rows that a search is to find.
    """

    def __init__(self, served_model: ServedModel, k: int) -> None:
        self._served_model, self._k = served_model, k

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Search for B cases and return the scorer of blocks of items.

        Each search fetches k rows plus one for each distinct item of the history, as a request does that excludes them.
        """
        index = self._served_model.index
        rows, scores = [], []
        for case, vector in enumerate(self._served_model.encode_users(cases)):
            fetch_k = min(self._k + len(np.unique(cases.histories[case])), index.vectors.size)
            hits = index.search(vector[None], fetch_k, search_params=self._served_model.get_search_params(fetch_k))
            is_hit = hits.rows[0] >= 0
            rows.append(hits.rows[0][is_hit])
            scores.append(hits.scores[0][is_hit])
        hit_cases = np.repeat(np.arange(len(rows)), [len(found) for found in rows])
        hit_rows, hit_scores = np.concatenate(rows), np.concatenate(scores)

        def score_block(start: int, stop: int) -> Scores:
            block = np.full((len(cases), stop - start), -np.inf, dtype=np.float32)
            is_within = (hit_rows >= start) & (hit_rows < stop)
            block[hit_cases[is_within], hit_rows[is_within] - start] = hit_scores[is_within]
            return block

        return score_block


@dataclass(frozen=True)
class EvaluationReport:
    """Results of an evaluation.

    Attributes:
        protocol: Sentences about split, ranking and baselines.
        dropped: Number of interactions, users or targets that were left out, by reason.
        results: Metrics by name: `model`, `index` (the model through its index), then the baselines.
        ann_results: Benchmark of the index alone, for each k.
        first_k_route_counts: Route -> number of evaluated users for whom recall at `ann_results[0].k` takes it; the
            routes are those of `vecall.recall.query.ExecutionPlan.path`.
        tuning_points: As in `ServedModel`.
        item_counts: [N] number of users of each item in training.
        channels: The channels of recall and their merge; None where they were not evaluated.
    """

    protocol: tuple[str, ...]
    dropped: Mapping[str, int]
    results: Mapping[str, EvaluationResult]
    ann_results: tuple[AnnBenchmarkResult, ...]
    first_k_route_counts: Mapping[str, int]
    tuning_points: Sequence[Mapping[str, float]]
    item_counts: Scores
    channels: ChannelEvaluation | None = None

    @property
    def comparison(self) -> BaselineComparison | None:
        """The model beside the baselines that were evaluated."""
        baselines = {name: self.results[name] for name in BASELINES if name in self.results}
        return compare_with_baselines(self.results["model"], baselines)

    @property
    def route_summary(self) -> str:
        """One line about the routes that recalls of the evaluated users take."""
        actions = {
            "index": "by an index search",
            "scan": "by a scan of all items (exact; no index search would be faster)",
            "all": "with all items",
            "popular": "with popular items",
        }
        counts = ", ".join(f"{count:,} {actions[route]}" for route, count in self.first_k_route_counts.items() if count)
        return f"recall answers the evaluated users at k = {self.ann_results[0].k}: {counts}"

    def as_json(self) -> dict[str, object]:
        """Return the results as `vecall evaluate --json` prints them; a skipped baseline is None."""
        first, *others = [result.as_json() for result in self.ann_results]
        return {
            "protocol": " ".join(self.protocol),
            "dropped": dict(self.dropped),
            "comparison": None if self.comparison is None else asdict(self.comparison),
            **self._results_to_json(None),
            **({"merged": None, "channels": {}} if self.channels is None else self.channels.as_json()),
            "with_history": self._results_to_json(WITH_HISTORY),
            "segments": self._segments_to_json(),
            "ann": first | {"paths": dict(self.first_k_route_counts), "others": others},
        }

    def _results_to_json(self, group: str | None) -> dict[str, object]:
        names = ("model", "popularity", "ease", "cooccurrence", "index")
        return {name: self.results[name].as_json(group) if name in self.results else None for name in names}

    def _segments_to_json(self) -> dict[str, dict[str, object]]:
        """Return the model's metrics, and those of the baselines, by segment and bucket."""
        segments: dict[str, dict[str, object]] = {}
        baselines = {name: self.results[name].segment_metrics for name in BASELINES if name in self.results}
        for (name, bucket), model in self.results["model"].segment_metrics.items():
            segments.setdefault(name, {})[bucket] = {
                "users": model.user_count,
                "targets": model.target_count,
                **model.as_json(),
                "baselines": {other: metrics[name, bucket].as_json() for other, metrics in baselines.items()},
            }
        return segments


def evaluate_all(
    dataset: Dataset,
    split: Split,
    scorer: Scorer,
    served_model: ServedModel,
    ks: Sequence[int],
    ann_ks: Sequence[int],
    *,
    segments: Sequence[str] = (),
    all_users: bool = False,
) -> EvaluationReport:
    """Evaluate a model, the model through its index, and the baselines on the test cases.

    Args:
        dataset: Supplies the number of items and of what was dropped.
        split: Baselines are fitted on `train` alone, as the model was, and read the same test histories; EASE's l2 is
            chosen on `valid`.
        scorer: Exact scores of the model.
        served_model: The same model with its index.
        ks: Depths of model recall.
        ann_ks: Depths of ANN recall; those beyond N are skipped, or replaced by N if none remains.
        segments: Names of segments whose metrics are computed too, see `build_segments`.
        all_users: Whether to evaluate all users, however long it takes; see `select_test_cases`.
    """
    n_items = len(dataset.catalogue.items)
    cases = select_test_cases(split.test, n_items, all_users=all_users)
    popularity = Popularity(split.counted_train, n_items)
    item_counts = popularity.item_counts
    factories: dict[str, ScorerFactory] = {
        "model": lambda: (served_model.wrap_with_fallback(scorer, item_counts), ""),
        "index": lambda: (served_model.wrap_with_fallback(IndexScorer(served_model, max(ks)), item_counts), ""),
        **build_baseline_factories(split, n_items, popularity),
    }
    group_masks = {WITH_HISTORY: cases.histories.lengths > 0}
    parts = build_segments(segments, dataset, split, cases, item_counts)
    evaluated = evaluate_models(factories, cases, n_items, ks, group_masks=group_masks, segments=parts)
    results = evaluated.results
    dropped = dict(dataset.dropped_counts) | dict(split.user_counts_by_reason)
    if repeats := results["model"].repeat_target_count:
        dropped["targets already in the history (left out where seen items are excluded)"] = repeats
    return EvaluationReport(
        protocol=(
            split.protocol[0].upper() + split.protocol[1:] + ".",
            _describe_ranking(results["model"], len(split.test), n_items),
            "Model, EASE, co-occurrence and popularity were fitted on the training part alone and read the same "
            "histories; `index` is the model through its index.",
            *_describe_users_without_history(cases.histories.lengths > 0),
            *evaluated.notes,
        ),
        dropped=dropped,
        results=results,
        ann_results=_benchmark_index(cases, served_model, ann_ks),
        first_k_route_counts=_count_routes(cases, served_model, ann_ks),
        tuning_points=served_model.tuning_points,
        item_counts=item_counts,
    )


def _describe_ranking(result: EvaluationResult, n_users: int, n_items: int) -> str:
    """Return the protocol's sentence about users, items and ties."""
    recall_key = result.headline_key
    is_sample = result.evaluated_user_count < n_users
    return (
        f"{describe_users(result.evaluated_user_count, n_users)} evaluated over {n_items:,} items "
        f"(standard error of the model's {recall_key}: {result.standard_errors[recall_key]:.4f}"
        f"{'; --all-users evaluates all of them' if is_sample else ''}); ties count against the model: a target ranks "
        "below all other items with its score."
    )


def _describe_users_without_history(has_history: Mask) -> list[str]:
    """Return the protocol's sentence about users without a history; nothing if there are none."""
    count = int((~has_history).sum())
    if not count:
        return []
    return [
        f"{count:,} of these users have no history: a model that reads no features of them is scored on popular items, "
        "which it would serve; `with_history` leaves these users out."
    ]


def _benchmark_index(cases: EvalCases, served_model: ServedModel, ks: Sequence[int]) -> tuple[AnnBenchmarkResult, ...]:
    """Measure ANN recall and latency of the index alone, on vectors of the evaluated users."""
    known = np.flatnonzero(~served_model.get_unknown_user_mask(cases))
    rows = known if len(known) else np.arange(len(cases))
    sampled = rows[evenly_spaced_rows(len(rows), _MAX_ANN_QUERIES)]
    queries = served_model.encode_users(cases.take(sampled))
    return tuple(
        benchmark_ann(
            served_model.index, queries, k, engine=served_model.engine, search_params=served_model.get_search_params(k)
        )
        for k in _limit_ks_to_index_size(served_model, ks)
    )


def _limit_ks_to_index_size(served_model: ServedModel, ks: Sequence[int]) -> list[int]:
    """Return the ks that are at most N; N itself if none is."""
    return [k for k in ks if k <= served_model.index.vectors.size] or [served_model.index.vectors.size]


def _count_routes(cases: EvalCases, served_model: ServedModel, ks: Sequence[int]) -> dict[str, int]:
    """Count the routes that the planner chooses for the evaluated users at the first k, seen excluded.

    They are those of the mean query: a recall adapts its plan to its own.
    """
    is_unknown = served_model.get_unknown_user_mask(cases)
    route_counts = {"index": 0, "scan": 0, "all": 0, "popular": int(is_unknown.sum())}
    size, k = served_model.index.vectors.size, _limit_ks_to_index_size(served_model, ks)[0]
    for case in np.flatnonzero(~is_unknown).tolist():
        plan = plan_search(
            k,
            size=size,
            allowed_count=size,
            excluded_count=len(np.unique(cases.histories[case])),
            curve=served_model.search_param_curve,
            costs=served_model.cost_model,
        )
        route_counts[plan.route] += 1
    return route_counts
