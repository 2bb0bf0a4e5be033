"""Merging of the rankings of many cases at once, as `vecall.recall.merging` merges those of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows, Scores
from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName
from vecall.data.ragged import RaggedArray
from vecall.recall.merging import weigh_ranks

_BLOCK_CASES = 512  # cases merged together, so that their scores stay in the cache
_NO_ROW = np.iinfo(np.int32).max  # sorts behind every row


@dataclass(frozen=True)
class _Block:
    """Some consecutive cases of a table.

    Attributes:
        rows: [b, U] int32 distinct rows of each case, ascending; `_NO_ROW` after the last.
        ranks: By channel [b, U] int16 rank of each of `rows`, from 1; 0 where the channel did not return it.
    """

    rows: Rows
    ranks: Mapping[ChannelName, NDArray[np.int16]]

    @classmethod
    def build(cls, rankings: Mapping[ChannelName, Rows]) -> Self:
        """Build from rows [b, k] of each channel, best first; -1 after the last."""
        stacked = np.concatenate([rows.astype(np.int32) for rows in rankings.values()], axis=1)
        stacked[stacked < 0] = _NO_ROW
        order = np.argsort(stacked, axis=1, kind="stable")
        ascending = np.take_along_axis(stacked, order, axis=1)
        is_first = np.ones(ascending.shape, dtype=np.bool_)
        is_first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
        columns = np.empty_like(order)  # of each stacked row among the distinct rows of its case
        np.put_along_axis(columns, order, np.cumsum(is_first, axis=1) - 1, axis=1)
        shape = len(stacked), int(columns.max(initial=-1)) + 1
        distinct = np.full(shape, _NO_ROW, dtype=np.int32)
        np.put_along_axis(distinct, columns, stacked, axis=1)
        ranks, start = {}, 0
        for name, rows in rankings.items():
            ranks[name] = np.zeros(shape, dtype=np.int16)
            own_ranks = np.where(rows >= 0, np.arange(1, rows.shape[1] + 1), 0).astype(np.int16)
            np.put_along_axis(ranks[name], columns[:, start : start + rows.shape[1]], own_ranks, axis=1)
            start += rows.shape[1]
        return cls(distinct, ranks)

    def fuse(self, plan: MergePlan) -> Scores:
        """Return [b, U] the fused scores; 0 of rows that no channel of the plan returned."""
        total = np.zeros(self.rows.shape)
        for name, weight in plan.weights.items():
            if name in self.ranks:
                ranks = self.ranks[name]
                by_rank = np.concatenate([[0.0], weigh_ranks(int(ranks.max(initial=0)), plan.method, weight)])
                total = (np.add if plan.method == "rrf" else np.maximum)(total, by_rank[ranks])
        return total.astype(np.float32)


class RankTable:
    """The items that several channels recall for n cases, and their ranks: any plan merges them without a sort.

    Args:
        rankings: By channel [n, K] distinct rows below 2^31 - 1, best first; -1 after the last.
        k: Items that each channel is asked for, and length of the merged rankings; at least 1 and below 2^15.
    """

    def __init__(self, rankings: Mapping[ChannelName, Rows], k: int) -> None:
        self._k = k
        n_cases = len(next(iter(rankings.values())))
        self._starts = range(0, n_cases, _BLOCK_CASES)
        self._blocks = [
            _Block.build({name: rows[start : start + _BLOCK_CASES, :k] for name, rows in rankings.items()})
            for start in self._starts
        ]

    def merge(self, plan: MergePlan) -> Rows:
        """Return [n, k] the merged rankings, best first; -1 after the last.

        They are those of `merge_rankings` by fused score descending, then row ascending.
        """
        merged = []
        for block in self._blocks:
            scores = block.fuse(plan)
            best = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
            rows = np.where(np.take_along_axis(scores, best, axis=1) > 0, np.take_along_axis(block.rows, best, 1), -1)
            padding = ((0, 0), (0, self._k - rows.shape[1]))
            merged.append(np.pad(rows, padding, constant_values=-1))
        return np.concatenate(merged)

    def locate(self, targets: RaggedArray) -> "TargetLocations":
        """Find the targets of each case among its rows, once for all plans."""
        cases, values = targets.segment_ids, targets.values
        locations = []
        for start, block in zip(self._starts, self._blocks, strict=True):
            own = slice(*np.searchsorted(cases, [start, start + len(block.rows)]))
            own_cases, own_rows = cases[own] - start, values[own]
            # Rows ascend within a case, so keys that begin with the case ascend over the block.
            keys = np.arange(len(block.rows))[:, None] * (_NO_ROW + 1) + block.rows.astype(np.int64)
            sought = own_cases * (_NO_ROW + 1) + own_rows.astype(np.int64)
            positions = np.minimum(np.searchsorted(keys.ravel(), sought), keys.size - 1)
            locations.append((np.where(keys.ravel()[positions] == sought, positions, -1), own_cases))
        return TargetLocations(tuple(locations), targets.lengths)

    def compute_recalls(self, plan: MergePlan, targets: "TargetLocations") -> NDArray[np.float64]:
        """Return [n] the share of each case's targets in its k merged rows; every case must have a target."""
        hits = []
        for block, (positions, cases) in zip(self._blocks, targets.locations, strict=True):
            is_best = _mark_best(block.fuse(plan), self._k).ravel()
            is_hit = (positions >= 0) & is_best[positions]
            hits.append(np.bincount(cases[is_hit], minlength=len(block.rows)))
        shares: NDArray[np.float64] = np.concatenate(hits) / targets.counts
        return shares


@dataclass(frozen=True)
class TargetLocations:
    """Where the targets of n cases are in a table.

    Attributes:
        locations: For each block the [targets] positions in its flattened rows, -1 where no channel returned the
            target, and the [targets] cases.
        counts: [n] Number of targets of each case.
    """

    locations: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    counts: NDArray[np.int64]


def _mark_best(scores: Scores, k: int) -> Mask:
    """Return [b, U] whether each is among the k largest above 0 of its row; of equal ones the first are."""
    is_scored: Mask = scores > 0
    if scores.shape[1] <= k:
        return is_scored
    limits = np.partition(scores, -k, axis=1)[:, -k, None]
    is_above, is_tied = scores > limits, scores == limits
    free = k - np.count_nonzero(is_above, axis=1)[:, None]
    return (is_above | (is_tied & (np.cumsum(is_tied, axis=1) <= free))) & is_scored
