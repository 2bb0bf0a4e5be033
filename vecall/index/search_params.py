"""How hard an approximate index must try for an answer of k rows: measured on user vectors, then looked up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vecall.index.base import SearchParams


@dataclass(frozen=True)
class TuningPoint:
    """What one effort gives at one k.

    Attributes:
        k: rows asked for.
        width: how far the search looked, as in `SearchParams`.
        rerank_depth: rows scored exactly, as in `SearchParams`.
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
        """Width and depth."""
        return SearchParams(self.width, self.rerank_depth)


@dataclass(frozen=True)
class WidthAtRank:
    """How far a search must look to reach past so many rows of the whole pool.

    Attributes:
        rank: so many.
        width_for_all: so that of all rows up to there as many are found as wanted.
        width_for_tail: so that of the last ones, which lie further out than the average of those before them, as many are.
    """

    rank: int
    width_for_all: int
    width_for_tail: int


@dataclass(frozen=True)
class FilteredSearchParams:
    """What a search needs where rows are filtered out or excluded: others than the nearest are the answer.

    Attributes:
        widths: with ascending rank.
        depth_factor: times the depth that as many of the nearest take, for the last of an answer are told apart less well.
    """

    widths: tuple[WidthAtRank, ...] = ()
    depth_factor: float = 1.0


_DEFAULT_FILTERED_PARAMS = FilteredSearchParams()


class SearchParamCurve:
    """Effort by k and rank: straight lines between what was measured, the first below, in proportion above.

    Above the last rank the width grows as it did between the last two, by a power of the rank.

    Args:
        points: (k, effort) pairs with ascending k; at least one. An answer of the k nearest is so good on average.
        filtered_params: where the answer is not the nearest.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, SearchParams]],
        filtered_params: FilteredSearchParams = _DEFAULT_FILTERED_PARAMS,
    ) -> None:
        self.points, self.filtered_params = tuple(points), filtered_params
        self._widths = _Interpolator((k, effort.width) for k, effort in points)
        self._rerank_depths = _Interpolator((k, effort.rerank_depth) for k, effort in points)
        ranks = [one.rank for one in filtered_params.widths]
        nearer = [(k, effort.width) for k, effort in points if k < min(ranks, default=math.inf)]
        self._widths_for_all = _Interpolator(
            [*nearer, *zip(ranks, (one.width_for_all for one in filtered_params.widths), strict=True)],
            growth_ranks=ranks,
        )
        self._widths_for_tail = _Interpolator(
            [*nearer, *zip(ranks, (one.width_for_tail for one in filtered_params.widths), strict=True)],
            growth_ranks=ranks,
        )

    def look_up(self, k: int, *, rank: int | None = None, excluded_count: int = 0) -> SearchParams:
        """The effort for an answer of k rows.

        Args:
            k: rows of the answer, which say how many are scored exactly.
            rank: how many rows of the whole pool the search must reach past, where some rows may not be answers or
                are dropped afterwards; it says how far to look. None: the answer is the k nearest.
            excluded_count: of the k, the nearest, which are dropped: the more, the more only the last rows count.
        """
        depth = self._rerank_depths.interpolate(k)
        if rank is None:
            return SearchParams(math.ceil(self._widths.interpolate(k)), math.ceil(depth))
        share = math.sqrt(excluded_count / k)  # between no and all dropped: the nearer of the two is rarely enough
        width = self._widths_for_all.interpolate(rank) ** (1 - share) * self._widths_for_tail.interpolate(rank) ** share
        return SearchParams(math.ceil(round(width, 6)), math.ceil(self.filtered_params.depth_factor * depth))


class _Interpolator:
    """Values between measured ones.

    Args:
        points: (place, value) pairs with ascending place.
        growth_ranks: None: values may fall, and are in proportion beyond the last place. Else no value is below an earlier
            one, and where at least two places are here, the last two say by which power of the place it grows beyond.
    """

    def __init__(self, points: Iterable[tuple[int, int]], *, growth_ranks: Sequence[int] | None = None) -> None:
        places, values = zip(*points, strict=True)
        self._positions, self._values = np.array(places, dtype=np.float64), np.array(values, dtype=np.float64)
        self._growth_exponent = 1.0
        if growth_ranks is not None:
            self._values = np.maximum.accumulate(self._values)
        if growth_ranks is not None and len(growth_ranks) > 1:
            more, further = self._values[-1] / self._values[-2], self._positions[-1] / self._positions[-2]
            self._growth_exponent = math.log(more) / math.log(further)

    def interpolate(self, position: int) -> float:
        """Its value."""
        beyond = position / float(self._positions[-1])
        if beyond > 1:
            return float(self._values[-1]) * float(beyond**self._growth_exponent)
        return float(np.interp(position, self._positions, self._values))
