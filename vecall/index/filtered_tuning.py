"""How far and how deep to look where the nearest are not the answer: measured under random filters."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.index.ann_recall import recall_per_query, tail_recall_per_query
from vecall.index.base import Effort, Index, Rows, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.ivf import CellsIndex
from vecall.index.planner import Costs
from vecall.index.search_params import EffortCurve, Filtered, Width

LENGTH = 5  # times the least k: answers here, which reach past as many as a usual exclusion takes
_LAST = 20  # one in so many rows of an answer, the last, count
_PASS_RATES = (1, 0.3, 0.1, 0.05, 0.03, 0.01)
_LEAST_PASSING = 2  # times the length; of fewer the planner scans
_ASKED = 100  # queries
_WORST_BELOW = 0.1  # the target
_WIDER = 1.2  # from one width to the next
_TOO_DEAR, _MOST = 1.2, 5  # times the cost of a scan; times the length, the longest answer of that rank
_DEEPER, _WIDE = (1.0, 1.25, 1.5, 2.0, 3.0), 16  # times the usual depth; the width to try them at, times the usual one


def find_filtered(
    index: Index, queries: Vectors, nearest: Rows, points: Sequence[tuple[int, Effort]], target: float, costs: Costs
) -> Filtered:
    """For some ranks of the whole pool the least width tried that finds the rows up to there, and the last of them.

    A random filter that lets pass a share of the rows puts the last rows of an answer at rank length / share. It ends
    where a scan would be much cheaper: the planner takes it there.

    Args:
        index: to be searched.
        queries: [Q, D].
        nearest: [Q, length], their exact answer without a filter.
        points: (k, effort) that reaches the target for the k nearest.
        target: ANN recall, on average. The worst of a hundred queries may stay a little below.
        costs: of a search and of a scan.
    """
    queries, nearest = queries[:_ASKED], nearest[:_ASKED]
    usual = EffortCurve(points).at(nearest.shape[1])
    deeper = _depth_that_lets_reach(index, queries, nearest, usual, target)
    depth = math.ceil(deeper * usual.depth)
    return Filtered(tuple(_widths(index, queries, nearest, Effort(usual.width, depth), target, costs)), deeper)


def _depth_that_lets_reach(index: Index, queries: Vectors, nearest: Rows, usual: Effort, target: float) -> float:
    """Times the usual depth: at a wide search only the depth loses rows, and may lose half of what is allowed."""
    if not usual.depth:
        return 1.0
    for times in _DEEPER:
        effort = Effort(_WIDE * usual.width, math.ceil(times * usual.depth))
        found = index.search(queries, nearest.shape[1], effort=effort).rows
        if _last_recall(index, queries, found, nearest).mean() >= (1 + target) / 2:
            break
    return times


def _widths(
    index: Index, queries: Vectors, nearest: Rows, usual: Effort, target: float, costs: Costs
) -> Iterator[Width]:
    length, (width, depth) = nearest.shape[1], usual
    widest = index.cells if isinstance(index, CellsIndex) else index.size
    reaches_all = 0
    for share in _PASS_RATES:
        allowed = None if share == 1 else random_rows(index.size, math.ceil(share * index.size))
        count = index.size if allowed is None else allowed.count
        if count <= _LEAST_PASSING * length:
            return
        truth = nearest if allowed is None else index.search_exact(queries, length, allowed=allowed).rows
        width = reaches_all or width  # the last rows of an answer that lies nearer needed more
        reaches_all = 0
        while True:
            found = index.search(queries, length, effort=Effort(width, depth), allowed=allowed).rows
            if not reaches_all and _good(recall_per_query(index, queries, found, truth), target):
                reaches_all = width
            if width >= widest or _good(_last_recall(index, queries, found, truth), target):
                break
            width = min(widest, math.ceil(_WIDER * width))
            if costs.of_index(Effort(width, depth)) > _TOO_DEAR * costs.of_scan(min(index.size, _MOST * count)):
                return
        yield Width(math.ceil(length / share), reaches_all or width, width)


def _last_recall(index: Index, queries: Vectors, found: Rows, truth: Rows) -> NDArray[np.float64]:
    """[Q] share of the last of the truth's rows that were found."""
    return tail_recall_per_query(index, queries, found, truth, max(1, truth.shape[1] // _LAST))


def _good(shares: NDArray[np.float64], target: float) -> bool:
    """The mean reaches the target, and the worst of a hundred queries are not far below."""
    worst = np.sort(shares)[: max(1, len(shares) // 100)]
    return bool(shares.mean() >= target and worst.mean() >= target - _WORST_BELOW)


def random_rows(size: int, count: int) -> Bitmap:
    """So many of N rows, always the same."""
    mask = np.zeros(size, dtype=np.bool_)
    mask[np.random.default_rng(0).choice(size, count, replace=False)] = True
    return Bitmap.of(mask)
