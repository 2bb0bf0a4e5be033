"""Tuning of the search parameters for filtered results, measured under random filters."""

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.index.ann_recall import compute_worst_lower_bound, recall_per_query, tail_recall_per_query
from vecall.index.base import Index, SearchParams, SearchRequest
from vecall.index.planner import CostModel
from vecall.index.sampling import sample_bitmap
from vecall.index.search_params import FilteredSearchTable, RecallTarget, SearchParamCurve, WidthsAtRank
from vecall.index.stored_vectors import StoredVectors

# Rows per result, as a multiple of the smallest k, so that results reach past as many rows as are usually excluded.
RESULT_LENGTH_FACTOR = 5
_TAIL_DIVISOR = 20  # the tail of a result is its last 1/20
_SELECTIVITIES = (1, 0.3, 0.1, 0.05, 0.03, 0.01)  # shares of the rows that the filters allow
_MIN_PASSING_FACTOR = 2  # allowed rows as a multiple of the result's length; fewer are scanned by the planner anyway
_MAX_QUERIES = 100
_FILTER_DIVISOR = 10  # the spread is measured under a filter that allows 1/10 of the rows
_EXCLUDED_SHARE = 0.8  # share of a result that is excluded where the spread for exclusions is measured
SPREADS = (
    *(0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0),
    *(1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0),
)
_WIDTH_GROWTH = 1.2  # from one width to the next
_MAX_SCAN_COST_RATIO = 1.2  # cost of a search as a multiple of the scan's, above which no width is measured
_MIN_RECALL_GAIN = 0.002  # below, a larger spread is not worth it
_MAX_LENGTH_FACTOR = 5  # longest result that reaches the same rank, as a multiple of the measured length
_EXTRA_DEPTH_FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0)  # multiples of the unfiltered rerank depth
_MIN_DEPTH_FACTOR = (
    2.0  # with a spread: rows far from a query, which a filter against it leaves, differ little in score
)
_DEPTH_TRIAL_WIDTH_FACTOR = 16  # width at which the depths are tried, as a multiple of the unfiltered width


def tune_filtered(
    index: Index,
    queries: Vectors,
    exact_rows: Rows,
    points: Sequence[tuple[int, SearchParams]],
    target: RecallTarget,
    costs: CostModel,
) -> FilteredSearchTable:
    """Find, for several ranks, the smallest widths tried that find all rows up to the rank, and the last of them.

    A random filter that allows a share of the rows moves the end of a result of `length` rows to rank length / share.
    Tuning stops at the share from which a scan is clearly cheaper, because the planner scans there.

    Args:
        index: index to be searched.
        queries: [Q, D]; the first 100 are used.
        exact_rows: [Q, length] exact results of the queries without a filter.
        points: (k, search parameters) that reach the target for the k nearest rows.
        target: ANN recall to be reached.
        costs: cost of a search and of a scan.
    """
    queries, exact_rows = queries[:_MAX_QUERIES], exact_rows[:_MAX_QUERIES]
    unfiltered_params = SearchParamCurve(points).look_up(exact_rows.shape[1])
    depth_factor = _find_depth_factor(index, queries, exact_rows, unfiltered_params, target.mean)
    if unfiltered_params.spread:
        depth_factor = max(depth_factor, _MIN_DEPTH_FACTOR)
    start_params = unfiltered_params._replace(rerank_depth=math.ceil(depth_factor * unfiltered_params.rerank_depth))
    if start_params.spread:
        spread = _find_spread(index, queries, exact_rows.shape[1], start_params, target, costs)
        return FilteredSearchTable((), depth_factor, spread)
    widths = _measure_widths(index, queries, exact_rows, start_params, target, costs)
    return FilteredSearchTable(tuple(widths), depth_factor)


def _find_spread(
    index: Index, queries: Vectors, length: int, start_params: SearchParams, target: RecallTarget, costs: CostModel
) -> float:
    """The spread after the smallest one, at least that of `start_params`, that loses at most half of the allowed loss.

    Measured under a selective random filter, for a whole result and for the rest of one of which the first rows are
    excluded. Where a filter depends on the vectors, the lists hold less of the result than expected: that is what the
    other half is for, and the step beyond for many more excluded rows than are measured. Where none loses so little, as
    where the depth is what loses rows, it is the smallest one beyond which little more is found.
    """
    target = RecallTarget((1 + target.mean) / 2, target.worst)
    size = index.vectors.size
    allowed = sample_bitmap(size, max(min(size, _MIN_PASSING_FACTOR * length), size // _FILTER_DIVISOR))
    profile = index.profile_filter(allowed)
    exact_rows = index.vectors.search_exact(queries, length, allowed=allowed).rows
    # Of all rows, although the filter leaves a tenth: the spread is for filters that allow more, too.
    max_ms, mean_recalls = costs.estimate_scan_ms(size), {}

    def search(params: SearchParams, n_excluded: int) -> tuple[NDArray[np.float64], float]:
        """Return [Q] recalls, and the mean of the estimated milliseconds."""
        found_rows, index_ms = np.full_like(exact_rows, -1), []
        for b, query in enumerate(queries):
            adapted = index.adapt(SearchRequest(query, length, n_excluded, allowed.count, profile), params)
            if adapted is not None:
                index_ms.append(costs.estimate_index_ms(adapted.search_params))
                hits = index.search(
                    query[None], length, search_params=adapted.search_params, allowed=allowed, lists=adapted.lists
                )
                found_rows[b] = hits.rows[0]
        recalls = tail_recall_per_query(index.vectors, queries, found_rows, exact_rows, length - n_excluded)
        return recalls, float(np.mean(index_ms or [0.0]))

    for spread in (spread for spread in SPREADS if spread >= start_params.spread):
        params = start_params._replace(spread=spread)
        results = [search(params, n_excluded) for n_excluded in (0, int(_EXCLUDED_SHARE * length))]
        if all(_meets_target(recalls, target) for recalls, _ in results):
            return min((larger for larger in SPREADS if larger > spread), default=spread)
        mean_recalls[spread] = min(float(recalls.mean()) for recalls, _ in results)
        if max(ms for _, ms in results) > max_ms:
            break
    best = max(mean_recalls.values())
    return min(spread for spread, recall in mean_recalls.items() if recall >= best - _MIN_RECALL_GAIN)


def _find_depth_factor(
    index: Index, queries: Vectors, exact_rows: Rows, unfiltered_params: SearchParams, target_recall: float
) -> float:
    """Smallest factor on the rerank depth with which the depth alone loses at most half of the allowed recall loss.

    The search is so wide that nothing but the depth loses rows.
    """
    if not unfiltered_params.rerank_depth:
        return 1.0
    width = _DEPTH_TRIAL_WIDTH_FACTOR * unfiltered_params.width
    for factor in _EXTRA_DEPTH_FACTORS:
        params = SearchParams(width, math.ceil(factor * unfiltered_params.rerank_depth))
        found_rows = index.search(queries, exact_rows.shape[1], search_params=params).rows
        if _compute_tail_recalls(index.vectors, queries, found_rows, exact_rows).mean() >= (1 + target_recall) / 2:
            break
    return factor


def _measure_widths(
    index: Index,
    queries: Vectors,
    unfiltered_exact_rows: Rows,
    start_params: SearchParams,
    target: RecallTarget,
    costs: CostModel,
) -> Iterator[WidthsAtRank]:
    """Yield the widths for ascending ranks; the rerank depth stays that of `start_params`."""
    length, (width, depth, _) = unfiltered_exact_rows.shape[1], start_params
    vectors, size, max_width = index.vectors, index.vectors.size, index.max_width
    width_for_all = 0  # 0: not found yet
    for selectivity in _SELECTIVITIES:
        allowed = None if selectivity == 1 else sample_bitmap(size, math.ceil(selectivity * size))
        allowed_count = size if allowed is None else allowed.count
        if allowed_count <= _MIN_PASSING_FACTOR * length:
            return
        if allowed is None:
            exact_rows = unfiltered_exact_rows
        else:
            exact_rows = vectors.search_exact(queries, length, allowed=allowed).rows
        width = width_for_all or width  # not the tail's width, which may exceed what this rank needs for all rows
        width_for_all = 0
        while True:
            start = time.perf_counter()
            found = index.search(queries, length, search_params=SearchParams(width, depth), allowed=allowed).rows
            # A server is asked for as many more rows as the filter takes away, which the costs by width do not show.
            measured_ms = 1e3 * (time.perf_counter() - start) / len(queries)
            if not width_for_all and _meets_target(recall_per_query(vectors, queries, found, exact_rows), target):
                width_for_all = width
            if width >= max_width or _meets_target(_compute_tail_recalls(vectors, queries, found, exact_rows), target):
                break
            width = min(max_width, math.ceil(_WIDTH_GROWTH * width))
            scan_ms = costs.estimate_scan_ms(min(size, _MAX_LENGTH_FACTOR * allowed_count))
            if max(measured_ms, costs.estimate_index_ms(SearchParams(width, depth))) > _MAX_SCAN_COST_RATIO * scan_ms:
                return
        yield WidthsAtRank(math.ceil(length / selectivity), width_for_all or width, width)


def _compute_tail_recalls(
    vectors: StoredVectors, queries: Vectors, found_rows: Rows, exact_rows: Rows
) -> NDArray[np.float64]:
    """[Q] recall of the tail of each exact result."""
    return tail_recall_per_query(vectors, queries, found_rows, exact_rows, max(1, exact_rows.shape[1] // _TAIL_DIVISOR))


def _meets_target(recalls: NDArray[np.float64], target: RecallTarget) -> bool:
    """Whether the mean, and the lower confidence bound of the worst 1 % of the queries, reach the target."""
    return target.is_reached(float(recalls.mean()), compute_worst_lower_bound(recalls))
