"""Finding the least effort that reaches the wanted ANN recall, for each k, on real user vectors."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Rows, Vectors
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.filtered_tuning import ANSWER_LENGTH_FACTOR, sample_bitmap, tune_filtered
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import FilteredSearchParams, SearchParamCurve, TuningPoint

logger = logging.getLogger(__name__)

_EF_GROWTH = 1.25  # from one ef to the next
_MIN_NPROBE, _NPROBE_GROWTH = 4, 2  # tried at least; from one number to the next
_RERANK_FACTORS = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)  # times k
_MAX_SLOWDOWN = 1.1  # times the best latency: more cells can only cost more
_TIMED_QUERIES = 60  # queries that a latency is taken from
_MAX_FULL_SCAN_RATIO = 4  # times a scan of everything, beyond which a search is none
_MIN_CUTOFF_MS = 0.2  # however quick a scan is: below, one late clock tick would end the ladder
_PLATEAU_STEPS, _MIN_RECALL_GAIN = (
    5,
    0.002,
)  # so many efforts more that brought less than so much more recall: more will bring no more
_FAR_WIDTH_FACTOR = 8  # times the last width
_SCAN_SAMPLE_ROWS = 100_000  # rows, to time a scan: fewer would lie in the cache


@dataclass(frozen=True)
class TuningResult:
    """What was found for one index.

    Attributes:
        best_points: for each k, ascending, the least effort that reaches the target, else the best that was tried.
        trials: everything that was measured on the way.
        costs: of a search by its effort, and of a scan.
        filtered_params: where the answer is not the nearest.
    """

    best_points: tuple[TuningPoint, ...]
    trials: tuple[TuningPoint, ...]
    costs: CostModel
    filtered_params: FilteredSearchParams

    @property
    def curve(self) -> SearchParamCurve:
        """The effort that was found, by k."""
        return SearchParamCurve([(point.k, point.search_params) for point in self.best_points], self.filtered_params)


def tune(
    index: Index,
    queries: Vectors,
    ks: Sequence[int],
    target_recall: float,
    *,
    max_latency_ms: float = math.inf,
    fixed_width: int | None = None,
    is_trial: bool = False,
) -> TuningResult:
    """For each k the least effort whose ANN recall reaches the target with 95 % confidence.

    Where none does within the latency, the best that was tried stands for it, and a warning says so.

    Args:
        index: to be searched; `search_exact` of it is the truth.
        queries: [Q, D] real user vectors, at least 2.
        ks: ascending; those beyond N are left out.
        target_recall: ANN recall in 0 .. 1.
        max_latency_ms: what the median search of one query may take.
        fixed_width: given, it is not searched for, nor for filters.
        is_trial: a missed target is no news, and filters are not tried: it is only to compare structures.
    """
    asked = [k for k in ks if k <= index.size] or [index.size]
    scan_ms = measure_scan_ms_per_row(index, queries)  # of a row
    with progress.track("tuning index", len(asked) + 1) as advance:
        length = min(ANSWER_LENGTH_FACTOR * asked[0], index.size)
        truth = index.search_exact(queries, max(asked[-1], length)).rows
        advance(1)
        chosen, tried = [], []
        dear_ms = max(_MIN_CUTOFF_MS, _MAX_FULL_SCAN_RATIO * scan_ms * index.size)
        for k in asked:
            measured = list(_sweep_widths(index, queries, truth[:, :k], target_recall, fixed_width, dear_ms))
            chosen.append(_select_cheapest(measured, target_recall, max_latency_ms))
            tried += measured
            advance(1)
    for point in chosen:
        if not is_trial and (not _reaches_target(point, target_recall) or point.p50_ms > max_latency_ms):
            logger.warning(
                "ANN recall@%d of at least %.3f was not reached within %g ms: %.4f ± %.4f in %.2f ms is the best of %d "
                "efforts tried", point.k, target_recall, max_latency_ms, point.recall, point.recall_ci95, point.p50_ms, len(tried),
            )  # fmt: skip
    costs = _fit_cost_model(index, queries, tried, scan_ms)
    if is_trial or fixed_width is not None:
        return TuningResult(tuple(chosen), tuple(tried), costs, FilteredSearchParams())
    filtered = tune_filtered(
        index, queries, truth[:, :length], [(one.k, one.search_params) for one in chosen], target_recall, costs
    )
    return TuningResult(tuple(chosen), tuple(tried), costs, filtered)


def _sweep_widths(
    index: Index, queries: Vectors, exact_rows: Rows, target_recall: float, fixed_width: int | None, cutoff_ms: float
) -> Iterator[TuningPoint]:
    """Ever harder searches, up to the first that reaches the target, or looks at everything, or is not worth it."""
    if isinstance(index, IvfPqIndex):
        yield from _sweep_nprobe(index, queries, exact_rows, target_recall, fixed_width)
        return
    k = exact_rows.shape[1]
    ef, recalls = float(k if fixed_width is None else fixed_width), []
    while True:
        effort = SearchParams(min(index.size, math.ceil(ef)))
        found = index.search(queries, k, search_params=effort).rows
        point = _measure_point(index, queries, effort, recall_per_query(index, queries, found, exact_rows), k)
        yield point
        recalls.append(point.recall)
        in_vain = len(recalls) > _PLATEAU_STEPS and recalls[-1] - recalls[-1 - _PLATEAU_STEPS] < _MIN_RECALL_GAIN
        if _reaches_target(point, target_recall) or fixed_width is not None or in_vain or point.p50_ms > cutoff_ms:
            return
        ef = effort.width * _EF_GROWTH
        if ef >= index.size:  # the graph would be scanned, and answer right by another name
            return


def _sweep_nprobe(
    index: IvfPqIndex, queries: Vectors, exact_rows: Rows, target_recall: float, fixed_width: int | None
) -> Iterator[TuningPoint]:
    """More and more cells, each with the least depth that reaches the target; ends where more cells cost more."""
    probes = max(_MIN_NPROBE, math.isqrt(index.nlist) // 8) if fixed_width is None else fixed_width
    missed, best = 0, math.inf
    while True:
        point = _measure_nprobe(index, queries, exact_rows, target_recall, min(index.nlist, probes))
        yield point
        if point.width >= index.nlist or fixed_width is not None or point.p50_ms > _MAX_SLOWDOWN * best:
            return
        if _reaches_target(point, target_recall):
            between = math.isqrt(missed * point.width)
            if missed < between < point.width and best == math.inf:
                yield _measure_nprobe(index, queries, exact_rows, target_recall, between)
            best = min(best, point.p50_ms)
        else:
            missed = point.width
        probes = point.width * _NPROBE_GROWTH


def _measure_nprobe(
    index: IvfPqIndex, queries: Vectors, exact_rows: Rows, target_recall: float, nprobe: int
) -> TuningPoint:
    """So many cells with the least depth that reaches the target, or with the greatest."""
    k = exact_rows.shape[1]
    deepest = SearchParams(nprobe, min(index.size, math.ceil(_RERANK_FACTORS[-1] * k)))
    found = index.search_candidates(queries, deepest)
    for depth in sorted({min(deepest.rerank_depth, math.ceil(times * k)) for times in _RERANK_FACTORS}):
        # The exact scores pick the truth out of whatever was found of it.
        shares = recall_per_query(index, queries, found[:, :depth], exact_rows)
        if _compute_ci95_lower_bound(shares) >= target_recall or depth == deepest.rerank_depth:
            break
    return _measure_point(index, queries, SearchParams(nprobe, depth), shares, k)


def _measure_point(
    index: Index, queries: Vectors, search_params: SearchParams, recalls: NDArray[np.float64], k: int
) -> TuningPoint:
    p50_ms = _measure_median_ms(index, queries, k, search_params)
    return TuningPoint(
        k,
        search_params.width,
        search_params.rerank_depth,
        float(recalls.mean()),
        _compute_ci95_half_width(recalls),
        p50_ms,
    )


def _measure_median_ms(
    index: Index, queries: Vectors, k: int, search_params: SearchParams, allowed: Bitmap | None = None
) -> float:
    seconds = []
    for query in queries[:_TIMED_QUERIES]:
        start = time.perf_counter()
        index.search(query[None], k, search_params=search_params, allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(seconds)), 4)


def _compute_ci95_half_width(recalls: NDArray[np.float64]) -> float:
    return 1.96 * float(recalls.std(ddof=1)) / math.sqrt(len(recalls))


def _compute_ci95_lower_bound(recalls: NDArray[np.float64]) -> float:
    return float(recalls.mean()) - _compute_ci95_half_width(recalls)


def _reaches_target(point: TuningPoint, target_recall: float) -> bool:
    return point.recall - point.recall_ci95 >= target_recall


def _select_cheapest(points: list[TuningPoint], target_recall: float, max_latency_ms: float) -> TuningPoint:
    quick = [point for point in points if point.p50_ms <= max_latency_ms] or points[:1]
    enough = [point for point in quick if _reaches_target(point, target_recall)]
    if enough:
        return min(enough, key=lambda point: point.p50_ms)
    return max(quick, key=lambda point: (point.recall, -point.p50_ms))


def _fit_cost_model(
    index: Index, queries: Vectors, trials: Sequence[TuningPoint], ms_per_scanned_row: float
) -> CostModel:
    """Milliseconds by effort, as the measured points say (least squares), and of a scanned row."""
    last = trials[-1]
    far = SearchParams(
        _FAR_WIDTH_FACTOR * last.width, last.rerank_depth
    )  # wide searches are filtered ones, and chance must not set their price
    allowed = sample_bitmap(index.size, math.ceil(index.size / 10))
    far_ms = _measure_median_ms(index, queries[: _TIMED_QUERIES // 3], min(last.k, allowed.count), far, allowed)
    efforts = np.array([[1.0, *point.search_params] for point in trials] + [[1.0, *far]])
    spent = np.array([point.p50_ms for point in trials] + [far_ms])
    free = [0, 1, *([2] if np.ptp(efforts[:, 2]) > 0 else [])]
    weights = np.linalg.lstsq(efforts[:, free], spent, rcond=None)[0]
    while weights.min() < 0:  # chance; what remains must explain it
        free = [column for column, weight in zip(free, weights, strict=True) if weight > 0]
        weights = np.linalg.lstsq(efforts[:, free], spent, rcond=None)[0]
    fixed, per_width, per_depth = (dict(zip(free, weights.tolist(), strict=True)).get(at, 0.0) for at in range(3))
    return CostModel(fixed, per_width, per_depth, ms_per_scanned_row)


def measure_scan_ms_per_row(index: Index, queries: Vectors) -> float:
    """Milliseconds per row of an exact scan of some rows from anywhere in the pool."""
    allowed = sample_bitmap(index.size, min(index.size, _SCAN_SAMPLE_ROWS))
    seconds = []
    for query in queries[: _TIMED_QUERIES // 3]:
        start = time.perf_counter()
        index.search_exact(query[None], min(100, allowed.count), allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds)) / allowed.count
