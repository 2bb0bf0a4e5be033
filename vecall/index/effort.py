"""How wide an approximate index must search for an answer of k rows: measured on user vectors, then looked up."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vecall.index.base import Index, Rows, Vectors

logger = logging.getLogger(__name__)

_GROWTH = 1.25


@dataclass(frozen=True)
class EffortPoint:
    """What one effort gives at one k.

    Attributes:
        k: rows asked for.
        effort: how wide the search was.
        recall: ANN recall@k, mean over the queries.
        recall_ci95: half the width of its 95 % confidence interval.
    """

    k: int
    effort: int
    recall: float
    recall_ci95: float


class EffortCurve:
    """Effort by k: a straight line between the measured points, the first one's below, in proportion to k above."""

    def __init__(self, points: Sequence[tuple[int, int]]) -> None:
        """From (k, effort) pairs with ascending k; at least one."""
        self.points = tuple((int(k), int(effort)) for k, effort in points)

    def at(self, k: int) -> int:
        """The effort for an answer of k rows, never below k."""
        first, last = self.points[0], self.points[-1]
        if k <= first[0]:
            return max(k, first[1])
        for (left, low), (right, high) in pairwise(self.points):
            if k <= right:
                return max(k, math.ceil(low + (high - low) * (k - left) / (right - left)))
        return max(k, math.ceil(last[1] * k / last[0]))


def find_effort(index: Index, queries: Vectors, ks: Sequence[int], target: float) -> list[EffortPoint]:
    """For each k the least effort whose ANN recall reaches the target with 95 % confidence.

    Where none does, the widest search that was tried (the whole pool) stands for it.

    Args:
        index: to be searched; `search_exact` of it is the truth.
        queries: [Q, D] real user vectors, at least 2.
        ks: ascending; those beyond N are left out.
        target: ANN recall in 0 .. 1.
    """
    asked = [k for k in ks if k <= index.size] or [index.size]
    truth = index.search_exact(queries, max(asked)).rows
    points = [_least_effort(index, queries, k, truth[:, :k], target) for k in asked]
    for point in points:
        if point.recall < target:
            logger.warning("ANN recall@%d stays at %.4f, below the target %.2f", point.k, point.recall, target)
    return points


def _least_effort(index: Index, queries: Vectors, k: int, truth: Rows, target: float) -> EffortPoint:
    effort = k
    while True:
        shares = overlap(index.search(queries, k, effort=effort).rows, truth)
        half_width = 1.96 * float(shares.std(ddof=1)) / math.sqrt(len(shares))
        point = EffortPoint(k, effort, float(shares.mean()), half_width)
        if point.recall - half_width >= target or effort >= index.size:
            return point
        effort = min(index.size, math.ceil(effort * _GROWTH))


def overlap(found: Rows, truth: Rows) -> NDArray[np.float64]:
    """[B] share of the exact answer's rows, [B, k], that were found among [B, k]."""
    pairs = zip(found, truth, strict=True)
    return np.array([len(np.intersect1d(got, want)) / len(want) for got, want in pairs])
