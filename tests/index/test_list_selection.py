"""Lists that a query must scan: compared with a plain computation, and with what the lists really hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.list_selection import select_lists


def survive(distance):
    """The logistic survival function that is nearest to the normal one, as a plain formula."""
    return 1 / (1 + np.exp(np.clip(1.702 * np.float64(distance), -700, 700)))


def expect_rows(scores, counts, deviation, n_best):
    """Rows that each list is expected to have among the n best of all."""
    n_best = min(n_best, counts.sum())
    low, high = scores.min() - 60 * deviation, scores.max() + 60 * deviation
    for _ in range(200):
        threshold = (low + high) / 2
        above = counts * survive((threshold - scores) / deviation)
        low, high = (threshold, high) if above.sum() > n_best else (low, threshold)
    return above


def test_nearest_lists_are_chosen_for_few_results():
    scores = np.array([0.1, 0.9, 0.5, 0.85], dtype=np.float32)
    chosen = select_lists(scores, np.full(4, 100), 0.02, 50, 0, 0.99)
    assert chosen.tolist() == [1, 3]


def test_lists_without_allowed_rows_are_never_scanned():
    scores = np.array([0.9, 0.8, 0.1], dtype=np.float32)
    assert select_lists(scores, np.array([0, 0, 7]), 0.05, 5, 0, 0.9).tolist() == [2]
    assert select_lists(scores, np.zeros(3, dtype=np.int64), 0.05, 5, 0, 0.9).tolist() == []


def test_results_beyond_the_skipped_ones_are_looked_for_further_away():
    scores = np.linspace(0.9, 0.0, 10).astype(np.float32)
    counts = np.full(10, 100)
    assert select_lists(scores, counts, 0.05, 100, 0, 0.3).tolist() == [0, 1]  # some of the second are better
    assert select_lists(scores, counts, 0.01, 550, 450, 0.3).tolist() == [4, 5]


def test_all_lists_with_rows_hold_all_rows():
    scores = np.array([0.3, 0.2, 0.1], dtype=np.float32)
    assert select_lists(scores, np.array([4, 0, 4]), 0.1, 100, 0, 1.0).tolist() == [0, 2]


@given(
    scores=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=40),
    seed=st.integers(0, 99),
    n_best=st.integers(1, 300),
    spread=st.sampled_from([0.2, 0.5, 1.0, 2.0]),
)
def test_chosen_lists_are_those_that_hold_more_than_a_negligible_share(scores, seed, n_best, spread):
    scores = np.array(scores, dtype=np.float32)
    counts = np.random.default_rng(seed).integers(0, 50, len(scores))
    if not counts.sum():
        return
    chosen = select_lists(scores, counts, 0.1, n_best, 0, spread)
    expected = expect_rows(scores, counts, 0.1 * spread, n_best)
    is_chosen = np.isin(np.arange(len(scores)), chosen)
    share = expected / expected.sum()
    # Scores are rounded to 1/8 of the deviation, and far tails are cut.
    assert is_chosen[share > 1e-4].all()
    assert not is_chosen[share < 1e-8].any()
    assert counts[chosen].all()


@pytest.mark.parametrize("dim", [16, 64])
def test_lists_hold_the_results_of_normal_residuals(dim):
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((64, dim))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    owners = rng.integers(64, size=20_000)
    residuals = 0.5 * rng.standard_normal((20_000, dim)) / math.sqrt(dim)
    vectors = centroids[owners] + residuals
    shares, sizes = [], []
    for _ in range(50):
        query = rng.standard_normal(dim)
        query /= np.linalg.norm(query)
        nearest = np.argsort(-(vectors @ query))[:200]
        scores = (centroids @ query).astype(np.float32)
        chosen = select_lists(scores, np.bincount(owners, minlength=64), 0.5 / math.sqrt(dim), 200, 0, 0.4)
        shares.append(np.isin(owners[nearest], chosen).mean())
        sizes.append(len(chosen))
    assert np.mean(shares) >= 0.95
    assert min(shares) >= 0.85
    assert np.mean(sizes) < 40


def test_larger_spread_scans_lists_further_away():
    scores = np.linspace(0.9, 0.0, 40).astype(np.float32)
    counts = np.full(40, 100)
    chosen = [select_lists(scores, counts, 0.02, 50, 0, spread).tolist() for spread in (0.5, 1.0, 2.0, 4.0)]
    lengths = [len(lists) for lists in chosen]
    assert lengths == sorted(set(lengths))
    assert chosen[2] == select_lists(scores, counts, 0.04, 50, 0, 1.0).tolist()
