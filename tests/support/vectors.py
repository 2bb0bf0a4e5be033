"""Random vectors for tests of the index."""

import numpy as np


def random_vectors(n, dim, seed=0):
    """[n, dim] float32 from a standard normal distribution."""
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
