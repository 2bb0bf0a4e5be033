import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index import coarse_quantizer
from vecall.index.coarse_quantizer import build_coarse_quantizer, choose_nlist, sample_rows, train_centroids
from vecall.index.exact import ExactIndex


def normal(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.mark.parametrize(
    ("n", "cells"),
    [(1, 1), (3, 3), (100, 16), (2000, 64), (300_000, 1024), (10**6, 2048), (10**7, 8192)],
)
def test_the_usual_number_by_hand(n, cells):
    assert choose_nlist(n) == cells


@pytest.mark.parametrize(("n", "most", "count"), [(5, 9, 5), (100, 30, 30), (1, 1, 1)])
def test_sampled_rows_are_distinct_and_ascend(n, most, count):
    rows = sample_rows(n, most, seed=3)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == count
    assert rows[0] >= 0
    assert rows[-1] < n
    np.testing.assert_array_equal(rows, sample_rows(n, most, seed=3))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30).filter(sum), st.floats(0, 1))
def test_shares_are_in_proportion_and_sum_up(counts, part):
    counts = np.array(counts)
    total = max(1, round(part * counts.sum()))
    shares = coarse_quantizer._apportion(counts, total)
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert (shares <= counts).all()
    assert (np.abs(shares - counts * total / counts.sum()) < 1).all()


def lost(vectors, found):
    """Mean squared distance from the direction of the nearest centroid."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(2 - 2 * (unit @ found.T).max(axis=1).mean())


@pytest.fixture(scope="module")
def clustered():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((60, 12))[rng.integers(60, size=3000)] + 0.3 * rng.standard_normal((3000, 12))).astype(
        np.float32
    )


def test_centroids_lie_amid_their_vectors(clustered):
    stored = ExactIndex.build(clustered)
    found = train_centroids(stored, 60, seed=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    anywhere = normal(60, 12, seed=1)
    assert lost(clustered, found) < 0.4 * lost(clustered, anywhere / np.linalg.norm(anywhere, axis=1, keepdims=True))


def test_two_levels_find_nearly_as_good_ones(clustered, monkeypatch):
    stored = ExactIndex.build(clustered)
    once = lost(clustered, train_centroids(stored, 100, seed=0))
    monkeypatch.setattr(coarse_quantizer, "_AT_ONCE", 16)
    found = train_centroids(stored, 100, seed=0)
    assert found.shape == (100, 12)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert lost(clustered, found) < 1.3 * once


@pytest.mark.parametrize("at_once", [4, 4096])
@pytest.mark.parametrize(
    "vectors",
    [np.zeros((70, 3)), np.ones((70, 3)), np.tile(normal(5, 3), (14, 1)), normal(70, 3) * 65000 / 5, normal(70, 1)],
    ids=["zeros", "equal", "five", "large", "one dimension"],
)
@pytest.mark.parametrize("cells", [1, 30, 70])
def test_always_so_many_and_never_nan(monkeypatch, capfd, vectors, cells, at_once):
    monkeypatch.setattr(coarse_quantizer, "_AT_ONCE", at_once)
    found = train_centroids(ExactIndex.build(vectors.astype(np.float32)), cells, seed=0)
    assert found.shape == (cells, vectors.shape[1])
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1.001).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("at_once", "right"), [(4096, 1.0), (100, 0.98)])
def test_the_nearest_are_found(monkeypatch, at_once, right):
    monkeypatch.setattr(coarse_quantizer, "_AT_ONCE", at_once)
    found = normal(500, 16)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    queries = normal(300, 16, seed=1)
    rows = build_coarse_quantizer(found).search(queries, 1)[1][:, 0]
    assert (rows == np.argmax(queries @ found.T, axis=1)).mean() >= right
