import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vectors import random_vectors

from vecall.index import coarse_quantizer
from vecall.index.coarse_quantizer import build_coarse_quantizer, choose_nlist, train_centroids
from vecall.index.exact import ExactIndex


@pytest.mark.parametrize(
    ("n", "nlist"),
    [(1, 1), (3, 3), (100, 16), (2000, 64), (300_000, 1024), (10**6, 2048), (10**7, 8192)],
)
def test_default_nlist_by_hand(n, nlist):
    assert choose_nlist(n) == nlist


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30).filter(sum), st.floats(0, 1))
def test_apportioned_shares_are_proportional_and_sum_to_the_total(counts, fraction):
    counts = np.array(counts)
    total = max(1, round(fraction * counts.sum()))
    shares = coarse_quantizer._apportion(counts, total)
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert (shares <= counts).all()
    assert (np.abs(shares - counts * total / counts.sum()) < 1).all()


def quantization_error(vectors, centroids):
    """Mean squared distance of the vectors' directions from the nearest centroid."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(2 - 2 * (unit @ centroids.T).max(axis=1).mean())


@pytest.fixture(scope="module")
def vectors_in_60_clusters():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((60, 12))[rng.integers(60, size=3000)] + 0.3 * rng.standard_normal((3000, 12))).astype(
        np.float32
    )


def test_centroids_are_much_closer_to_the_vectors_than_random_ones(vectors_in_60_clusters):
    vectors = vectors_in_60_clusters
    centroids = train_centroids(ExactIndex.build(vectors).vectors, 60, seed=0)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    random = random_vectors(60, 12, seed=1)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert quantization_error(vectors, centroids) < 0.4 * quantization_error(vectors, random)


def test_two_level_centroids_are_nearly_as_good(vectors_in_60_clusters, monkeypatch):
    stored_vectors = ExactIndex.build(vectors_in_60_clusters).vectors
    one_level_error = quantization_error(vectors_in_60_clusters, train_centroids(stored_vectors, 100, seed=0))
    monkeypatch.setattr(coarse_quantizer, "_MAX_FLAT_CENTROIDS", 16)
    centroids = train_centroids(stored_vectors, 100, seed=0)
    assert centroids.shape == (100, 12)
    assert centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert quantization_error(vectors_in_60_clusters, centroids) < 1.3 * one_level_error


@pytest.mark.parametrize("max_flat_centroids", [4, 4096])
@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((70, 3)),
        np.ones((70, 3)),
        np.tile(random_vectors(5, 3), (14, 1)),
        random_vectors(70, 3) * 65000 / 5,
        random_vectors(70, 1),
    ],
    ids=["zeros", "equal", "five", "large", "one dimension"],
)
@pytest.mark.parametrize("nlist", [1, 30, 70])
def test_degenerate_vectors_give_nlist_finite_centroids(monkeypatch, capfd, vectors, nlist, max_flat_centroids):
    monkeypatch.setattr(coarse_quantizer, "_MAX_FLAT_CENTROIDS", max_flat_centroids)
    centroids = train_centroids(ExactIndex.build(vectors.astype(np.float32)).vectors, nlist, seed=0)
    assert centroids.shape == (nlist, vectors.shape[1])
    assert np.isfinite(centroids).all()
    assert (np.abs(centroids) <= 1.001).all()
    assert capfd.readouterr() == ("", "")  # faiss prints its warnings


@pytest.mark.parametrize(("max_flat_centroids", "min_accuracy"), [(4096, 1.0), (100, 0.995)])
def test_quantizer_finds_the_nearest_centroid(monkeypatch, max_flat_centroids, min_accuracy):
    monkeypatch.setattr(coarse_quantizer, "_MAX_FLAT_CENTROIDS", max_flat_centroids)
    centroids = random_vectors(4000, 64)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    queries = centroids[:1000] + 0.12 * random_vectors(1000, 64, seed=1)  # as far from their centroids as items are
    rows = build_coarse_quantizer(centroids).search(queries, 1)[1][:, 0]
    assert (rows == np.argmax(queries @ centroids.T, axis=1)).mean() >= min_accuracy
