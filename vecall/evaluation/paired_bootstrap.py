"""Whether one of two models is better on the same users beyond noise: a paired bootstrap."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SAMPLES = 2_000
_SEED = 0


class BootstrapInterval(NamedTuple):
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: Of the differences.
        low: 2.5th percentile of the means of the samples.
        high: Their 97.5th percentile.
    """

    mean: float
    low: float
    high: float


def bootstrap_differences(differences: NDArray[np.float64]) -> BootstrapInterval:
    """Return mean and interval of the differences between two models, one per user; always the same for the same input.

    Users are drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Args:
        differences: [n] Metric of the one model minus that of the other, n at least 1.
    """
    rng, n = np.random.default_rng(_SEED), len(differences)
    means = [differences[rng.integers(n, size=n)].mean() for _ in range(_SAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return BootstrapInterval(float(differences.mean()), float(low), float(high))
