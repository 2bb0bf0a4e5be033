"""Finding the least effort that reaches the wanted ANN recall, for each k, on real user vectors."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Effort, Index, Rows, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.filtered_tuning import LENGTH, find_filtered, random_rows
from vecall.index.ivf import CellsIndex
from vecall.index.planner import Costs
from vecall.index.search_params import EffortCurve, EffortPoint, Filtered

logger = logging.getLogger(__name__)

_GROWTH = 1.25  # from one ef to the next
_FEWEST_PROBES, _MORE_PROBES = 4, 2  # tried at least; from one number to the next
_DEPTHS = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)  # times k
_WORSE = 1.1  # times the best latency: more cells can only cost more
_TIMED = 60  # queries that a latency is taken from
_TOO_DEAR = 4  # times a scan of everything, beyond which a search is none
_CHEAP_MS = 0.2  # however quick a scan is: below, one late clock tick would end the ladder
_IN_VAIN, _GAIN = 5, 0.002  # so many efforts more that brought less than so much more recall: more will bring no more
_FAR = 8  # times the last width
_SCANNED = 100_000  # rows, to time a scan: fewer would lie in the cache


@dataclass(frozen=True)
class Tuning:
    """What was found for one index.

    Attributes:
        points: for each k, ascending, the least effort that reaches the target, else the best that was tried.
        tried: everything that was measured on the way.
        costs: of a search by its effort, and of a scan.
        filtered: where the answer is not the nearest.
    """

    points: tuple[EffortPoint, ...]
    tried: tuple[EffortPoint, ...]
    costs: Costs
    filtered: Filtered

    @property
    def curve(self) -> EffortCurve:
        """The effort that was found, by k."""
        return EffortCurve([(point.k, point.effort) for point in self.points], self.filtered)


def tune(
    index: Index,
    queries: Vectors,
    ks: Sequence[int],
    target: float,
    *,
    latency_ms: float = math.inf,
    width: int | None = None,
    quiet: bool = False,
) -> Tuning:
    """For each k the least effort whose ANN recall reaches the target with 95 % confidence.

    Where none does within the latency, the best that was tried stands for it, and a warning says so.

    Args:
        index: to be searched; `search_exact` of it is the truth.
        queries: [Q, D] real user vectors, at least 2.
        ks: ascending; those beyond N are left out.
        target: ANN recall in 0 .. 1.
        latency_ms: what the median search of one query may take.
        width: given, it is not searched for, nor for filters.
        quiet: a missed target is no news, and filters are not tried: it is only to compare structures.
    """
    asked = [k for k in ks if k <= index.size] or [index.size]
    scan_ms = scan_cost(index, queries)  # of a row
    with progress.task("tuning index", len(asked) + 1) as advance:
        length = min(LENGTH * asked[0], index.size)
        truth = index.search_exact(queries, max(asked[-1], length)).rows
        advance(1)
        chosen, tried = [], []
        dear_ms = max(_CHEAP_MS, _TOO_DEAR * scan_ms * index.size)
        for k in asked:
            measured = list(_ladder(index, queries, truth[:, :k], target, width, dear_ms))
            chosen.append(_least(measured, target, latency_ms))
            tried += measured
            advance(1)
    for point in chosen:
        if not quiet and (not _reaches(point, target) or point.p50_ms > latency_ms):
            logger.warning(
                "ANN recall@%d of at least %.3f was not reached within %g ms: %.4f ± %.4f in %.2f ms is the best of %d "
                "efforts tried", point.k, target, latency_ms, point.recall, point.recall_ci95, point.p50_ms, len(tried),
            )  # fmt: skip
    costs = _costs(index, queries, tried, scan_ms)
    if quiet or width is not None:
        return Tuning(tuple(chosen), tuple(tried), costs, Filtered())
    filtered = find_filtered(index, queries, truth[:, :length], [(one.k, one.effort) for one in chosen], target, costs)
    return Tuning(tuple(chosen), tuple(tried), costs, filtered)


def _ladder(
    index: Index, queries: Vectors, truth: Rows, target: float, width: int | None, dear_ms: float
) -> Iterator[EffortPoint]:
    """Ever harder searches, up to the first that reaches the target, or looks at everything, or is not worth it."""
    if isinstance(index, CellsIndex):
        yield from _cells_ladder(index, queries, truth, target, width)
        return
    k = truth.shape[1]
    ef, recalls = float(k if width is None else width), []
    while True:
        effort = Effort(min(index.size, math.ceil(ef)))
        found = index.search(queries, k, effort=effort).rows
        point = _point(index, queries, effort, recall_per_query(index, queries, found, truth), k)
        yield point
        recalls.append(point.recall)
        in_vain = len(recalls) > _IN_VAIN and recalls[-1] - recalls[-1 - _IN_VAIN] < _GAIN
        if _reaches(point, target) or width is not None or in_vain or point.p50_ms > dear_ms:
            return
        ef = effort.width * _GROWTH
        if ef >= index.size:  # the graph would be scanned, and answer right by another name
            return


def _cells_ladder(
    index: CellsIndex, queries: Vectors, truth: Rows, target: float, width: int | None
) -> Iterator[EffortPoint]:
    """More and more cells, each with the least depth that reaches the target; ends where more cells cost more."""
    probes = max(_FEWEST_PROBES, math.isqrt(index.cells) // 8) if width is None else width
    missed, best = 0, math.inf
    while True:
        point = _cells_point(index, queries, truth, target, min(index.cells, probes))
        yield point
        if point.width >= index.cells or width is not None or point.p50_ms > _WORSE * best:
            return
        if _reaches(point, target):
            between = math.isqrt(missed * point.width)
            if missed < between < point.width and best == math.inf:
                yield _cells_point(index, queries, truth, target, between)
            best = min(best, point.p50_ms)
        else:
            missed = point.width
        probes = point.width * _MORE_PROBES


def _cells_point(index: CellsIndex, queries: Vectors, truth: Rows, target: float, probes: int) -> EffortPoint:
    """So many cells with the least depth that reaches the target, or with the greatest."""
    k = truth.shape[1]
    deepest = Effort(probes, min(index.size, math.ceil(_DEPTHS[-1] * k)))
    found = index.candidates(queries, deepest)
    for depth in sorted({min(deepest.depth, math.ceil(times * k)) for times in _DEPTHS}):
        # The exact scores pick the truth out of whatever was found of it.
        shares = recall_per_query(index, queries, found[:, :depth], truth)
        if _lower_bound(shares) >= target or depth == deepest.depth:
            break
    return _point(index, queries, Effort(probes, depth), shares, k)


def _point(index: Index, queries: Vectors, effort: Effort, shares: NDArray[np.float64], k: int) -> EffortPoint:
    p50_ms = _median_ms(index, queries, k, effort)
    return EffortPoint(k, effort.width, effort.depth, float(shares.mean()), _half_width(shares), p50_ms)


def _median_ms(index: Index, queries: Vectors, k: int, effort: Effort, allowed: Bitmap | None = None) -> float:
    seconds = []
    for query in queries[:_TIMED]:
        start = time.perf_counter()
        index.search(query[None], k, effort=effort, allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(seconds)), 4)


def _half_width(shares: NDArray[np.float64]) -> float:
    return 1.96 * float(shares.std(ddof=1)) / math.sqrt(len(shares))


def _lower_bound(shares: NDArray[np.float64]) -> float:
    return float(shares.mean()) - _half_width(shares)


def _reaches(point: EffortPoint, target: float) -> bool:
    return point.recall - point.recall_ci95 >= target


def _least(measured: list[EffortPoint], target: float, latency_ms: float) -> EffortPoint:
    quick = [point for point in measured if point.p50_ms <= latency_ms] or measured[:1]
    enough = [point for point in quick if _reaches(point, target)]
    if enough:
        return min(enough, key=lambda point: point.p50_ms)
    return max(quick, key=lambda point: (point.recall, -point.p50_ms))


def _costs(index: Index, queries: Vectors, tried: Sequence[EffortPoint], scan_ms: float) -> Costs:
    """Milliseconds by effort, as the measured points say (least squares), and of a scanned row."""
    last = tried[-1]
    far = Effort(_FAR * last.width, last.depth)  # wide searches are filtered ones, and chance must not set their price
    allowed = random_rows(index.size, math.ceil(index.size / 10))
    far_ms = _median_ms(index, queries[: _TIMED // 3], min(last.k, allowed.count), far, allowed)
    efforts = np.array([[1.0, *point.effort] for point in tried] + [[1.0, *far]])
    spent = np.array([point.p50_ms for point in tried] + [far_ms])
    free = [0, 1, *([2] if np.ptp(efforts[:, 2]) > 0 else [])]
    weights = np.linalg.lstsq(efforts[:, free], spent, rcond=None)[0]
    while weights.min() < 0:  # chance; what remains must explain it
        free = [column for column, weight in zip(free, weights, strict=True) if weight > 0]
        weights = np.linalg.lstsq(efforts[:, free], spent, rcond=None)[0]
    fixed, per_width, per_depth = (dict(zip(free, weights.tolist(), strict=True)).get(at, 0.0) for at in range(3))
    return Costs(fixed, per_width, per_depth, scan_ms)


def scan_cost(index: Index, queries: Vectors) -> float:
    """Milliseconds per row of an exact scan of some rows from anywhere in the pool."""
    allowed = random_rows(index.size, min(index.size, _SCANNED))
    seconds = []
    for query in queries[: _TIMED // 3]:
        start = time.perf_counter()
        index.search_exact(query[None], min(100, allowed.count), allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds)) / allowed.count
