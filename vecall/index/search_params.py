"""How hard an approximate index must try for an answer of k rows: measured on user vectors, then looked up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vecall.index.base import Effort


@dataclass(frozen=True)
class EffortPoint:
    """What one effort gives at one k.

    Attributes:
        k: rows asked for.
        width: how far the search looked, as in `Effort`.
        depth: rows scored exactly, as in `Effort`.
        recall: ANN recall@k, mean over the queries.
        recall_ci95: half the width of its 95 % confidence interval.
        p50_ms: median milliseconds of one query.
    """

    k: int
    width: int
    depth: int
    recall: float
    recall_ci95: float
    p50_ms: float

    @property
    def effort(self) -> Effort:
        """Width and depth."""
        return Effort(self.width, self.depth)


@dataclass(frozen=True)
class Width:
    """How far a search must look to reach past so many rows of the whole pool.

    Attributes:
        rank: so many.
        all: so that of all rows up to there as many are found as wanted.
        last: so that of the last ones, which lie further out than the average of those before them, as many are.
    """

    rank: int
    all: int
    last: int


@dataclass(frozen=True)
class Filtered:
    """What a search needs where rows are filtered out or excluded: others than the nearest are the answer.

    Attributes:
        widths: with ascending rank.
        deeper: times the depth that as many of the nearest take, for the last of an answer are told apart less well.
    """

    widths: tuple[Width, ...] = ()
    deeper: float = 1.0


_AS_USUAL = Filtered()


class EffortCurve:
    """Effort by k and rank: straight lines between what was measured, the first below, in proportion above.

    Above the last rank the width grows as it did between the last two, by a power of the rank.

    Args:
        points: (k, effort) pairs with ascending k; at least one. An answer of the k nearest is so good on average.
        filtered: where the answer is not the nearest.
    """

    def __init__(self, points: Sequence[tuple[int, Effort]], filtered: Filtered = _AS_USUAL) -> None:
        self.points, self.filtered = tuple(points), filtered
        self._widths = _Line((k, effort.width) for k, effort in points)
        self._depths = _Line((k, effort.depth) for k, effort in points)
        ranks = [one.rank for one in filtered.widths]
        nearer = [(k, effort.width) for k, effort in points if k < min(ranks, default=math.inf)]
        self._all = _Line([*nearer, *zip(ranks, (one.all for one in filtered.widths), strict=True)], growth=ranks)
        self._last = _Line([*nearer, *zip(ranks, (one.last for one in filtered.widths), strict=True)], growth=ranks)

    def at(self, k: int, *, rank: int | None = None, dropped: int = 0) -> Effort:
        """The effort for an answer of k rows.

        Args:
            k: rows of the answer, which say how many are scored exactly.
            rank: how many rows of the whole pool the search must reach past, where some rows may not be answers or
                are dropped afterwards; it says how far to look. None: the answer is the k nearest.
            dropped: of the k, the nearest, which are dropped: the more, the more only the last rows count.
        """
        depth = self._depths.at(k)
        if rank is None:
            return Effort(math.ceil(self._widths.at(k)), math.ceil(depth))
        share = math.sqrt(dropped / k)  # between no and all dropped: the nearer of the two is rarely enough
        width = self._all.at(rank) ** (1 - share) * self._last.at(rank) ** share
        return Effort(math.ceil(round(width, 6)), math.ceil(self.filtered.deeper * depth))


class _Line:
    """Values between measured ones.

    Args:
        points: (place, value) pairs with ascending place.
        growth: None: values may fall, and are in proportion beyond the last place. Else no value is below an earlier
            one, and where at least two places are here, the last two say by which power of the place it grows beyond.
    """

    def __init__(self, points: Iterable[tuple[int, int]], *, growth: Sequence[int] | None = None) -> None:
        places, values = zip(*points, strict=True)
        self._places, self._values = np.array(places, dtype=np.float64), np.array(values, dtype=np.float64)
        self._power = 1.0
        if growth is not None:
            self._values = np.maximum.accumulate(self._values)
        if growth is not None and len(growth) > 1:
            more, further = self._values[-1] / self._values[-2], self._places[-1] / self._places[-2]
            self._power = math.log(more) / math.log(further)

    def at(self, place: int) -> float:
        """Its value."""
        beyond = place / float(self._places[-1])
        if beyond > 1:
            return float(self._values[-1]) * float(beyond**self._power)
        return float(np.interp(place, self._places, self._values))
