"""Cosines of some hundred vectors to a few others, in the calling thread.

A matrix product of NumPy takes the threads of the BLAS library, which wait for one another: on a machine whose other
cores are busy, as those of a service are, that takes ten times as long as all of the work.
"""

import numpy as np

from vecall.arrays import Scores, Vectors
from vecall.runtime.numba_cache import compile_cached

# Sums may be reordered to fill the registers; the order is the same for every pair.
_jit = compile_cached(fastmath={"reassoc", "contract", "nsz"})


def compute_cosines(vectors: Vectors, others: Vectors) -> Scores:
    """Return the cosines [n, m] of vectors [n, D] to others [m, D]; 0 where one of the two is zero."""
    cosines = np.empty((len(vectors), len(others)), dtype=np.float32)
    _compute_cosines(np.ascontiguousarray(vectors), np.ascontiguousarray(others), cosines)
    return cosines


@_jit
def _compute_product(left, left_row, right, right_row):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for axis in range(left.shape[1]):
        total += left[left_row, axis] * right[right_row, axis]
    return total


@_jit
def _compute_cosines(vectors, others, cosines):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    other_lengths = np.empty(others.shape[0], dtype=np.float32)
    for j in range(others.shape[0]):
        other_lengths[j] = np.sqrt(_compute_product(others, j, others, j))
    for i in range(vectors.shape[0]):
        length = np.sqrt(_compute_product(vectors, i, vectors, i))
        for j in range(others.shape[0]):
            product = _compute_product(vectors, i, others, j)
            lengths = length * other_lengths[j]
            cosines[i, j] = product / lengths if lengths > 0 else np.float32(0)


def compile_cosines() -> None:
    """Compile the kernel, or load it from numba's cache, before the first request."""
    vector = np.zeros((1, 1), dtype=np.float32)
    compute_cosines(vector, vector)
