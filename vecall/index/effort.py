"""How hard an approximate index must try for an answer of k rows: measured on user vectors, then looked up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.index.base import Effort, Rows


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
class Filtered:
    """What a search needs where rows are filtered out or excluded: others than the nearest are the answer.

    Attributes:
        widths: (rank, width) pairs with ascending rank: how far it must look so that rows at this very rank of the
            pool are found as surely as wanted. They lie further out than the average of those before them.
        deeper: times the depth that as many of the nearest take, for the last of an answer are told apart less well.
    """

    widths: tuple[tuple[int, int], ...] = ()
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
        self._ks = np.array([k for k, _ in points], dtype=np.float64)
        self._widths = np.array([effort.width for _, effort in points], dtype=np.float64)
        self._depths = np.array([effort.depth for _, effort in points], dtype=np.float64)
        far = filtered.widths
        nearer = [(k, effort.width) for k, effort in points if not far or k < far[0][0]]
        ranks, widths = zip(*nearer, *far, strict=True)
        self._ranks = np.array(ranks, dtype=np.float64)
        self._far = np.maximum.accumulate(np.array(widths, dtype=np.float64))  # further is never nearer
        self._growth = self._growth_beyond() if len(far) > 1 else 1.0

    def at(self, k: int, *, rank: int | None = None) -> Effort:
        """The effort for an answer of k rows.

        Args:
            k: rows of the answer, which say how many are scored exactly.
            rank: how many rows of the whole pool the search must reach past, where some rows may not be answers or
                are dropped afterwards; it says how far to look. None: the answer is the k nearest.
        """
        depth = _read(self._ks, self._depths, k)
        if rank is None:
            return Effort(_read(self._ks, self._widths, k), depth)
        return Effort(_read(self._ranks, self._far, rank, self._growth), math.ceil(self.filtered.deeper * depth))

    def _growth_beyond(self) -> float:
        """The power of the rank that the width grew by between the last two."""
        near, far = self._ranks[-2:]
        narrow, wide = self._far[-2:]
        return math.log(wide / narrow) / math.log(far / near)


def _read(at: NDArray[np.float64], values: NDArray[np.float64], place: int, growth: float = 1.0) -> int:
    last = float(at[-1])
    value = values[-1] * (place / last) ** growth if place > last else np.interp(place, at, values)
    return int(np.ceil(value))


def overlap(found: Rows, truth: Rows) -> NDArray[np.float64]:
    """[B] share of the exact answer's rows, [B, k], that were found among [B, C] distinct rows, -1 being none."""
    shares: NDArray[np.float64] = (places_of(truth, found) < found.shape[1]).mean(axis=1)
    return shares


def places_of(truth: Rows, found: Rows) -> Rows:
    """[B, k] for each row of the truth the place where it stands among the [B, C] found; C where it does not."""
    absent = found.shape[1]
    place_of_row = np.full(max(int(truth.max(initial=0)), int(found.max(initial=0))) + 1, absent, dtype=np.int32)
    places = np.empty(truth.shape, dtype=np.int64)
    for b, rows in enumerate(found):
        there = np.flatnonzero(rows >= 0)
        place_of_row[rows[there]] = there
        places[b] = place_of_row[truth[b]]
        place_of_row[rows[there]] = absent
    return places
