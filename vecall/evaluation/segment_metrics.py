"""Metrics of a segment: of some of the held-out targets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vecall.arrays import Mask
from vecall.data.ragged import RaggedArray
from vecall.evaluation.metrics import Ranks, ndcg_at_k, recall_at_k

_NDCG_K = 10


@dataclass(frozen=True)
class SegmentMetrics:
    """Metrics of a segment.

    Attributes:
        user_count: Users with a target in the segment.
        target_count: These targets.
        metrics: `recall@k` for each k and `ndcg@10` of these targets, ranked among all items; NaN without users.
    """

    user_count: int
    target_count: int
    metrics: dict[str, float]

    def as_json(self) -> dict[str, float | None]:
        """Return the metrics, None instead of NaN."""
        return {name: None if math.isnan(value) else value for name, value in self.metrics.items()}


def compute_segment_metrics(ranks: Ranks, targets: RaggedArray, target_mask: Mask, ks: Sequence[int]) -> SegmentMetrics:
    """Compute recall and NDCG as if the targets of the segment alone were held out; other targets keep their ranks.

    Args:
        ranks: [targets] 0-based ranks, exact below the largest k.
        targets: Lists of targets by user.
        target_mask: [targets] whether a target is in the segment.
        ks: Depths of recall.
    """
    owners = targets.segment_ids[target_mask]
    kept = RaggedArray.from_sorted_pairs(owners, targets.values[target_mask], len(targets))
    kept_ranks = ranks[target_mask]
    has_targets = len(kept_ranks) > 0
    metrics = {f"recall@{k}": recall_at_k(kept_ranks, kept.offsets, k) if has_targets else math.nan for k in ks}
    metrics[f"ndcg@{_NDCG_K}"] = ndcg_at_k(kept_ranks, kept.offsets, _NDCG_K) if has_targets else math.nan
    return SegmentMetrics(int(np.count_nonzero(kept.lengths)), len(kept_ranks), metrics)
