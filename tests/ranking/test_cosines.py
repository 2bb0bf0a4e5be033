import numpy as np
import pytest
from numpy.testing import assert_allclose

from vecall.ranking.cosines import compute_cosines


@pytest.mark.parametrize(("n", "m", "dim"), [(1, 1, 1), (40, 10, 7), (500, 10, 128), (0, 3, 4), (3, 0, 4)])
def test_cosines_equal_those_in_double_precision(n, m, dim):
    rng = np.random.default_rng(0)
    vectors, others = (rng.standard_normal((length, dim)).astype(np.float32) for length in (n, m))
    products = vectors.astype(np.float64) @ others.T.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    assert_allclose(compute_cosines(vectors, others), products / lengths, atol=1e-6)


def test_cosines_of_zeros_are_zero_and_the_largest_and_smallest_stored_values_lose_nothing():
    largest, smallest = np.float32(np.finfo(np.float16).max), np.float32(np.finfo(np.float16).smallest_subnormal)
    vectors = np.array([[0, 0], [largest, largest], [smallest, 0]], dtype=np.float32)
    expected = [[0, 0, 0], [0, 1, np.sqrt(0.5)], [0, np.sqrt(0.5), 1]]
    assert_allclose(compute_cosines(vectors, vectors), expected, rtol=1e-6)


def test_arrays_of_any_layout_are_taken():
    vectors = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    transposed = np.asfortranarray(vectors)
    transposed.setflags(write=False)
    assert_allclose(compute_cosines(transposed[::2], vectors[:1]), compute_cosines(vectors, vectors[:1])[::2])
