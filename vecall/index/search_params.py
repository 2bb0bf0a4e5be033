"""Search parameters of an approximate index for k rows: measured on user vectors, then looked up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vecall.index.base import SearchParams


@dataclass(frozen=True)
class TuningPoint:
    """Measured recall and latency of one setting of the search parameters at one k.

    Attributes:
        k: number of rows searched for.
        width: as in `SearchParams`.
        rerank_depth: as in `SearchParams`.
        recall: ANN recall@k, mean over the queries.
        recall_ci95: half the width of its 95 % confidence interval.
        p50_ms: median milliseconds of one query.
    """

    k: int
    width: int
    rerank_depth: int
    recall: float
    recall_ci95: float
    p50_ms: float

    @property
    def search_params(self) -> SearchParams:
        """`width` and `rerank_depth` together."""
        return SearchParams(self.width, self.rerank_depth)

    def reaches(self, target_recall: float) -> bool:
        """Whether the recall reaches the target with 95 % confidence."""
        return self.recall - self.recall_ci95 >= target_recall


@dataclass(frozen=True)
class WidthAtRank:
    """Width with which a search finds the rows up to a rank of all rows.

    Attributes:
        rank: 1 is the row that is nearest to the query.
        width_for_all: width at which the recall of all rows up to the rank reaches the target.
        width_for_tail: width at which the recall of the last of these rows, the hardest to find, reaches the target.
    """

    rank: int
    width_for_all: int
    width_for_tail: int


@dataclass(frozen=True)
class FilteredSearchParams:
    """Search parameters for results that are not the nearest rows, because some are filtered out or excluded.

    Attributes:
        widths: by ascending rank.
        depth_factor: factor on the rerank depth of as many nearest rows: codes order the rows further out less well.
    """

    widths: tuple[WidthAtRank, ...] = ()
    depth_factor: float = 1.0


_DEFAULT_FILTERED_PARAMS = FilteredSearchParams()


class SearchParamCurve:
    """Search parameters by k and rank, interpolated between measured points.

    Values are linear between points, constant below the first and proportional to k beyond the last. Beyond the last
    rank of `filtered_params` the width grows by the power of the rank by which it grew between the last two.

    Args:
        points: (k, search parameters) with ascending k, at least one: parameters that reach the target recall, on
            average, for the k nearest rows.
        filtered_params: parameters for results that are not the nearest rows.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, SearchParams]],
        filtered_params: FilteredSearchParams = _DEFAULT_FILTERED_PARAMS,
    ) -> None:
        self.points, self.filtered_params = tuple(points), filtered_params
        self._widths = _Interpolator((k, params.width) for k, params in points)
        self._rerank_depths = _Interpolator((k, params.rerank_depth) for k, params in points)
        widths = filtered_params.widths
        ranks = [width.rank for width in widths]
        below_ranks = [(k, params.width) for k, params in points if k < min(ranks, default=math.inf)]
        self._widths_for_all = _Interpolator(
            [*below_ranks, *((width.rank, width.width_for_all) for width in widths)], growth_ranks=ranks
        )
        self._widths_for_tail = _Interpolator(
            [*below_ranks, *((width.rank, width.width_for_tail) for width in widths)], growth_ranks=ranks
        )

    def look_up(self, k: int, *, rank: int | None = None, excluded_count: int = 0) -> SearchParams:
        """Return the search parameters for a result of k rows.

        Args:
            k: number of rows to fetch, excluded ones included; determines the rerank depth.
            rank: rank of all rows that the result is expected to reach, if rows are filtered out or excluded;
                determines the width. None if the result is the k nearest rows.
            excluded_count: how many of the k rows, the nearest ones, are dropped afterwards. The more are dropped, the
                more only the tail of the result counts.
        """
        depth = self._rerank_depths.interpolate(k)
        if rank is None:
            return SearchParams(math.ceil(self._widths.interpolate(k)), math.ceil(depth))
        # Between none and all dropped, a geometric mean that leans to the tail: the closer case is rarely enough.
        tail_weight = math.sqrt(excluded_count / k)
        width_for_all, width_for_tail = self._widths_for_all.interpolate(rank), self._widths_for_tail.interpolate(rank)
        width = width_for_all ** (1 - tail_weight) * width_for_tail**tail_weight
        return SearchParams(math.ceil(round(width, 6)), math.ceil(self.filtered_params.depth_factor * depth))


class _Interpolator:
    """Piecewise linear function through measured points, extrapolated beyond the last.

    Args:
        points: (position, value) with ascending position, at least one.
        growth_ranks: None allows values to fall, and extrapolates in proportion to the position. Otherwise values never
            fall below an earlier one, and from two ranks on the extrapolation is the power law through the last two
            points.
    """

    def __init__(self, points: Iterable[tuple[int, int]], *, growth_ranks: Sequence[int] | None = None) -> None:
        positions, values = zip(*points, strict=True)
        self._positions, self._values = np.array(positions, dtype=np.float64), np.array(values, dtype=np.float64)
        self._growth_exponent = 1.0
        if growth_ranks is not None:
            self._values = np.maximum.accumulate(self._values)
        if growth_ranks is not None and len(growth_ranks) > 1:
            value_ratio = self._values[-1] / self._values[-2]
            position_ratio = self._positions[-1] / self._positions[-2]
            self._growth_exponent = math.log(value_ratio) / math.log(position_ratio)

    def interpolate(self, position: int) -> float:
        """Return the value at a position."""
        beyond = position / float(self._positions[-1])
        if beyond > 1:
            return float(self._values[-1]) * float(beyond**self._growth_exponent)
        return float(np.interp(position, self._positions, self._values))
