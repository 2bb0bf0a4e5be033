"""Search parameters of an approximate index for k rows: measured on user vectors, then looked up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vecall.index.base import SearchParams


@dataclass(frozen=True)
class RecallTarget:
    """ANN recall to be reached.

    Attributes:
        mean: over all queries.
        worst: mean over the worst 1 % of the queries.
    """

    mean: float
    worst: float

    def is_reached(self, mean: float, worst: float) -> bool:
        """Whether the mean and the worst queries, or lower bounds of them, reach the target; one of 0 always is."""
        return max(mean, 0.0) >= self.mean and max(worst, 0.0) >= self.worst


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
        worst_recall: ANN recall@k, mean over the worst 1 % of the queries, at least one.
        spread: as in `SearchParams`.
        worst_ci95: half the width of the 95 % confidence interval of `worst_recall`.
    """

    k: int
    width: int
    rerank_depth: int
    recall: float
    recall_ci95: float
    p50_ms: float
    worst_recall: float
    spread: float = 0.0
    worst_ci95: float = 0.0

    @property
    def search_params(self) -> SearchParams:
        """`width`, `rerank_depth` and `spread` together."""
        return SearchParams(self.width, self.rerank_depth, self.spread)

    def reaches_with_confidence(self, target: RecallTarget) -> bool:
        """Whether the lower bounds of the 95 % confidence intervals reach the target."""
        return target.is_reached(self.recall - self.recall_ci95, self.worst_recall - self.worst_ci95)


@dataclass(frozen=True)
class WidthsAtRank:
    """Search widths needed to find the `rank` rows that are nearest to a query.

    Attributes:
        rank: 1 is the row that is nearest to the query.
        width_for_all: width at which the recall of all rows up to the rank reaches the target.
        width_for_tail: width at which the recall of the last of these rows, the hardest to find, reaches the target.
    """

    rank: int
    width_for_all: int
    width_for_tail: int


@dataclass(frozen=True)
class FilteredSearchTable:
    """Tuned table for results that are not the nearest rows, because some are filtered out or excluded.

    `SearchParamCurve` derives the `SearchParams` of a query from it.

    Attributes:
        widths: by ascending rank.
        depth_factor: factor on the rerank depth for unrestricted results of the same length; rows further from the
            query need more depth, as their codes rank them less exactly.
        spread: as in `SearchParams`, at all ranks; 0 where `widths` are used.
    """

    widths: tuple[WidthsAtRank, ...] = ()
    depth_factor: float = 1.0
    spread: float = 0.0


_MAX_UNFILTERED_RANK_RATIO = 1.02  # of the expected rank to the rows fetched; above, rows are filtered out, not deleted
_EMPTY_FILTERED_TABLE = FilteredSearchTable()


class SearchParamCurve:
    """Search parameters by k and rank, interpolated between measured points.

    Values are linear between points, constant below the first and proportional to k beyond the last. Beyond the last
    rank of `filtered_table`, the width follows the power law through its last two points.

    Args:
        points: (k, search parameters) with ascending k, at least one: parameters that reach the target recall, on
            average, for the k nearest rows.
        filtered_table: widths and depth for results that are not the nearest rows.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, SearchParams]],
        filtered_table: FilteredSearchTable = _EMPTY_FILTERED_TABLE,
    ) -> None:
        self.points, self.filtered_table = tuple(points), filtered_table
        self._widths = _Interpolator((k, params.width) for k, params in points)
        self._rerank_depths = _Interpolator((k, params.rerank_depth) for k, params in points)
        self._ks, self._spreads = zip(*((k, params.spread) for k, params in points), strict=True)
        widths = filtered_table.widths
        ranks = [width.rank for width in widths]
        below_ranks = [(k, params.width) for k, params in points if k < min(ranks, default=math.inf)]
        has_power_law = len(ranks) > 1
        self._widths_for_all = _Interpolator(
            [*below_ranks, *((width.rank, width.width_for_all) for width in widths)],
            is_monotonic=True,
            has_power_law=has_power_law,
        )
        self._widths_for_tail = _Interpolator(
            [*below_ranks, *((width.rank, width.width_for_tail) for width in widths)],
            is_monotonic=True,
            has_power_law=has_power_law,
        )

    def look_up(self, fetch_k: int, *, expected_rank: int | None = None, excluded_count: int = 0) -> SearchParams:
        """Return the search parameters for fetching `fetch_k` rows.

        Args:
            fetch_k: number of rows to fetch, the excluded ones that are dropped afterwards included; determines the
                rerank depth.
            expected_rank: rank among all rows that the result is expected to reach, if rows are filtered out or
                excluded; determines the width. None if the result is the `fetch_k` nearest rows.
            excluded_count: how many of the fetched rows, the nearest ones, are dropped afterwards. The more are
                dropped, the more only the tail of the result counts.
        """
        depth = self._rerank_depths.interpolate(fetch_k)
        unfiltered_spread = float(np.interp(fetch_k, self._ks, self._spreads))
        if expected_rank is None:
            return SearchParams(math.ceil(self._widths.interpolate(fetch_k)), math.ceil(depth), unfiltered_spread)
        # Interpolate geometrically between the two widths; the square root gives the tail more weight, as too small a
        # width loses results.
        tail_weight = math.sqrt(excluded_count / fetch_k)
        width_for_all, width_for_tail = (
            self._widths_for_all.interpolate(expected_rank),
            self._widths_for_tail.interpolate(expected_rank),
        )
        width = width_for_all ** (1 - tail_weight) * width_for_tail**tail_weight
        depth *= self.filtered_table.depth_factor
        spread = self.filtered_table.spread
        if spread and expected_rank <= _MAX_UNFILTERED_RANK_RATIO * fetch_k:
            spread = unfiltered_spread ** (1 - tail_weight) * spread**tail_weight
        return SearchParams(math.ceil(round(width, 6)), math.ceil(depth), spread)


class _Interpolator:
    """Piecewise linear function through measured points, extrapolated beyond the last.

    Args:
        points: (position, value) with ascending position, at least one.
        is_monotonic: raise each value to the largest before it.
        has_power_law: extrapolate by the power law through the last two points, not in proportion to the position.
    """

    def __init__(
        self, points: Iterable[tuple[int, int]], *, is_monotonic: bool = False, has_power_law: bool = False
    ) -> None:
        positions, values = zip(*points, strict=True)
        self._positions, self._values = np.array(positions, dtype=np.float64), np.array(values, dtype=np.float64)
        self._growth_exponent = 1.0
        if is_monotonic:
            self._values = np.maximum.accumulate(self._values)
        if has_power_law:
            value_ratio = self._values[-1] / self._values[-2]
            position_ratio = self._positions[-1] / self._positions[-2]
            self._growth_exponent = math.log(value_ratio) / math.log(position_ratio)

    def interpolate(self, position: int) -> float:
        """Return the value at a position."""
        beyond = position / float(self._positions[-1])
        if beyond > 1:
            return float(self._values[-1]) * float(beyond**self._growth_exponent)
        return float(np.interp(position, self._positions, self._values))
