"""What every index promises, over every index, beside an oracle that sorts all scores."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vecall.errors import DataError, QueryError
from vecall.index.exact import ExactIndex
from vecall.index.files import load, save
from vecall.index.hnsw import HnswIndex

SHAPES = [(1, 1), (1, 128), (2, 3), (40, 1), (300, 128), (700, 16)]


@pytest.fixture(params=[ExactIndex, HnswIndex], ids=["exact", "hnsw"])
def build(request):
    return request.param.build


def some_vectors(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def oracle(vectors, queries, k, allowed=None):
    """Rows and scores [B, k], by a sort of all of them."""
    stored = vectors.astype(np.float16).astype(np.float32)
    rows = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    candidates = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    for b, query in enumerate(queries):
        all_scores = {row: np.dot(stored[row], query) for row in candidates.tolist()}
        best = sorted(all_scores, key=lambda row: (-all_scores[row], row))[:k]
        rows[b, : len(best)], scores[b, : len(best)] = best, [all_scores[row] for row in best]
    return rows, scores


def assert_is(hits, expected):
    rows, scores = expected
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.scores, scores)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_answers_are_the_oracles(build, n, dim):
    vectors, queries = some_vectors(n, dim), some_vectors(5, dim, seed=1)
    index = build(vectors)
    assert (index.size, index.dim) == (n, dim)
    for k in (1, n, n + 3):
        expected = oracle(vectors, queries, k)
        assert_is(index.search_exact(queries, k), expected)
        assert_is(index.search(queries, k, effort=n), expected)
        assert_is(index.search(queries[:1], k, effort=n), oracle(vectors, queries[:1], k))


@pytest.mark.parametrize("effort", [None, 1, 10**6])
def test_more_than_there_are_gives_all(build, effort):
    index = build(some_vectors(30, 4))
    hits = index.search(some_vectors(3, 4, seed=1), 50, effort=effort)
    assert (np.sort(hits.rows[:, :30], axis=1) == np.arange(30)).all()
    assert (hits.rows[:, 30:] == -1).all()
    assert (hits.scores[:, 30:] == -np.inf).all()


def test_equal_vectors_stand_in_the_order_of_rows(build):
    vectors = np.tile(some_vectors(6, 7), (50, 1))  # row r and r + 6 are equal
    queries = some_vectors(4, 7, seed=1)
    index = build(vectors)
    for k in (1, 49, 51, 300):
        assert_is(index.search_exact(queries, k), oracle(vectors, queries, k))
        hits = index.search(queries, k)
        order = np.lexsort((hits.rows, -hits.scores), axis=-1)
        assert (order == np.arange(k)).all()
        assert all(len(set(line)) == k for line in hits.rows.tolist())
    assert_is(index.search(queries, 300), oracle(vectors, queries, 300))


def test_a_thousand_equal_vectors_are_all_found(build):
    """Worse than any catalogue: a graph over them falls apart, but k answers are still owed."""
    index = build(np.ones((1000, 8), dtype=np.float32))
    for k in (10, 200, 1000):
        hits = index.search(np.ones((2, 8), dtype=np.float32), k)
        assert (hits.scores == 8).all()
        assert all(len(set(line) - {-1}) == k for line in hits.rows.tolist())


def test_search_agrees_with_exact_search_to_the_bit(build):
    vectors, queries = some_vectors(2000, 24), some_vectors(40, 24, seed=1)
    index = build(vectors)
    hits, exact = index.search(queries, 20, effort=64), index.search_exact(queries, 2000)
    by_row = np.empty_like(exact.scores)
    np.put_along_axis(by_row, exact.rows, exact.scores, axis=1)
    np.testing.assert_array_equal(hits.scores, np.take_along_axis(by_row, hits.rows, axis=1))


@pytest.mark.parametrize("passing", [0.0, 0.01, 0.5, 1.0])
def test_only_allowed_rows_are_answers(build, passing):
    vectors, queries = some_vectors(500, 12), some_vectors(5, 12, seed=1)
    allowed = np.random.default_rng(2).random(500) < passing
    for k in (1, 20, 600):
        hits = build(vectors).search_exact(queries, k, allowed=allowed)
        assert_is(hits, oracle(vectors, queries, k, allowed))


def test_no_queries_no_answers(build):
    index = build(some_vectors(20, 3))
    none = np.empty((0, 3), dtype=np.float32)
    for hits in (index.search(none, 4), index.search_exact(none, 4)):
        assert hits.rows.shape == hits.scores.shape == (0, 4)


@pytest.mark.parametrize("n", [1, 2500])
def test_a_saved_index_answers_as_before(build, tmp_path, n):
    vectors, queries = some_vectors(n, 9), some_vectors(10, 9, seed=1)
    index = build(vectors)
    save(index, tmp_path / "index.faiss")
    again = load(tmp_path / "index.faiss")
    assert type(again) is type(index)
    for search in ("search", "search_exact"):
        before, after = getattr(index, search)(queries, 30), getattr(again, search)(queries, 30)
        assert_is(after, (before.rows, before.scores))
    np.testing.assert_array_equal(again.vectors(np.array([n - 1, 0])), index.vectors(np.array([n - 1, 0])))


def test_threads_get_the_answers_of_one(build):
    index = build(some_vectors(3000, 16))
    queries = some_vectors(64, 16, seed=1)
    jobs = [(b, 5 + b % 7, 20 + b) for b in range(64)]  # each with an effort of its own

    def ask(job):
        b, k, effort = job
        hits = index.search(queries[b : b + 1], k, effort=effort)
        return hits.rows.tolist(), hits.scores.tolist()

    alone = [ask(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, jobs * 5)) == alone * 5


def test_the_callers_arrays_stay_as_they_are(build):
    vectors, queries, allowed = some_vectors(300, 5), some_vectors(3, 5, seed=1), np.arange(300) % 2 == 0
    for array in (vectors, queries, allowed):
        array.flags.writeable = False
    index = build(vectors)
    index.search(queries, 7)
    index.search_exact(queries, 7, allowed=allowed)
    got = index.vectors(np.arange(3))
    got[:] = 0  # a copy: the index does not change either
    np.testing.assert_array_equal(index.vectors(np.arange(300)), vectors.astype(np.float16))


def test_views_of_other_arrays_will_do(build):
    vectors, queries = some_vectors(300, 10)[::2, ::2], some_vectors(8, 10, seed=1)[::2, ::2]
    assert_is(build(vectors).search(queries, 3, effort=150), oracle(vectors, queries, 3))


@pytest.mark.parametrize(
    ("queries", "k"),
    [
        (np.full((1, 4), np.nan, np.float32), 1),
        (np.array([[0, 0, 0, np.inf]], np.float32), 1),
        (np.full((1, 4), 3e38, np.float32), 1),  # its scores would not be finite
        (np.ones((1, 5), np.float32), 1),
        (np.ones(4, np.float32), 1),
        (np.ones((1, 4), np.float64), 1),
        (np.ones((1, 4), np.float32), 0),
    ],
)
def test_bad_queries_are_refused(build, queries, k):
    index = build(some_vectors(50, 4))
    for search in (index.search, index.search_exact):
        with pytest.raises(QueryError, match="expect"):
            search(queries, k)


def test_the_largest_queries_and_vectors_have_finite_scores(build):
    index = build(np.array([[65504.0] * 64, [-65504.0] * 64], dtype=np.float32))
    hits = index.search(np.full((1, 64), 1e29, dtype=np.float32), 2)
    assert hits.rows.tolist() == [[0, 1]]
    assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("allowed", [np.ones(49, bool), np.ones(50, np.int64), np.ones((50, 1), bool)])
def test_a_mask_that_does_not_fit_is_refused(build, allowed):
    with pytest.raises(QueryError, match=r"bool \[50\]"):
        build(some_vectors(50, 4)).search_exact(some_vectors(1, 4), 3, allowed=allowed)


@pytest.mark.parametrize("row", [-1, 50])
def test_vectors_of_rows_that_are_not_there_are_refused(build, row):
    with pytest.raises(QueryError, match="0 to 49"):
        build(some_vectors(50, 4)).vectors(np.array([3, row]))


@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 4), np.float32),
        np.empty((4, 0), np.float32),
        np.ones(4, np.float32),
        np.ones((4, 4), np.float64),
        np.ones((4, 4), np.int64),
    ],
)
def test_arrays_of_another_kind_are_refused(build, vectors):
    with pytest.raises(DataError, match=r"expected float32 \[N, D\]"):
        build(vectors)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 65520.0])
def test_numbers_that_cannot_be_stored_are_refused(build, number):
    vectors = some_vectors(50, 4)
    vectors[31, 2] = number
    with pytest.raises(DataError, match="item vector 31"):
        build(vectors)
