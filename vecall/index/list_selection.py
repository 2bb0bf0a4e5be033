"""Which inverted lists a query must scan: those that may hold some of its results.

The score of a row is that of its list's centroid plus that of its residual, the difference from the centroid. Over the
rows of a list the latter has a mean of about 0, and about the same standard deviation in all lists. So the scores of
the centroids and the number of rows per list tell how many rows of each list are expected above any score, and with
that the score of the n-th best row of all, and how many of the n best each list is expected to hold.

How far the rows of a list really lie from its centroid in the direction of a query differs by data and by list: the
deviation is multiplied by a spread, which is tuned.

A fixed number of nearest lists gives some queries far too few and others too many, and knows nothing of a filter that
has emptied the lists nearby.
"""

import math

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.runtime.numba_cache import compile_cached

_BINS_PER_DEVIATION = 8  # resolution of scores
_TAIL_DEVIATIONS = 8  # scores so far above a centroid's are not expected
_MAX_BINS = 4096
_MIN_SHARE = 1e-6  # of all expected results; lists that hold less are not scanned
_LOGISTIC_SLOPE = 1.702  # of the logistic function that is nearest to the normal distribution's
# Survival function at multiples of 1 / _BINS_PER_DEVIATION from -_TAIL_DEVIATIONS to _TAIL_DEVIATIONS. The logistic
# distribution has longer tails than the normal one, as the residuals of lists of unequal extent together have.
_SURVIVAL = np.array(
    [
        1 / (1 + math.exp(_LOGISTIC_SLOPE * step / _BINS_PER_DEVIATION))
        for step in range(-_TAIL_DEVIATIONS * _BINS_PER_DEVIATION, _TAIL_DEVIATIONS * _BINS_PER_DEVIATION + 1)
    ]
)


def select_lists(
    scores: Scores, counts: NDArray[np.int64], deviation: float, n_best: int, n_skipped: int, spread: float
) -> Rows:
    """Return the lists that are expected to hold more than a negligible share of the results.

    Args:
        scores: [nlist] inner products of the query with the centroids.
        counts: [nlist] rows of each list that may be results.
        deviation: standard deviation of the residuals' inner products with the query, at least 0.
        n_best: number of best rows to find, at least 1.
        n_skipped: how many of them, the best ones, need not be found; below `n_best`.
        spread: factor on the deviation, above 0. With a larger one lists further away are scanned.

    Returns:
        Lists in ascending order; those without a row that may be a result are not among them.
    """
    expected = _expect_results(scores, counts, deviation * spread, n_best, n_skipped, _SURVIVAL)
    lists: Rows = np.flatnonzero(expected > _MIN_SHARE * expected.sum())
    return lists


@compile_cached()
def _find_threshold(histogram, survival, n_best):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the position, in bins, of the score above which `n_best` rows are expected."""
    n_bins, reach = histogram.shape[0], survival.shape[0] // 2
    above, previous = 0.0, 0.0  # rows in bins so far above the threshold that all exceed it; rows expected one bin up
    for threshold in range(n_bins - 1 + reach, -reach - 1, -1):
        if threshold + reach < n_bins:
            above += histogram[threshold + reach]
        expected = above
        for position in range(max(threshold - reach, 0), min(threshold + reach, n_bins)):
            expected += histogram[position] * survival[threshold - position + reach]
        if expected >= n_best:
            return threshold + (expected - n_best) / max(expected - previous, 1e-12)
        previous = expected
    return float(-reach - 1)


@compile_cached()
def _survival_at(distance, survival):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the survival function at a distance in bins, by linear interpolation."""
    position = distance + survival.shape[0] // 2
    if position <= 0:
        return 1.0
    if position >= survival.shape[0] - 1:
        return 0.0
    floor = int(position)
    return survival[floor] + (position - floor) * (survival[floor + 1] - survival[floor])


@compile_cached()
def _expect_results(scores, counts, deviation, n_best, n_skipped, survival):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return [nlist] how many results each list is expected to hold."""
    n_lists = scores.shape[0]
    expected = np.zeros(n_lists)
    low, high, total = np.inf, -np.inf, 0
    for number in range(n_lists):
        if counts[number] > 0:
            low, high, total = min(low, scores[number]), max(high, scores[number]), total + counts[number]
    if total == 0:
        return expected
    # Scores that span too many bins get wider ones, as if the deviation were larger.
    step = max(deviation / _BINS_PER_DEVIATION, (high - low) / (_MAX_BINS - 1))
    if not step > 0.0:  # all scores are equal
        step = 1.0
    histogram = np.zeros(int((high - low) / step) + 1)
    for number in range(n_lists):
        if counts[number] > 0:
            histogram[int((scores[number] - low) / step)] += counts[number]
    end = _find_threshold(histogram, survival, min(n_best, total))
    start = _find_threshold(histogram, survival, min(n_skipped, total)) if n_skipped > 0 else np.inf
    for number in range(n_lists):
        if counts[number] > 0:
            position = (scores[number] - low) / step - 0.5  # bin b is at b, whose middle is half a step above its start
            share = _survival_at(end - position, survival) - _survival_at(start - position, survival)
            expected[number] = counts[number] * max(share, 0.0)
    return expected


def compile_list_selection() -> None:
    """Compile the kernels, or load them from numba's cache. See `vecall.index.kernels.compile_kernels`."""
    select_lists(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.int64), 1.0, 1, 0, 1.0)
