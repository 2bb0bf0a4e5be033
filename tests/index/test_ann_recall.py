import numpy as np
import pytest

from vecall.index.ann_recall import (
    compute_ci95_half_width,
    compute_worst_ci95_half_width,
    mean_of_worst,
    recall_at_depths,
    recall_from_scores,
    recall_per_query,
    tail_recall_per_query,
)
from vecall.index.exact import ExactIndex
from vecall.index.settings import IndexSettings
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.store import Store

# Scores 9, 7, 7, 7, 5, 1 for the query [1, 0].
INDEX = ExactIndex.build(np.array([[9, 0], [7, 1], [7, 2], [7, 3], [5, 0], [1, 0]], dtype=np.float32))
QUERY = np.array([[1, 0]], dtype=np.float32)


def compute_recall(found, exact, tail_size=None):
    rows = np.array([found]), np.array([exact])
    if tail_size is None:
        return recall_per_query(INDEX.vectors, QUERY, *rows)[0]
    return tail_recall_per_query(INDEX.vectors, QUERY, *rows, tail_size)[0]


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        ([0, 1, 4], [0, 1, 2], 2 / 3),
        ([0, 3, 2], [0, 1, 2], 1.0),  # any of the tied rows counts
        ([3, 3, 3], [0, 1, 2], 1 / 3),  # a repeated row counts once
        ([-1, -1, 0], [0, 1, 2], 1 / 3),
        ([-1, -1, -1], [0, 1, 2], 0.0),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2], 1.0),  # never above 1
        ([4, 5, 0, -1], [0, 1, 2, 3, 4, 5, -1, -1], 0.5),  # exact result shorter than k
    ],
)
def test_recall_by_hand(found, exact, expected):
    assert compute_recall(found, exact) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "tail_size", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], 2, 1.0),
        ([0, 1, 2, 3, 4, -1], 2, 0.5),
        ([0, 1, 2, 3, -1, -1], 2, 0.0),
        ([4, 5, -1, -1, -1, -1], 2, 1.0),  # rows before the tail do not count
        ([0, 4, 5, 1, -1, -1], 3, 2 / 3),
    ],
)
def test_tail_recall_by_hand(found, tail_size, expected):
    assert compute_recall(found, [0, 1, 2, 3, 4, 5], tail_size) == pytest.approx(expected)


def test_recall_at_depths_is_that_of_the_first_candidates():
    rng = np.random.default_rng(0)
    index = ExactIndex.build(rng.integers(-2, 3, size=(60, 3)).astype(np.float32))  # with equal scores
    queries = rng.integers(-2, 3, size=(8, 3)).astype(np.float32)
    candidates = np.array([rng.permutation(60)[:40] for _ in queries])
    candidates[2:, 30:] = -1
    exact_rows = index.vectors.search_exact(queries, 12).rows
    depths = [0, 1, 12, 25, 40]
    recalls = recall_at_depths(index.vectors, queries, candidates, exact_rows, depths)
    for depth, at_depth in zip(depths, recalls, strict=True):
        expected = recall_per_query(index.vectors, queries, candidates[:, :depth], exact_rows)
        np.testing.assert_array_equal(at_depth, expected)
    assert recalls.std() > 0.1


@pytest.mark.parametrize(
    ("found_scores", "expected"),
    [([9, 7, 7], 1.0), ([9, 7, 5], 2 / 3), ([5, 1], 0.0), ([], 0.0), ([9, 7, 7, 7], 1.0)],
)
def test_recall_from_scores_by_hand(found_scores, expected):
    assert recall_from_scores(np.array(found_scores), np.array([9.0, 7.0, 7.0])) == pytest.approx(expected)


def test_ci95_half_width_by_hand():
    # The variance of 0, 0, 1, 1 is 1/3 with n - 1 in the denominator.
    assert compute_ci95_half_width(np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(1.96 * np.sqrt(1 / 3) / 2)
    assert compute_ci95_half_width(np.full(5, 0.25)) == 0.0


def test_confidence_of_the_worst_queries_by_hand():
    # The worst two of 200 have a mean of 0.6 and a variance of 0.01; the next one is 0.2 better.
    recalls = np.array([0.7, *[0.8] * 98, 0.5, *[1.0] * 100])
    assert mean_of_worst(recalls) == pytest.approx(0.6)
    variance = (0.01 + (1 - 2 / 200) * 0.2**2) / 2
    assert compute_worst_ci95_half_width(recalls) == pytest.approx(1.96 * np.sqrt(variance))
    # The worst one of 2 stands for itself; the next one is all that tells of its variance.
    assert compute_worst_ci95_half_width(np.array([0.5, 0.7])) == pytest.approx(1.96 * np.sqrt(0.5) * 0.2)
    assert compute_worst_ci95_half_width(np.full(300, 0.25)) == 0.0


def test_lower_bound_of_the_worst_queries_is_seldom_too_high():
    """Of 10 worst values; with a normal distribution 0.975 of the bounds would be low enough."""
    rng = np.random.default_rng(0)
    true_mean = -2.665  # of the worst 1 % of a standard normal distribution: -φ(2.326) / 0.01
    samples = rng.standard_normal((2000, 1000))
    bounds = np.array([mean_of_worst(sample) - compute_worst_ci95_half_width(sample) for sample in samples])
    assert 0.88 <= (bounds <= true_mean).mean() <= 0.975


def test_many_equal_vectors_neither_mislead_nor_delay_tuning(tmp_path):
    """A graph over them is disconnected, so tuning would go on to a full search; an IVF index finds them."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 32)).astype(np.float32)
    vectors[rng.permutation(6000)[:2500]] = rng.standard_normal(32)
    queries = rng.standard_normal((200, 32)).astype(np.float32)
    publish_vectors(tmp_path, np.arange(6000), vectors, queries=queries, index=IndexSettings(ks=[100]))
    manifest = Store.open(tmp_path).verify()
    assert manifest.index.engine == "ivf"
    assert manifest.ann["recall"] > 0.97
    assert max(point["width"] for point in manifest.ann["frontier"]) < 6000
