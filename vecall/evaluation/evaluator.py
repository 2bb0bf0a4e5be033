"""Evaluation of a scorer by full ranking over all items, with seen items excluded and included."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Mask, Rows, Scores
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError
from vecall.evaluation.metrics import (
    Ranks,
    compute_standard_error,
    coverage_at_k,
    limit_depth,
    ndcg_at_k,
    recall_at_k,
    recall_per_user,
)
from vecall.evaluation.ranking import BatchRanking, rank_batch
from vecall.evaluation.scorer import Scorer
from vecall.evaluation.segment_metrics import SegmentMetrics, compute_segment_metrics
from vecall.evaluation.segments import Segment

_Value = TypeVar("_Value")
Metrics = dict[str, float]
Pairs = tuple[NDArray[np.int64], Rows]  # users and rows, of equal length

TOP_LIST_K = 10  # depth of ndcg and coverage
SAMPLE_TOP_K = 100  # best rows kept per sampled user
RANDOM_ITEMS_PER_USER = 20  # random items drawn per sampled user, whose scores are kept if unseen


class ProcessGroup(Protocol):
    """Processes that evaluate together."""

    rank: int
    size: int

    def gather_objects(self, value: _Value) -> list[_Value]:
        """Return the values of all processes in the order of their ranks."""


@dataclass(frozen=True)
class UserSample:
    """Rankings and scores of a random sample of S users, for plots.

    Attributes:
        case_indices: [S] indices of the sampled cases, ascending.
        top_rows: [S, 100] best unseen rows, best first; padded with -1 if a user has fewer.
        target_scores: [targets of the sample] scores of held-out items that are not in the user's history.
        negative_scores: [about 20 S] scores of random items that are neither seen nor held out.
    """

    case_indices: NDArray[np.int64]
    top_rows: Rows
    target_scores: Scores
    negative_scores: Scores


def select_seen_key(metrics: Mapping[str, Mapping[str, float | None]]) -> Literal["seen_excluded", "seen_included"]:
    """Return the key of the metrics to show, of those of `EvaluationResult.as_json`.

    That is "seen_included" if every target is in its user's history: no recall without seen items is defined then.
    """
    excluded = metrics["seen_excluded"]
    has_recall = any(value is not None for name, value in excluded.items() if name.startswith("recall@"))
    return "seen_excluded" if has_recall else "seen_included"


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a scorer on held-out items.

    Attributes:
        seen_excluded: `recall@k` for each k, `ndcg@10` and `coverage@10`, ranked among unseen items. Recall and NDCG
            are NaN if no user has a target outside the history.
        seen_included: The same, ranked among all items.
        group_metrics: Group name -> `seen_excluded` and `seen_included` of the users in the group.
        segment_metrics: Segment name and bucket -> metrics of its targets, ranked as in `seen_excluded_or_included`.
        evaluated_user_count: Users in `seen_included`: all of them, those of `all_repeat_user_count` too.
        target_count: Held-out items of these users.
        all_repeat_user_count: Users who count in `seen_included` alone, since all their targets are in their history.
        repeat_target_count: Targets that count in `seen_included` alone, since they are in their user's history.
        standard_errors: `recall@k` for each k: the standard error over users of `seen_excluded_or_included`; NaN for a
            single user.
        comparison_key: Key of the recall by which models are compared: at the largest k up to 100, and up to a tenth of
            the items; at the smallest k if all are larger.
        recall_by_user: [users with targets] this recall of each user in `seen_excluded_or_included`, in their order.
        sample: Sample of users, for plots.
    """

    seen_excluded: Metrics
    seen_included: Metrics
    group_metrics: Mapping[str, tuple[Metrics, Metrics]]
    segment_metrics: Mapping[tuple[str, str], SegmentMetrics]
    evaluated_user_count: int
    target_count: int
    all_repeat_user_count: int
    repeat_target_count: int
    standard_errors: Metrics
    comparison_key: str
    recall_by_user: NDArray[np.float64]
    sample: UserSample

    @property
    def seen_excluded_or_included(self) -> Metrics:
        """`seen_excluded`, or `seen_included` if the former is NaN: then no user has a target outside the history.

        All scorers on the same cases have the same of the two, so they can be compared.
        """
        return self.seen_excluded if self.is_seen_excluded else self.seen_included

    @property
    def is_seen_excluded(self) -> bool:
        """Whether a user has a target outside the history."""
        return not math.isnan(self.seen_excluded[f"ndcg@{TOP_LIST_K}"])

    @property
    def headline_key(self) -> str:
        """Key of the recall that texts name: `recall@100`, or that of the largest k without it."""
        keys = self.standard_errors
        return "recall@100" if "recall@100" in keys else max(keys, key=lambda key: int(key.removeprefix("recall@")))

    def as_json(self, group: str | None = None) -> dict[str, dict[str, float | None]]:
        """Return the metrics of all users or of a group as `evaluate --json` prints them, None instead of NaN."""
        excluded, included = (self.seen_excluded, self.seen_included) if group is None else self.group_metrics[group]
        return {"seen_excluded": nan_to_none(excluded), "seen_included": nan_to_none(included)}


def nan_to_none(metrics: Metrics) -> dict[str, float | None]:
    """Return metrics for JSON, which has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def evaluate_scorer(
    scorer: Scorer,
    cases: EvalCases,
    n_items: int,
    ks: Sequence[int],
    *,
    group_masks: Mapping[str, Mask] | None = None,
    segments: Sequence[Segment] = (),
    batch_size: int = 256,
    block_items: int = 4096,
    max_sample_users: int = 500,
    seed: int = 0,
    processes: ProcessGroup | None = None,
) -> EvaluationResult:
    """Rank all N items for each case and measure where the held-out ones rank.

    Scores of `batch_size` cases and `block_items` items are in memory at a time, never of all items.

    Args:
        scorer: Called with at most `batch_size` cases at a time.
        cases: Users with their histories, which are the seen items, and their held-out targets.
        n_items: N.
        ks: Depths of recall, each at least 1.
        group_masks: Masks [cases] by name; each group's metrics are computed too.
        segments: Parts of the targets; each one's metrics are computed too.
        batch_size: Cases scored together.
        block_items: Items scored together.
        max_sample_users: Upper bound on the users sampled for plots.
        seed: Seed of the sample.
        processes: Those that call this with the same arguments, rank a part each and return the same; None for one.

    Raises:
        DataError: There are no cases, a row is not one of the N items, or scores are not of the shape of a block.
        TrainingError: A score is NaN.
    """
    if not len(cases):
        raise DataError("no user to evaluate: the split holds out no interactions; check data.split and its times")
    _check_rows(cases, n_items)
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(cases), size=min(max_sample_users, len(cases)), replace=False))
    depth = 1 + max(*ks, TOP_LIST_K, SAMPLE_TOP_K if len(sampled) else 0)  # ranks up to the largest k are exact
    metrics, samples = _RankingMetrics(), []
    own = range(len(cases)) if processes is None else _get_own_cases(len(cases), processes)
    with progress.track("ranking all items", len(own)) as advance:
        for start in own[::batch_size]:
            stop = min(start + batch_size, own.stop)
            batch = cases.take(np.arange(start, stop))
            user_indices = sampled[(sampled >= start) & (sampled < stop)] - start
            negatives = _draw_negatives(batch, n_items, user_indices, rng)
            pairs = _concatenate_pairs((batch.targets.segment_ids, batch.targets.values), negatives)
            ranking = rank_batch(
                scorer(batch), batch.histories, pairs, n_items=n_items, depth=depth, block_items=block_items
            )
            is_new = get_new_target_mask(batch, n_items)
            metrics.add_batch(ranking, batch.targets, is_new)
            samples.append(_collect_sample(ranking, batch.targets, is_new, user_indices, start))
            advance(len(batch))
    if processes is not None:
        metrics, samples = _merge(processes.gather_objects((metrics, samples)))
    return metrics.compute_result(cases, n_items, ks, group_masks or {}, segments, _concatenate_samples(samples))


def _get_own_cases(count: int, processes: ProcessGroup) -> range:
    """Return the part of 0 .. count - 1 of this process."""
    return range(count * processes.rank // processes.size, count * (processes.rank + 1) // processes.size)


class _RankingMetrics:
    """Ranks of targets and best rows, collected batch by batch, and the metrics of all."""

    def __init__(self) -> None:
        self.new_target_masks: list[Mask] = []
        self.ranks: tuple[list[Ranks], list[Ranks]] = [], []  # seen items excluded, included
        self.top_rows: tuple[list[Rows], list[Rows]] = [], []

    def add_batch(self, ranking: BatchRanking, targets: RaggedArray, is_new: Mask) -> None:
        """Add a batch of B cases: its ranking, B lists of targets, and the mask of those not in the history."""
        excluded, included = ranking.rank_targets(targets, ranking.pair_scores[: len(targets.values)])
        self.new_target_masks.append(is_new)
        self.ranks[0].append(excluded[is_new])
        self.ranks[1].append(included)
        self.top_rows[0].append(_pad_columns(ranking.top_rows, TOP_LIST_K))
        self.top_rows[1].append(ranking.select_top_rows_of_all(TOP_LIST_K))

    def extend(self, following: "_RankingMetrics") -> None:
        """Add the cases that follow, which another process ranked."""
        self.new_target_masks += following.new_target_masks
        for own, others in zip((*self.ranks, *self.top_rows), (*following.ranks, *following.top_rows), strict=True):
            own.extend(others)

    def compute_result(
        self,
        cases: EvalCases,
        n_items: int,
        ks: Sequence[int],
        group_masks: Mapping[str, Mask],
        segments: Sequence[Segment],
        sample: UserSample,
    ) -> EvaluationResult:
        """Compute the metrics of all cases, which were added in their order, of the groups and of the segments."""
        targets, is_new = cases.targets, np.concatenate(self.new_target_masks)
        new_targets = RaggedArray.from_sorted_pairs(targets.segment_ids[is_new], targets.values[is_new], len(cases))
        rankings = [
            (np.concatenate(ranks), lists, np.concatenate(top_rows))
            for ranks, lists, top_rows in zip(self.ranks, (new_targets, targets), self.top_rows, strict=True)
        ]

        def compute_metrics(user_mask: Mask) -> tuple[Metrics, Metrics]:
            excluded, included = (_compute_metrics(*ranking, user_mask, n_items, ks) for ranking in rankings)
            return excluded, included

        seen_excluded, seen_included = compute_metrics(np.ones(len(cases), dtype=np.bool_))
        ranks, lists, _ = rankings[0] if len(new_targets.values) else rankings[1]
        is_ranked = is_new if len(new_targets.values) else np.ones_like(is_new)
        comparison_k = max((k for k in ks if k <= limit_depth(n_items)), default=min(ks))
        return EvaluationResult(
            seen_excluded=seen_excluded,
            seen_included=seen_included,
            group_metrics={name: compute_metrics(mask) for name, mask in group_masks.items()},
            segment_metrics={
                (segment.name, segment.bucket): compute_segment_metrics(
                    ranks, lists, segment.target_mask[is_ranked], ks
                )
                for segment in segments
            },
            evaluated_user_count=len(cases),
            target_count=len(targets.values),
            all_repeat_user_count=int((new_targets.lengths == 0).sum()),
            repeat_target_count=len(targets.values) - len(new_targets.values),
            standard_errors={
                f"recall@{k}": compute_standard_error(recall_per_user(ranks, lists.offsets, k)) for k in ks
            },
            comparison_key=f"recall@{comparison_k}",
            recall_by_user=recall_per_user(ranks, lists.offsets, comparison_k),
            sample=sample,
        )


def _merge(
    parts: Iterable[tuple[_RankingMetrics, list[UserSample]]],
) -> tuple[_RankingMetrics, list[UserSample]]:
    """Merge what the processes collected, in the order of the cases."""
    metrics, samples = _RankingMetrics(), []
    for part_metrics, part_samples in parts:
        metrics.extend(part_metrics)
        samples += part_samples
    return metrics, samples


def _compute_metrics(
    ranks: Ranks, targets: RaggedArray, top_rows: Rows, user_mask: Mask, n_items: int, ks: Sequence[int]
) -> Metrics:
    """Compute the metrics of the users in a mask.

    Args:
        ranks: [targets] ranks, exact below the largest k.
        targets: Lists of targets of all users.
        top_rows: [users, 10] best rows.
        user_mask: [users] whether a user counts.
        n_items: N.
        ks: Depths of recall.

    Returns:
        Metrics by name; recall and NDCG are NaN if none of the users has a target.
    """
    ranks = ranks[user_mask[targets.segment_ids]]
    offsets = np.concatenate([[0], np.cumsum(targets.lengths[user_mask])])
    metrics = {f"recall@{k}": recall_at_k(ranks, offsets, k) if len(ranks) else math.nan for k in ks}
    metrics[f"ndcg@{TOP_LIST_K}"] = ndcg_at_k(ranks, offsets, TOP_LIST_K) if len(ranks) else math.nan
    metrics[f"coverage@{TOP_LIST_K}"] = coverage_at_k(top_rows[user_mask], n_items, TOP_LIST_K)
    return metrics


def _check_rows(cases: EvalCases, n_items: int) -> None:
    for name, lists in (("targets", cases.targets), ("histories", cases.histories)):
        if len(lists.values) and not 0 <= lists.values.min() <= lists.values.max() < n_items:
            raise DataError(
                f"{name}: expected rows of the {n_items} scored items, got {lists.values.min()} to "
                f"{lists.values.max()}; score all items of the vocabulary"
            )


def get_new_target_mask(cases: EvalCases, n_items: int) -> Mask:
    """Return [targets] whether a target of N items is not in its user's history."""
    seen_pairs = cases.histories.segment_ids * n_items + cases.histories.values
    return ~np.isin(cases.targets.segment_ids * n_items + cases.targets.values, seen_pairs)


def _draw_negatives(cases: EvalCases, n_items: int, user_indices: NDArray[np.int64], rng: np.random.Generator) -> Pairs:
    """Draw random items for the sampled users of a batch; those that are seen or held out are left out.

    Args:
        cases: The batch.
        n_items: N.
        user_indices: Sampled users of the batch, ascending.
        rng: Draws the items.
    """
    users = np.repeat(user_indices, RANDOM_ITEMS_PER_USER)
    drawn = rng.integers(n_items, size=len(users))
    known_pairs = np.concatenate(
        [lists.segment_ids * n_items + lists.values for lists in (cases.histories, cases.targets)]
    )
    is_negative = ~np.isin(users * n_items + drawn, known_pairs)
    return users[is_negative], drawn[is_negative]


def _collect_sample(
    ranking: BatchRanking, targets: RaggedArray, is_new: Mask, user_indices: NDArray[np.int64], batch_start: int
) -> UserSample:
    """Collect the sample of a batch.

    Args:
        ranking: Its pairs are the targets, then the random items.
        targets: Lists of targets.
        is_new: [targets] whether a target is not in the history.
        user_indices: Sampled users of the batch, ascending.
        batch_start: Index of the batch's first case among all cases.
    """
    n_targets = len(targets.values)
    is_sampled = is_new & np.isin(targets.segment_ids, user_indices)
    return UserSample(
        case_indices=user_indices + batch_start,
        top_rows=_pad_columns(ranking.top_rows[user_indices], SAMPLE_TOP_K),
        target_scores=ranking.pair_scores[:n_targets][is_sampled],
        negative_scores=ranking.pair_scores[n_targets:],
    )


def _pad_columns(rows: Rows, k: int) -> Rows:
    """Return the first k columns of rows [B, n], padded with -1 if there are fewer."""
    padded = np.full((len(rows), k), -1, dtype=np.int64)
    padded[:, : rows.shape[1]] = rows[:, :k]
    return padded


def _concatenate_pairs(first: Pairs, second: Pairs) -> Pairs:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _concatenate_samples(samples: Sequence[UserSample]) -> UserSample:
    return UserSample(
        case_indices=np.concatenate([sample.case_indices for sample in samples]),
        top_rows=np.concatenate([sample.top_rows for sample in samples]),
        target_scores=np.concatenate([sample.target_scores for sample in samples]),
        negative_scores=np.concatenate([sample.negative_scores for sample in samples]),
    )
