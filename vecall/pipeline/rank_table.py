"""Merging of the rankings of many cases at once, as `vecall.recall.merging` merges those of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName
from vecall.data.ragged import RaggedArray
from vecall.evaluation.channel_metrics import NOT_FOUND
from vecall.evaluation.metrics import Ranks
from vecall.recall.merging import weigh_ranks

_BLOCK_CASES = 512  # cases merged together, so that their scores stay in the cache
_NO_ROW = np.iinfo(np.int32).max  # sorts behind every row


@dataclass(frozen=True)
class _Block:
    """Some consecutive cases of a table.

    Attributes:
        rows: [b, U] int32 distinct rows of each case, ascending; `_NO_ROW` after the last.
        ranks: By channel [b, U] rank of each of `rows`, from 1, in a small type; 0 where the channel did not return it.
    """

    rows: Rows
    ranks: Mapping[ChannelName, NDArray[np.signedinteger[Any]]]

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
            own_ranks = np.where(rows >= 0, np.arange(1, rows.shape[1] + 1), 0)
            own_ranks = own_ranks.astype(np.min_scalar_type(-1 - rows.shape[1]))
            ranks[name] = np.zeros(shape, dtype=own_ranks.dtype)
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
    """

    def __init__(self, rankings: Mapping[ChannelName, Rows]) -> None:
        n_cases = len(next(iter(rankings.values())))
        self._starts = range(0, n_cases, _BLOCK_CASES)
        self._blocks = [
            _Block.build({name: rows[start : start + _BLOCK_CASES] for name, rows in rankings.items()})
            for start in self._starts
        ]

    def merge(self, plan: MergePlan, k: int) -> Rows:
        """Return [n, k] the merged rankings, best first; -1 after the last.

        They are those of `merge_rankings` by fused score descending, then row ascending.
        """
        merged = []
        for block in self._blocks:
            scores = block.fuse(plan)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            rows = np.where(np.take_along_axis(scores, best, axis=1) > 0, np.take_along_axis(block.rows, best, 1), -1)
            merged.append(np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1))
        return np.concatenate(merged)

    def locate(self, targets: RaggedArray) -> "TargetLocations":
        """Find the targets of each case among its rows, once for all plans."""
        cases, values = targets.segment_ids, targets.values
        by_block = []
        for start, block in zip(self._starts, self._blocks, strict=True):
            first, last = np.searchsorted(cases, [start, start + len(block.rows)])
            own_cases = cases[first:last] - start
            # Rows ascend within a case, so keys that begin with the case ascend over the block.
            keys = (np.arange(len(block.rows))[:, None] * (_NO_ROW + 1) + block.rows.astype(np.int64)).ravel()
            sought = own_cases * (_NO_ROW + 1) + values[first:last].astype(np.int64)
            found = np.minimum(np.searchsorted(keys, sought), keys.size - 1)
            is_found = keys[found] == sought
            by_block.append(
                (first + np.flatnonzero(is_found), own_cases[is_found], found[is_found] % block.rows.shape[1])
            )
        return TargetLocations(len(values), tuple(by_block))

    def rank_targets(self, plan: MergePlan, targets: "TargetLocations") -> Ranks:
        """Return the 0-based rank of each target in the merged ranking of its case, or `NOT_FOUND`."""
        ranks = np.full(targets.count, NOT_FOUND)
        for block, (indices, cases, columns) in zip(self._blocks, targets.by_block, strict=True):
            scores = block.fuse(plan)
            for start in range(0, len(indices), _BLOCK_CASES):
                part = slice(start, start + _BLOCK_CASES)
                own_scores = scores[cases[part]]
                target_scores = np.take_along_axis(own_scores, columns[part, None], axis=1)
                is_before = own_scores > target_scores
                is_before |= (own_scores == target_scores) & (np.arange(scores.shape[1]) < columns[part, None])
                own_ranks = np.count_nonzero(is_before, axis=1)
                ranks[indices[part]] = np.where(target_scores[:, 0] > 0, own_ranks, NOT_FOUND)
        return ranks


@dataclass(frozen=True)
class TargetLocations:
    """Where the targets of n cases are in a table.

    Attributes:
        count: Number of targets.
        by_block: For each block, of the targets that any channel recalls, the indices, the cases in the block, and the
            columns among the rows of the case.
    """

    count: int
    by_block: tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], ...]
