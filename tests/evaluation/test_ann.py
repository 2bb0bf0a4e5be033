import json

import numpy as np
import pytest

from vecall.errors import ConfigError
from vecall.evaluation.ann import benchmark_ann
from vecall.index.base import Hits, SearchParams

rng = np.random.default_rng(0)
VECTORS = rng.standard_normal((60, 8)).astype(np.float16).astype(np.float32)
QUERIES = rng.standard_normal((25, 8)).astype(np.float32)


class ScanWith:
    """An exact scan whose `search` answer goes through `fault` first."""

    def __init__(self, fault=lambda rows: rows, stored=VECTORS):
        self.fault, self.stored, self.searches, self.efforts = fault, stored, 0, set()

    size = property(lambda self: len(self.stored))
    dim = property(lambda self: self.stored.shape[1])

    def search(self, queries, k, *, search_params=None, allowed=None):
        self.searches += 1
        self.efforts.add(search_params)
        hits = self.search_exact(queries, k)
        return Hits(self.fault(hits.rows.copy()), hits.scores)

    def search_exact(self, queries, k, *, allowed=None):
        scores = queries @ self.stored.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        rows = np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1)
        return Hits(rows, np.take_along_axis(scores, np.maximum(rows, 0), axis=1))

    def get_vectors(self, rows):
        return self.stored[rows]

    def score(self, query, rows):
        return (self.stored[rows] * query).sum(axis=1)


def lose_the_last_half(rows):
    rows[:, rows.shape[1] // 2 :] = -1
    return rows


def repeat_the_best(rows):
    rows[:] = rows[:, :1]
    return rows


def test_an_exact_index_finds_all_and_is_searched_one_by_one():
    index = ScanWith()
    report = benchmark_ann(index, QUERIES, 10, engine="scan", search_params=SearchParams(32, 90), repeats=2)
    assert (report.recall, report.recall_ci95) == (1.0, 0.0)
    assert index.searches == 20 + 2 * len(QUERIES)
    assert index.efforts == {SearchParams(32, 90)}
    assert (report.effort, benchmark_ann(index, QUERIES, 10, engine="scan", repeats=1).effort) == ("32 × 90", None)
    assert 0 < report.p50_ms <= report.p99_ms
    assert {"k", "recall", "p50_ms", "p99_ms", "engine"} <= json.loads(json.dumps(report.as_json())).keys()


@pytest.mark.parametrize(("fault", "recall"), [(lose_the_last_half, 0.5), (repeat_the_best, 0.1)])
def test_planted_faults_are_seen(fault, recall):
    assert benchmark_ann(ScanWith(fault), QUERIES, 10, engine="scan", repeats=1).recall == pytest.approx(recall)


def test_the_interval_is_over_queries():
    missed = iter([True, False] * 100)

    def every_other(rows):
        return rows * 0 - 1 if next(missed) else rows

    report = benchmark_ann(ScanWith(every_other), QUERIES[:20], 10, engine="scan", repeats=1)
    assert report.recall == pytest.approx(0.5)
    assert report.recall_ci95 == pytest.approx(1.96 * np.std([0, 1] * 10, ddof=1) / np.sqrt(20))


def test_another_row_with_the_score_of_place_k_is_right():
    twins = np.repeat(VECTORS[:20], 3, axis=0)  # rows 3i, 3i + 1, 3i + 2 are equal

    def other_twin(rows):
        rows[:, -1] = rows[:, -1] // 3 * 3 + 2  # k = 4: the exact answer ends on the first of three twins
        return rows

    assert benchmark_ann(ScanWith(other_twin, twins), QUERIES, 4, engine="scan", repeats=1).recall == 1.0


def test_k_beyond_the_index_is_measured_by_what_there_is():
    assert benchmark_ann(ScanWith(), QUERIES, 100, engine="scan", repeats=1).recall == 1.0


def test_one_query_has_no_interval_and_none_measures_nothing():
    report = benchmark_ann(ScanWith(), QUERIES[:1], 10, engine="scan")
    assert (report.recall, report.recall_ci95, report.queries) == (1.0, None, 1)
    with pytest.raises(ConfigError, match="at least 1 query"):
        benchmark_ann(ScanWith(), QUERIES[:0], 10, engine="scan")
