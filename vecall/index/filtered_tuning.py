"""How far and how deep to look where the nearest are not the answer: measured under random filters."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.index.ann_recall import recall_per_query, tail_recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import FilteredSearchParams, SearchParamCurve, WidthAtRank

ANSWER_LENGTH_FACTOR = 5  # times the least k: answers here, which reach past as many as a usual exclusion takes
_TAIL_DIVISOR = 20  # one in so many rows of an answer, the last, count
_SELECTIVITIES = (1, 0.3, 0.1, 0.05, 0.03, 0.01)
_MIN_PASSING_FACTOR = 2  # times the length; of fewer the planner scans
_MAX_QUERIES = 100  # queries
_WORST_QUERY_TOLERANCE = 0.1  # the target
_WIDTH_GROWTH = 1.2  # from one width to the next
_MAX_SCAN_COST_RATIO, _MAX_LENGTH_FACTOR = (
    1.2,
    5,
)  # times the cost of a scan; times the length, the longest answer of that rank
_EXTRA_DEPTH_FACTORS, _DEPTH_TRIAL_WIDTH_FACTOR = (
    (1.0, 1.25, 1.5, 2.0, 3.0),
    16,
)  # times the usual depth; the width to try them at, times the usual one


def tune_filtered(
    index: Index,
    queries: Vectors,
    exact_rows: Rows,
    points: Sequence[tuple[int, SearchParams]],
    target_recall: float,
    costs: CostModel,
) -> FilteredSearchParams:
    """For some ranks of the whole pool the least width tried that finds the rows up to there, and the last of them.

    A random filter that lets pass a share of the rows puts the last rows of an answer at rank length / share. It ends
    where a scan would be much cheaper: the planner takes it there.

    Args:
        index: to be searched.
        queries: [Q, D].
        exact_rows: [Q, length], their exact answer without a filter.
        points: (k, effort) that reaches the target for the k nearest.
        target_recall: ANN recall, on average. The worst of a hundred queries may stay a little below.
        costs: of a search and of a scan.
    """
    queries, exact_rows = queries[:_MAX_QUERIES], exact_rows[:_MAX_QUERIES]
    usual = SearchParamCurve(points).look_up(exact_rows.shape[1])
    deeper = _find_depth_factor(index, queries, exact_rows, usual, target_recall)
    depth = math.ceil(deeper * usual.rerank_depth)
    return FilteredSearchParams(
        tuple(_measure_widths(index, queries, exact_rows, SearchParams(usual.width, depth), target_recall, costs)),
        deeper,
    )


def _find_depth_factor(
    index: Index, queries: Vectors, exact_rows: Rows, unfiltered_params: SearchParams, target_recall: float
) -> float:
    """Times the usual depth: at a wide search only the depth loses rows, and may lose half of what is allowed."""
    if not unfiltered_params.rerank_depth:
        return 1.0
    for times in _EXTRA_DEPTH_FACTORS:
        effort = SearchParams(
            _DEPTH_TRIAL_WIDTH_FACTOR * unfiltered_params.width, math.ceil(times * unfiltered_params.rerank_depth)
        )
        found = index.search(queries, exact_rows.shape[1], search_params=effort).rows
        if _compute_tail_recalls(index, queries, found, exact_rows).mean() >= (1 + target_recall) / 2:
            break
    return times


def _measure_widths(
    index: Index,
    queries: Vectors,
    exact_rows: Rows,
    unfiltered_params: SearchParams,
    target_recall: float,
    costs: CostModel,
) -> Iterator[WidthAtRank]:
    length, (width, depth) = exact_rows.shape[1], unfiltered_params
    widest = index.nlist if isinstance(index, IvfPqIndex) else index.size
    reaches_all = 0
    for share in _SELECTIVITIES:
        allowed = None if share == 1 else sample_bitmap(index.size, math.ceil(share * index.size))
        count = index.size if allowed is None else allowed.count
        if count <= _MIN_PASSING_FACTOR * length:
            return
        truth = exact_rows if allowed is None else index.search_exact(queries, length, allowed=allowed).rows
        width = reaches_all or width  # the last rows of an answer that lies nearer needed more
        reaches_all = 0
        while True:
            found = index.search(queries, length, search_params=SearchParams(width, depth), allowed=allowed).rows
            if not reaches_all and _meets_target(recall_per_query(index, queries, found, truth), target_recall):
                reaches_all = width
            if width >= widest or _meets_target(_compute_tail_recalls(index, queries, found, truth), target_recall):
                break
            width = min(widest, math.ceil(_WIDTH_GROWTH * width))
            if costs.estimate_index_ms(SearchParams(width, depth)) > _MAX_SCAN_COST_RATIO * costs.estimate_scan_ms(
                min(index.size, _MAX_LENGTH_FACTOR * count)
            ):
                return
        yield WidthAtRank(math.ceil(length / share), reaches_all or width, width)


def _compute_tail_recalls(index: Index, queries: Vectors, found_rows: Rows, exact_rows: Rows) -> NDArray[np.float64]:
    """[Q] share of the last of the truth's rows that were found."""
    return tail_recall_per_query(index, queries, found_rows, exact_rows, max(1, exact_rows.shape[1] // _TAIL_DIVISOR))


def _meets_target(recalls: NDArray[np.float64], target_recall: float) -> bool:
    """The mean reaches the target, and the worst of a hundred queries are not far below."""
    worst = np.sort(recalls)[: max(1, len(recalls) // 100)]
    return bool(recalls.mean() >= target_recall and worst.mean() >= target_recall - _WORST_QUERY_TOLERANCE)


def sample_bitmap(size: int, count: int) -> Bitmap:
    """So many of N rows, always the same."""
    mask = np.zeros(size, dtype=np.bool_)
    mask[np.random.default_rng(0).choice(size, count, replace=False)] = True
    return Bitmap.from_mask(mask)
