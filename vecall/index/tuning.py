"""Tuning: the cheapest search parameters that reach the target ANN recall at each k, measured on user vectors."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vecall import progress
from vecall.arrays import Rows, Vectors
from vecall.index import timing
from vecall.index.base import Index, SearchParams
from vecall.index.filtered_tuning import RESULT_LENGTH_FACTOR, tune_filtered
from vecall.index.planner import CostModel
from vecall.index.sampling import sample_bitmap
from vecall.index.search_params import FilteredSearchTable, RecallTarget, SearchParamCurve, TuningPoint
from vecall.index.sweep import SweepTask, sweep_widths

logger = logging.getLogger(__name__)

_MAX_FULL_SCAN_RATIO = 2  # latency as a multiple of a full scan's, beyond which larger ef are not tried
_MIN_CUTOFF_MS = 0.2  # lower bound of that latency: below, one late clock tick would end the sweep
_SLOWDOWN_FOR_ROBUSTNESS = 1.1  # latency that a spread for other queries may take, as a multiple of the best
# With it, queries unlike the tuning ones have about the target recall too (docs/decisions/0019). A smaller one serves
# the tuning queries alone; a larger one scans hundreds of lists for others.
_ROBUST_SPREAD = 0.4
_FAR_WIDTH_FACTOR = 8  # width of the wide search for the cost model, as a multiple of the last width tried
_MAX_FAR_WIDTH = 10_000  # of that search: the time of a graph's candidate list grows with the square of its width


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
    sweep: Callable[[SweepTask], Iterator[TuningPoint]] = sweep_widths,
    max_latency_ms: float = math.inf,
    fixed_width: int | None = None,
    tune_filters: bool = True,
    warn_if_missed: bool = True,
) -> TuningResult:
    """Find, for each k, the fastest search parameters whose ANN recall reaches the target with 95 % confidence.

    If none reaches it within the latency limit, the parameters of the highest recall within the limit are taken, or the
    first ones if none are within it.

    Args:
        index: index to be tuned; its vectors give the exact results.
        queries: [Q, D] real user vectors, Q >= 2.
        ks: ascending numbers of rows; those beyond N are left out.
        target: ANN recall to be reached.
        sweep: yields the search parameters to try for one k, see `Engine.sweep`.
        max_latency_ms: maximum median milliseconds of a search of one query.
        fixed_width: width to use instead of a tuned one; turns `tune_filters` off.
        tune_filters: whether to tune for filtered results too.
        warn_if_missed: whether to log a warning for each k at which recall or latency is missed.
    """
    size = index.vectors.size
    ks = [k for k in ks if k <= size] or [size]
    ms_per_scanned_row = timing.measure_scan_ms_per_row(index.vectors, queries)
    with progress.track("tuning index", len(ks) + 1) as advance:
        filtered_length = min(RESULT_LENGTH_FACTOR * ks[0], size)
        exact_rows = index.vectors.search_exact(queries, max(ks[-1], filtered_length)).rows
        advance(1)
        best_points, trials = [], []
        # Points beyond the latency are not chosen, and searches slower than a scan are not made.
        cutoff_ms = max(_MIN_CUTOFF_MS, min(max_latency_ms, _MAX_FULL_SCAN_RATIO * ms_per_scanned_row * size))
        for k in ks:
            points = list(sweep(SweepTask(index, queries, exact_rows[:, :k], target, fixed_width, cutoff_ms)))
            best_points.append(_select_cheapest(points, target, max_latency_ms))
            trials += points
            advance(1)
    costs = _fit_cost_model(index, queries, trials, ms_per_scanned_row)
    result = TuningResult(tuple(best_points), tuple(trials), costs, FilteredSearchTable())
    if tune_filters and fixed_width is None:
        result = _add_filtered_table(result, index, queries, exact_rows[:, :filtered_length], target)
    if warn_if_missed:
        warn_of_missed_targets(result, target, max_latency_ms)
    return result


def add_filtered_table(result: TuningResult, index: Index, queries: Vectors, target: RecallTarget) -> TuningResult:
    """Return a result of `tune` without tuning for filtered results with that, too.

    Args:
        result: the result.
        index: as for `tune`.
        queries: likewise.
        target: likewise.
    """
    length = min(RESULT_LENGTH_FACTOR * result.best_points[0].k, index.vectors.size)
    return _add_filtered_table(result, index, queries, index.vectors.search_exact(queries, length).rows, target)


def _add_filtered_table(
    result: TuningResult, index: Index, queries: Vectors, exact_rows: Rows, target: RecallTarget
) -> TuningResult:
    pairs = [(point.k, point.search_params) for point in result.best_points]
    return replace(result, filtered_table=tune_filtered(index, queries, exact_rows, pairs, target, result.costs))


def warn_of_missed_targets(result: TuningResult, target: RecallTarget, max_latency_ms: float) -> None:
    """Log a warning for each k at which recall or latency is missed."""
    for point in result.best_points:
        if not point.reaches_with_confidence(target) or point.p50_ms > max_latency_ms:
            trial_count = sum(trial.k == point.k for trial in result.trials)
            limit, remedy = "", "lower index.target_recall or index.target_worst"
            if max_latency_ms < math.inf:
                limit, remedy = f" within {max_latency_ms:g} ms", f"{remedy} or raise index.latency_ms"
            logger.warning(
                "ANN recall@%d of at least %.3f, %.3f of the worst 1 %% of queries, was not reached%s: the best of %d "
                "trials has %.4f ± %.4f, worst %.3f ± %.3f, in %.2f ms; %s",
                point.k, target.mean, target.worst, limit, trial_count, point.recall, point.recall_ci95,
                point.worst_recall, point.worst_ci95, point.p50_ms, remedy,
            )  # fmt: skip


def _select_cheapest(points: list[TuningPoint], target: RecallTarget, max_latency_ms: float) -> TuningPoint:
    """Point that reaches the target within the latency, else the one of highest recall within the latency.

    Of the points about as fast as the fastest, it is the one whose spread is the nearest to the robust one, and of
    these the fastest. If no point is within the latency, it is the first, which is the narrowest search.
    """
    within_latency = [point for point in points if point.p50_ms <= max_latency_ms] or points[:1]
    reaching = [point for point in within_latency if point.reaches_with_confidence(target)]
    if reaching:
        limit_ms = _SLOWDOWN_FOR_ROBUSTNESS * min(point.p50_ms for point in reaching)
        fast = [point for point in reaching if point.p50_ms <= limit_ms]
        return min(fast, key=lambda point: (abs(point.spread - _ROBUST_SPREAD), point.p50_ms))
    return max(within_latency, key=lambda point: (point.recall, -point.p50_ms))


def _fit_cost_model(
    index: Index, queries: Vectors, trials: Sequence[TuningPoint], ms_per_scanned_row: float
) -> CostModel:
    """Fit milliseconds = fixed + a width + b depth to the trials by least squares with coefficients >= 0."""
    last = trials[-1]
    # Filtered searches are wide: without a wide point, noise of the narrow ones would set their cost.
    width = min(_FAR_WIDTH_FACTOR * last.width, max(_MAX_FAR_WIDTH, last.width))
    wide = SearchParams(width, last.rerank_depth)
    allowed = sample_bitmap(index.vectors.size, math.ceil(index.vectors.size / 10))
    wide_ms = timing.measure_median_ms(
        index, queries[: timing.TIMED_QUERIES // 3], min(last.k, allowed.count), wide, allowed
    )
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
