import json

import numpy as np
import pytest

from vecall.errors import ConfigError
from vecall.evaluation.ann import benchmark_ann
from vecall.index.base import SearchParams
from vecall.index.hits import Hits

rng = np.random.default_rng(0)
VECTORS = rng.standard_normal((60, 8)).astype(np.float16).astype(np.float32)
QUERIES = rng.standard_normal((25, 8)).astype(np.float32)


class FaultyIndex:
    """Exact index whose `search` passes its answer through `fault`, and which records its searches."""

    def __init__(self, fault=lambda rows: rows, stored=VECTORS):
        self.fault, self.stored, self.search_count, self.search_params = fault, stored, 0, set()

    vectors = property(lambda self: self)
    size = property(lambda self: len(self.stored))
    dim = property(lambda self: self.stored.shape[1])

    def search(self, queries, k, *, search_params=None, allowed=None):
        self.search_count += 1
        self.search_params.add(search_params)
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


def drop_second_half(rows):
    rows[:, rows.shape[1] // 2 :] = -1
    return rows


def repeat_best_row(rows):
    rows[:] = rows[:, :1]
    return rows


def test_exact_index_has_full_recall_and_is_searched_one_query_at_a_time():
    index = FaultyIndex()
    result = benchmark_ann(index, QUERIES, 10, engine="scan", search_params=SearchParams(32, 90), repeats=2)
    assert (result.recall, result.recall_ci95) == (1.0, 0.0)
    assert index.search_count == 20 + 2 * len(QUERIES)
    assert index.search_params == {SearchParams(32, 90)}
    assert (result.effort, benchmark_ann(index, QUERIES, 10, engine="scan", repeats=1).effort) == ("32 × 90", None)
    assert 0 < result.p50_ms <= result.p99_ms
    assert {"k", "recall", "p50_ms", "p99_ms", "engine"} <= json.loads(json.dumps(result.as_json())).keys()


@pytest.mark.parametrize(("fault", "recall"), [(drop_second_half, 0.5), (repeat_best_row, 0.1)])
def test_faults_lower_the_recall(fault, recall):
    assert benchmark_ann(FaultyIndex(fault), QUERIES, 10, engine="scan", repeats=1).recall == pytest.approx(recall)


def test_confidence_interval_is_over_queries():
    is_missed = iter([True, False] * 100)

    def drop_every_other_answer(rows):
        return rows * 0 - 1 if next(is_missed) else rows

    result = benchmark_ann(FaultyIndex(drop_every_other_answer), QUERIES[:20], 10, engine="scan", repeats=1)
    assert result.recall == pytest.approx(0.5)
    assert result.recall_ci95 == pytest.approx(1.96 * np.std([0, 1] * 10, ddof=1) / np.sqrt(20))


def test_another_row_with_the_kth_score_counts_as_correct():
    twins = np.repeat(VECTORS[:20], 3, axis=0)  # rows 3i, 3i + 1, 3i + 2 are equal

    def return_other_twin(rows):
        rows[:, -1] = rows[:, -1] // 3 * 3 + 2  # k = 4: the exact answer ends on the first of three twins
        return rows

    assert benchmark_ann(FaultyIndex(return_other_twin, twins), QUERIES, 4, engine="scan", repeats=1).recall == 1.0


def test_recall_for_k_beyond_the_index_size_is_relative_to_the_index_size():
    assert benchmark_ann(FaultyIndex(), QUERIES, 100, engine="scan", repeats=1).recall == 1.0


def test_single_query_has_no_interval_and_no_query_is_an_error():
    result = benchmark_ann(FaultyIndex(), QUERIES[:1], 10, engine="scan")
    assert (result.recall, result.recall_ci95, result.queries) == (1.0, None, 1)
    with pytest.raises(ConfigError, match="at least 1 query"):
        benchmark_ann(FaultyIndex(), QUERIES[:0], 10, engine="scan")
