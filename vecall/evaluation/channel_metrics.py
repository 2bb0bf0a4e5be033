"""What each channel of recall gives: recall alone, what it adds to the vectors, overlap with them, and latency."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.evaluator import TOP_LIST_K, Metrics, get_new_target_mask, nan_to_none
from vecall.evaluation.metrics import Ranks, coverage_at_k, ndcg_at_k, recall_at_k, recall_per_user

NOT_FOUND = np.iinfo(np.int64).max  # rank of a target that is not in a ranking


@dataclass(frozen=True)
class ChannelResult:
    """What a channel gives for the evaluated users.

    Attributes:
        seen_excluded: For each k `recall@k` of the channel alone; `added@k`, the mean over users of the share of
            targets that its first k have and those of the vectors have not; and `overlap@k`, the mean over users for
            whom it recalls anything of the share of its first k that the vectors' first k have, too. NaN where no user
            counts.
        seen_included: The same, with the items of the history not excluded.
        p50_ms: Median time of a query.
        p99_ms: 99th percentile.
        weight: Its weight in the merge; None if it is not merged.
    """

    seen_excluded: Metrics
    seen_included: Metrics
    p50_ms: float
    p99_ms: float
    weight: float | None

    def as_json(self) -> dict[str, object]:
        """Return the attributes as `evaluate --json` prints them, None instead of NaN."""
        return {
            "seen_excluded": nan_to_none(self.seen_excluded),
            "seen_included": nan_to_none(self.seen_included),
            "p50_ms": round(self.p50_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "weight": self.weight,
        }


@dataclass(frozen=True)
class ChannelEvaluation:
    """The channels beside each other, and merged.

    Attributes:
        plan: How they are merged.
        merged: `seen_excluded` and `seen_included` of the merged rankings, with the keys of `EvaluationResult`.
        channels: By name, `vector` first.
        note: Sentence for the protocol.
        is_sample: Whether these are fewer users than the model was evaluated for: its metrics are not comparable then,
            those of the channel `vector` are.
    """

    plan: MergePlan
    merged: tuple[Metrics, Metrics]
    channels: Mapping[ChannelName, ChannelResult]
    note: str
    is_sample: bool = False

    @property
    def is_seen_excluded(self) -> bool:
        """Whether any evaluated user has a target outside the history; otherwise only `seen_included` is defined."""
        return not math.isnan(self.merged[0][f"ndcg@{TOP_LIST_K}"])

    @property
    def merged_excluded_or_included(self) -> Metrics:
        """Metrics of the merged rankings, as `EvaluationResult.seen_excluded_or_included`."""
        return self.merged[0 if self.is_seen_excluded else 1]

    def get_metrics(self, channel: ChannelName) -> Metrics:
        """Return the metrics of a channel that stand beside `merged_excluded_or_included`."""
        result = self.channels[channel]
        return result.seen_excluded if self.is_seen_excluded else result.seen_included

    def merged_as_json(self) -> dict[str, dict[str, float | None]]:
        """Return the metrics of the merged rankings, None instead of NaN."""
        excluded, included = map(nan_to_none, self.merged)
        return {"seen_excluded": excluded, "seen_included": included}

    def as_json(self) -> dict[str, object]:
        """Return the keys `merged` and `channels` of `evaluate --json`."""
        return {
            "merged": {**self.merged_as_json(), "plan": self.plan.model_dump(mode="json")},
            "channels": {name: result.as_json() for name, result in self.channels.items()},
        }


def select_targets(cases: EvalCases, n_items: int, *, exclude_seen: bool) -> RaggedArray:
    """Return the targets of each case that a ranking can have: without those in the history if these are excluded.

    Args:
        cases: n cases.
        n_items: N.
        exclude_seen: Whether the items of the history are excluded.
    """
    targets = cases.targets
    if not exclude_seen:
        return targets
    is_new = get_new_target_mask(cases, n_items)
    return RaggedArray.from_sorted_pairs(targets.segment_ids[is_new], targets.values[is_new], len(cases))


def rank_targets(rows: Rows, targets: RaggedArray, n_items: int) -> Ranks:
    """Return the [targets] 0-based rank of each target in the ranking of its case; `NOT_FOUND` where it is not there.

    Args:
        rows: [n, K] rows, best first; -1 after the last.
        targets: n lists of rows.
        n_items: N.
    """
    cases, ranks = np.nonzero(rows >= 0)
    keys = cases * n_items + rows[cases, ranks]
    order = np.argsort(keys)
    sought = targets.segment_ids * n_items + targets.values
    positions = np.append(order, -1)[np.searchsorted(keys, sought, sorter=order)]  # -1: beyond the largest key
    found = np.full(len(sought), NOT_FOUND)
    is_found = positions >= 0
    is_found[is_found] = keys[positions[is_found]] == sought[is_found]
    found[is_found] = ranks[positions[is_found]]
    return found


def compute_merged_metrics(
    merged: Mapping[int, Rows], targets: RaggedArray, n_items: int, ks: Sequence[int]
) -> Metrics:
    """Return `recall@k` for each k, `ndcg@10` and `coverage@10` of merged rankings; NaN without targets.

    Args:
        merged: By k, and 10, or N if that is less, the [n, k] rows that a request for k items returns.
        targets: n lists of rows.
        n_items: N.
        ks: Depths of recall.
    """
    offsets, metrics = targets.offsets, {}
    for k in ks:
        ranks = rank_targets(merged[min(k, n_items)], targets, n_items)
        metrics[f"recall@{k}"] = recall_at_k(ranks, offsets, k) if len(ranks) else math.nan
    first = merged[min(TOP_LIST_K, n_items)]
    ranks = rank_targets(first, targets, n_items)
    metrics[f"ndcg@{TOP_LIST_K}"] = ndcg_at_k(ranks, offsets, TOP_LIST_K) if len(ranks) else math.nan
    metrics[f"coverage@{TOP_LIST_K}"] = coverage_at_k(first, n_items, TOP_LIST_K)
    return metrics


def compute_channel_metrics(
    rows: Rows, vector_rows: Rows, targets: RaggedArray, n_items: int, ks: Sequence[int]
) -> Metrics:
    """Return `recall@k`, `added@k` and `overlap@k` for each k, see `ChannelResult`.

    Args:
        rows: [n, K] what the channel recalls, best first; -1 after the last.
        vector_rows: [n, K] what the vectors recall.
        targets: n lists of rows.
        n_items: N.
        ks: Depths.
    """
    ranks, vector_ranks = (rank_targets(ranking, targets, n_items) for ranking in (rows, vector_rows))
    metrics = {}
    for k in ks:
        is_added = (ranks < k) & ~(vector_ranks < k)
        has_targets = len(ranks) > 0
        metrics[f"recall@{k}"] = recall_at_k(ranks, targets.offsets, k) if has_targets else math.nan
        added_ranks = np.where(is_added, ranks, NOT_FOUND)
        metrics[f"added@{k}"] = (
            float(recall_per_user(added_ranks, targets.offsets, k).mean()) if has_targets else math.nan
        )
        metrics[f"overlap@{k}"] = _compute_overlap(rows[:, :k], vector_rows[:, :k], n_items)
    return metrics


def _compute_overlap(rows: Rows, vector_rows: Rows, n_items: int) -> float:
    """Return the mean over the cases with any row of the share of these that the vectors have, too."""

    def to_keys(ranking: Rows) -> NDArray[np.int64]:
        cases, columns = np.nonzero(ranking >= 0)
        keys: NDArray[np.int64] = cases * n_items + ranking[cases, columns]
        return keys

    keys = to_keys(rows)
    cases = keys // n_items
    counts = np.bincount(cases, minlength=len(rows))
    shared = np.bincount(cases[np.isin(keys, to_keys(vector_rows))], minlength=len(rows))
    has_rows = counts > 0
    return float((shared[has_rows] / counts[has_rows]).mean()) if has_rows.any() else math.nan
