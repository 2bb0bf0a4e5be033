import logging

import numpy as np
import pytest

from vecall.index.base import Hits
from vecall.index.effort import EffortCurve, find_effort, overlap
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex


def unit(seed, n, dim=16):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("k", "effort"),
    [
        (1, 40),
        (10, 40),
        (15, 60),  # half way between 40 and 80
        (12, 48),
        (20, 80),
        (25, 91),  # 80 + 5/30 · 64 = 90.67, rounded up
        (50, 144),
        (100, 288),  # in proportion beyond
    ],
)
def test_the_curve_by_hand(k, effort):
    assert EffortCurve([(10, 40), (20, 80), (50, 144)]).at(k) == effort


def test_the_curve_is_never_below_k():
    assert EffortCurve([(10, 20)]).at(30) == 60
    assert EffortCurve([(10, 2), (20, 4)]).at(15) == 15
    assert EffortCurve([(10, 2)]).at(3) == 3
    assert EffortCurve([(10, 2)]).at(100) == 100


def test_overlap_by_hand():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, -1, 9], [8, 7, 6, 5]])
    assert overlap(found, truth).tolist() == [0.5, 1.0]


class Planted:
    """An index that finds a known share of the right rows: effort / `whole`, for every query or on average."""

    def __init__(self, whole, *, spread=0.0, size=1000):
        self.size, self.whole, self.spread, self.efforts = size, whole, spread, []

    def search_exact(self, queries, k, *, allowed=None):
        rows = np.tile(np.arange(k), (len(queries), 1))
        return Hits(rows, -rows.astype(np.float32))

    def search(self, queries, k, *, effort=None):
        self.efforts.append(effort)
        hits = self.search_exact(queries, k)
        for place, row in enumerate(hits.rows):
            luck = self.spread * (1 if place % 2 else -1)
            row[round(k * min(1.0, max(0.0, effort / self.whole + luck))) :] = -1
        return hits


def test_the_least_effort_that_reaches_the_target():
    index = Planted(400)
    (point,) = find_effort(index, np.zeros((50, 2), np.float32), [100], 0.9)
    assert (point.k, point.recall_ci95) == (100, pytest.approx(0, abs=1e-9))
    assert index.efforts == sorted(index.efforts)
    reached = [effort >= 0.9 * 400 for effort in index.efforts]
    assert reached == [False] * (len(reached) - 1) + [True]
    assert point.effort == index.efforts[-1] <= 1.25 * 0.9 * 400 + 1
    assert point.recall == pytest.approx(min(1, point.effort / 400), abs=0.01)


def test_the_target_is_reached_with_confidence():
    """Half of the queries lie far below the mean: of four of them that may be chance, of 4,000 it may not."""
    unsure, sure = Planted(400, spread=0.08), Planted(400, spread=0.08)
    (few,) = find_effort(unsure, np.zeros((4, 2), np.float32), [100], 0.76)
    (many,) = find_effort(sure, np.zeros((4000, 2), np.float32), [100], 0.76)
    assert few.effort > many.effort
    assert few.recall - few.recall_ci95 >= 0.76
    assert 0.76 <= many.recall - many.recall_ci95 < few.recall - few.recall_ci95


def test_what_cannot_be_reached_ends_with_the_whole_pool_and_is_said(caplog):
    index = Planted(5000)
    with caplog.at_level(logging.WARNING):
        (point,) = find_effort(index, np.zeros((10, 2), np.float32), [100], 0.9)
    assert point.effort == index.size
    assert "ANN recall@100 stays at 0.2000, below the target 0.90" in caplog.text


def test_depths_beyond_the_pool_are_left_out():
    queries = np.zeros((4, 2), np.float32)
    assert [point.k for point in find_effort(Planted(9, size=50), queries, [10, 50, 51], 0.9)] == [10, 50]
    assert [point.k for point in find_effort(Planted(9, size=5), queries, [10, 50], 0.9)] == [5]


def test_a_graph_searched_with_what_was_found_reaches_the_target():
    vectors, queries, others = unit(0, 3000), unit(1, 300), unit(2, 300)
    index = HnswIndex.build(vectors, m=8, ef_construction=40, threads=1)
    points = find_effort(index, queries, [10, 50], 0.95)
    curve = EffortCurve([(point.k, point.effort) for point in points])
    assert [point.effort for point in points] == sorted(point.effort for point in points)
    for k in (10, 30, 50):
        truth = ExactIndex.build(vectors).search(others, k).rows
        assert overlap(index.search(others, k, effort=curve.at(k)).rows, truth).mean() > 0.94
