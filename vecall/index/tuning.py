"""Tuning: the cheapest search parameters that reach the target ANN recall at each k, measured on user vectors."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Rows, Vectors
from vecall.index.ann_recall import compute_ci95_half_width, mean_of_worst, recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.filtered_tuning import COVERAGES, RESULT_LENGTH_FACTOR, tune_filtered
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.sampling import sample_bitmap
from vecall.index.search_params import FilteredSearchTable, RecallTarget, SearchParamCurve, TuningPoint

logger = logging.getLogger(__name__)

_EF_GROWTH = 1.25  # from one ef to the next
_RERANK_FACTORS = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)  # rerank depths tried, as multiples of k
_MAX_SLOWDOWN = 1.1  # latency as a multiple of the best so far; beyond it a larger coverage can only be slower
_TIMED_QUERIES = 60  # queries of which a median latency is taken
_MAX_FULL_SCAN_RATIO = 4  # latency as a multiple of a full scan's, beyond which larger ef are not tried
_MIN_CUTOFF_MS = 0.2  # lower bound of that latency: below, one late clock tick would end the sweep
_PLATEAU_STEPS = 5  # steps of ef that must together gain _MIN_RECALL_GAIN: else larger ef will gain nothing either
_MIN_RECALL_GAIN = 0.002
_FAR_WIDTH_FACTOR = 8  # width of the wide search for the cost model, as a multiple of the last width tried
_SCAN_SAMPLE_ROWS = 100_000  # rows of a timed scan; fewer would fit into the CPU cache


@dataclass(frozen=True)
class TuningResult:
    """Search parameters found for one index, and the measurements behind them.

    Attributes:
        best_points: for each k, ascending, the fastest point within the latency limit that reaches the target, else the
            one of highest recall within the limit; the first point if none is within it.
        trials: all measured points.
        costs: cost of a search by its parameters, and of a scan.
        filtered_table: widths and depth for results that are not the nearest rows.
    """

    best_points: tuple[TuningPoint, ...]
    trials: tuple[TuningPoint, ...]
    costs: CostModel
    filtered_table: FilteredSearchTable

    @property
    def curve(self) -> SearchParamCurve:
        """Search parameters by k and rank."""
        return SearchParamCurve([(point.k, point.search_params) for point in self.best_points], self.filtered_table)


def tune(
    index: Index,
    queries: Vectors,
    ks: Sequence[int],
    target: RecallTarget,
    *,
    max_latency_ms: float = math.inf,
    fixed_width: int | None = None,
    tune_filters: bool = True,
    warn_if_missed: bool = True,
) -> TuningResult:
    """Find, for each k, the fastest search parameters whose ANN recall reaches the target with 95 % confidence.

    If none reaches it within the latency limit, the parameters of the highest recall within the limit are taken, or the
    first ones if none are within it.

    Args:
        index: index to be tuned; its `search_exact` gives the exact results.
        queries: [Q, D] real user vectors, Q >= 2.
        ks: ascending numbers of rows; those beyond N are left out.
        target: ANN recall to be reached.
        max_latency_ms: maximum median milliseconds of a search of one query.
        fixed_width: width to use instead of a tuned one; turns `tune_filters` off.
        tune_filters: whether to tune for filtered results too.
        warn_if_missed: whether to log a warning for each k at which recall or latency is missed.
    """
    ks = [k for k in ks if k <= index.size] or [index.size]
    ms_per_scanned_row = measure_scan_ms_per_row(index, queries)
    with progress.track("tuning index", len(ks) + 1) as advance:
        filtered_length = min(RESULT_LENGTH_FACTOR * ks[0], index.size)
        exact_rows = index.search_exact(queries, max(ks[-1], filtered_length)).rows
        advance(1)
        best_points, trials = [], []
        cutoff_ms = max(_MIN_CUTOFF_MS, _MAX_FULL_SCAN_RATIO * ms_per_scanned_row * index.size)
        for k in ks:
            points = list(_sweep_widths(index, queries, exact_rows[:, :k], target, fixed_width, cutoff_ms))
            best_points.append(_select_cheapest(points, target, max_latency_ms))
            trials += points
            advance(1)
    if warn_if_missed:
        _warn_of_missed_targets(best_points, trials, target, max_latency_ms)
    costs = _fit_cost_model(index, queries, trials, ms_per_scanned_row)
    filtered_table = FilteredSearchTable()
    if tune_filters and fixed_width is None:
        pairs = [(point.k, point.search_params) for point in best_points]
        filtered_table = tune_filtered(index, queries, exact_rows[:, :filtered_length], pairs, target, costs)
    return TuningResult(tuple(best_points), tuple(trials), costs, filtered_table)


def _warn_of_missed_targets(
    best_points: list[TuningPoint], trials: list[TuningPoint], target: RecallTarget, max_latency_ms: float
) -> None:
    for point in best_points:
        if not point.reaches_with_confidence(target) or point.p50_ms > max_latency_ms:
            trial_count = sum(trial.k == point.k for trial in trials)
            limit, remedy = "", "lower index.target_recall or index.target_worst"
            if max_latency_ms < math.inf:
                limit, remedy = f" within {max_latency_ms:g} ms", f"{remedy} or raise index.latency_ms"
            logger.warning(
                "ANN recall@%d of at least %.3f, %.3f of the worst 1 %% of queries, was not reached%s: the best of %d "
                "trials has %.4f ± %.4f, worst %.3f, in %.2f ms; %s",
                point.k, target.mean, target.worst, limit, trial_count, point.recall, point.recall_ci95,
                point.worst_recall, point.p50_ms, remedy,
            )  # fmt: skip


def _sweep_widths(
    index: Index, queries: Vectors, exact_rows: Rows, target: RecallTarget, fixed_width: int | None, cutoff_ms: float
) -> Iterator[TuningPoint]:
    """Yield points of growing width at k = `exact_rows.shape[1]`; a fixed width yields one point."""
    if not isinstance(index, IvfPqIndex):
        return _sweep_ef(index, queries, exact_rows, target, fixed_width, cutoff_ms)
    if fixed_width is None:
        return _sweep_coverage(index, queries, exact_rows, target)
    fixed = SearchParams(min(index.nlist, fixed_width))
    return iter([_measure_at_smallest_depth(index, queries, exact_rows, target, fixed)])


def _sweep_ef(
    index: Index, queries: Vectors, exact_rows: Rows, target: RecallTarget, fixed_width: int | None, cutoff_ms: float
) -> Iterator[TuningPoint]:
    """Yield points of growing ef, from k to the first that reaches the target.

    The sweep ends earlier if recall stops growing, if a search takes longer than `cutoff_ms`, or before ef covers all
    rows, where the search would be a scan.
    """
    k = exact_rows.shape[1]
    ef, recalls = float(k if fixed_width is None else fixed_width), []
    while True:
        params = SearchParams(min(index.size, math.ceil(ef)))
        found_rows = index.search(queries, k, search_params=params).rows
        point = _build_timed_point(index, queries, params, recall_per_query(index, queries, found_rows, exact_rows), k)
        yield point
        recalls.append(point.recall)
        is_plateau = len(recalls) > _PLATEAU_STEPS and recalls[-1] - recalls[-1 - _PLATEAU_STEPS] < _MIN_RECALL_GAIN
        if point.reaches_with_confidence(target) or fixed_width is not None or is_plateau or point.p50_ms > cutoff_ms:
            return
        ef = params.width * _EF_GROWTH
        if ef >= index.size:
            return


def _sweep_coverage(
    index: IvfPqIndex, queries: Vectors, exact_rows: Rows, target: RecallTarget
) -> Iterator[TuningPoint]:
    """Yield points of growing coverage, each with the smallest sufficient rerank depth.

    A larger coverage may need less depth, so the sweep goes on beyond the target, until a search is slower than the
    best, or scans every list.
    """
    best_ms = math.inf
    for coverage in COVERAGES:
        point = _measure_at_smallest_depth(index, queries, exact_rows, target, SearchParams(1, coverage=coverage))
        yield point
        if point.p50_ms > _MAX_SLOWDOWN * best_ms or point.width >= index.nlist:
            return
        if point.reaches_with_confidence(target):
            best_ms = min(best_ms, point.p50_ms)


def _measure_at_smallest_depth(
    index: IvfPqIndex, queries: Vectors, exact_rows: Rows, target: RecallTarget, search_params: SearchParams
) -> TuningPoint:
    """Measure lists to scan with the smallest rerank depth that reaches the target, else with the largest."""
    k = exact_rows.shape[1]
    max_depth = min(index.size, math.ceil(_RERANK_FACTORS[-1] * k))
    candidates = index.search_candidates(queries, k, search_params._replace(rerank_depth=max_depth))
    for depth in sorted({min(max_depth, math.ceil(factor * k)) for factor in _RERANK_FACTORS}):
        # Exact scores would rank the candidates right, so the recall of a search is that of its candidates.
        recalls = recall_per_query(index, queries, candidates[:, :depth], exact_rows)
        lower_bound = float(recalls.mean()) - compute_ci95_half_width(recalls)
        if lower_bound >= target.mean and mean_of_worst(recalls) >= target.worst:
            break
    if search_params.coverage:
        search_params = search_params._replace(width=index.compute_median_nprobe(queries, k, search_params.coverage))
    return _build_timed_point(index, queries, search_params._replace(rerank_depth=depth), recalls, k)


def _build_timed_point(
    index: Index, queries: Vectors, search_params: SearchParams, recalls: NDArray[np.float64], k: int
) -> TuningPoint:
    """Build the point of measured recalls [Q]; measures the latency."""
    return TuningPoint(
        k,
        search_params.width,
        search_params.rerank_depth,
        recall=float(recalls.mean()),
        recall_ci95=compute_ci95_half_width(recalls),
        p50_ms=_measure_median_ms(index, queries, k, search_params),
        worst_recall=mean_of_worst(recalls),
        coverage=search_params.coverage,
    )


def _measure_median_ms(
    index: Index, queries: Vectors, k: int, search_params: SearchParams, allowed: Bitmap | None = None
) -> float:
    """Median milliseconds of a search of one query."""
    seconds = []
    for query in queries[:_TIMED_QUERIES]:
        start = time.perf_counter()
        index.search(query[None], k, search_params=search_params, allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(seconds)), 4)


def _select_cheapest(points: list[TuningPoint], target: RecallTarget, max_latency_ms: float) -> TuningPoint:
    """Fastest point that reaches the target within the latency, else the one of highest recall within the latency.

    If no point is within the latency, the first, which is the narrowest search.
    """
    within_latency = [point for point in points if point.p50_ms <= max_latency_ms] or points[:1]
    reaching = [point for point in within_latency if point.reaches_with_confidence(target)]
    if reaching:
        return min(reaching, key=lambda point: point.p50_ms)
    return max(within_latency, key=lambda point: (point.recall, -point.p50_ms))


def _fit_cost_model(
    index: Index, queries: Vectors, trials: Sequence[TuningPoint], ms_per_scanned_row: float
) -> CostModel:
    """Fit milliseconds = fixed + a width + b depth to the trials by least squares with coefficients >= 0."""
    last = trials[-1]
    # Filtered searches are wide: without a wide point, noise of the narrow ones would set their cost.
    wide = SearchParams(_FAR_WIDTH_FACTOR * last.width, last.rerank_depth)
    allowed = sample_bitmap(index.size, math.ceil(index.size / 10))
    wide_ms = _measure_median_ms(index, queries[: _TIMED_QUERIES // 3], min(last.k, allowed.count), wide, allowed)
    features = np.array([[1.0, *params[:2]] for params in (*(point.search_params for point in trials), wide)])
    ms = np.array([point.p50_ms for point in trials] + [wide_ms])
    columns = [0, 1, *([2] if np.ptp(features[:, 2]) > 0 else [])]
    weights = np.linalg.lstsq(features[:, columns], ms, rcond=None)[0]
    while weights.min() < 0:  # noise: fit again without the columns of weight <= 0
        columns = [column for column, weight in zip(columns, weights, strict=True) if weight > 0]
        weights = np.linalg.lstsq(features[:, columns], ms, rcond=None)[0]
    weight_of = dict(zip(columns, weights.tolist(), strict=True))
    fixed_ms, ms_per_width, ms_per_reranked_row = (weight_of.get(column, 0.0) for column in range(3))
    return CostModel(fixed_ms, ms_per_width, ms_per_reranked_row, ms_per_scanned_row)


def measure_scan_ms_per_row(index: Index, queries: Vectors) -> float:
    """Median milliseconds per row of an exact scan of random rows."""
    allowed = sample_bitmap(index.size, min(index.size, _SCAN_SAMPLE_ROWS))
    seconds = []
    for query in queries[: _TIMED_QUERIES // 3]:
        start = time.perf_counter()
        index.search_exact(query[None], min(100, allowed.count), allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds)) / allowed.count
