"""What every index promises, over every index, beside an oracle that sorts all scores."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from vecall.errors import DataError, QueryError
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.faiss_adapter import use_faiss_threads
from vecall.index.hnsw import HnswIndex
from vecall.index.index_io import load_index, save_index
from vecall.index.ivf import IvfPqIndex
from vecall.index.kernels import compute_inner_products

SHAPES = [(1, 1), (1, 128), (2, 3), (15, 2), (17, 5), (40, 1), (300, 128), (700, 17)]
LITTLE, ALL = SearchParams(3, 8), SearchParams(10**6, 10**6)
BUILDERS = {"exact": ExactIndex.build, "hnsw": HnswIndex.build, "cells": partial(IvfPqIndex.build, nlist=8)}


@pytest.fixture(params=BUILDERS)
def build(request):
    return BUILDERS[request.param]


def some_vectors(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def oracle(vectors, queries, k, allowed=None):
    """Rows and scores [B, k]: each row is scored alone, and all scores are sorted."""
    stored = np.ascontiguousarray(vectors).astype(np.float16)
    rows = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    candidates = np.arange(len(stored)) if allowed is None else np.flatnonzero(allowed)
    for b, query in enumerate(queries):
        all_scores = np.array([compute_inner_products(stored[row : row + 1], query)[0] for row in range(len(stored))])
        assert_is_close(all_scores, stored.astype(np.float64), query.astype(np.float64))
        best = candidates[np.lexsort((candidates, -all_scores[candidates]))][:k]
        rows[b, : len(best)], scores[b, : len(best)] = best, all_scores[best]
    return rows, scores


def assert_is_close(scores, vectors, query):
    """A sum of D products of float32, in whatever order, is no further off (Higham 2002, section 3.1)."""
    bound = 1.01 * len(query) * 2.0**-24 * (np.abs(vectors) @ np.abs(query))
    assert (np.abs(scores - vectors @ query) <= bound + 2.0**-140).all()


def assert_is(hits, expected):
    rows, scores = expected
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.scores, scores)


def assert_same(hits, others):
    assert_is(hits, (others.rows, others.scores))


def some_bitmap(n, share, seed=2):
    return Bitmap.from_mask(np.random.default_rng(seed).random(n) < share)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_answers_are_the_oracles(build, n, dim):
    vectors, queries = some_vectors(n, dim), some_vectors(5, dim, seed=1)
    index = build(vectors)
    assert (index.size, index.dim) == (n, dim)
    for k in {1, min(n, 20), n, n + 3}:
        expected = oracle(vectors, queries, k)
        assert_is(index.search_exact(queries, k), expected)
        assert_is(index.search(queries, k, effort=ALL), expected)
        assert_is(index.search(queries[:1], k, effort=ALL), (expected[0][:1], expected[1][:1]))


@pytest.mark.parametrize(("n", "dim"), [(1, 3), (17, 1), (300, 17)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_answers_under_a_bitmap_are_the_oracles(build, n, dim, share):
    vectors, queries = some_vectors(n, dim), some_vectors(5, dim, seed=1)
    index = build(vectors)
    marked = np.random.default_rng(2).random(n) < share
    one = np.arange(n) == n // 2
    for mask in (marked, one):
        allowed = Bitmap.from_mask(mask)
        for k in (1, 20, n + 3):
            expected = oracle(vectors, queries, k, mask)
            assert_is(index.search_exact(queries, k, allowed=allowed), expected)
            assert_is(index.search_exact(queries[:1], k, allowed=allowed), (expected[0][:1], expected[1][:1]))
            assert_is(index.search(queries, k, effort=ALL, allowed=allowed), expected)


@pytest.mark.parametrize("effort", [None, LITTLE, SearchParams(40, 100)])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.05, 0.5, 1.0])
def test_whatever_the_effort_no_place_stays_empty_and_none_is_another_rows(build, effort, share):
    vectors, queries = some_vectors(1200, 9), some_vectors(10, 9, seed=1)
    index, allowed = build(vectors), some_bitmap(1200, share)
    exact = index.search_exact(queries, 1200, allowed=allowed)
    for k in (1, 30, 400):
        hits = index.search(queries, k, effort=effort, allowed=allowed)
        found = min(k, allowed.count)
        assert (hits.rows[:, found:] == -1).all()
        assert (hits.scores[:, found:] == -np.inf).all()
        assert all(len(set(line)) == found for line in hits.rows[:, :found].tolist())
        assert allowed.contains(hits.rows[:, :found]).all()
        # The scores are the exact search's, to the bit, and stand in its order.
        places = [np.flatnonzero(np.isin(a, b)) for a, b in zip(exact.rows, hits.rows[:, :found], strict=True)]
        np.testing.assert_array_equal(hits.rows[:, :found], np.take_along_axis(exact.rows, np.array(places), 1))
        np.testing.assert_array_equal(hits.scores[:, :found], np.take_along_axis(exact.scores, np.array(places), 1))


@pytest.mark.parametrize("effort", [None, LITTLE, SearchParams(40, 100)])
@pytest.mark.parametrize("share", [None, 0.3])
def test_one_query_is_answered_as_in_a_batch(build, effort, share):
    """Equal rows, too: they are cut at place k by nothing else than their number."""
    vectors = some_vectors(1500, 13)
    vectors[500:1000] = vectors[:500]
    index, queries = build(vectors), some_vectors(150, 13, seed=1)
    allowed = None if share is None else some_bitmap(1500, share)
    for search in (partial(index.search, effort=effort), index.search_exact):
        with use_faiss_threads(2):
            hits = search(queries, 25, allowed=allowed)
        alone = [search(queries[b : b + 1], 25, allowed=allowed) for b in range(150)]
        assert_is(hits, (np.concatenate([one.rows for one in alone]), np.concatenate([one.scores for one in alone])))


@pytest.mark.parametrize("effort", [None, SearchParams(1, 1), ALL])
def test_more_than_there_are_gives_all(build, effort):
    index = build(some_vectors(30, 4))
    hits = index.search(some_vectors(3, 4, seed=1), 50, effort=effort)
    assert (np.sort(hits.rows[:, :30], axis=1) == np.arange(30)).all()
    assert (hits.rows[:, 30:] == -1).all()
    assert (hits.scores[:, 30:] == -np.inf).all()


@pytest.mark.parametrize("dim", [7, 33])
def test_equal_vectors_have_equal_scores_and_stand_in_the_order_of_rows(build, dim):
    vectors = np.tile(some_vectors(6, dim), (50, 1))  # row r and r + 6 are equal
    queries = some_vectors(4, dim, seed=1)
    index = build(vectors)
    for k in (1, 49, 51, 300):
        assert_is(index.search_exact(queries, k), oracle(vectors, queries, k))
        hits = index.search(queries, k)
        order = np.lexsort((hits.rows, -hits.scores), axis=-1)
        assert (order == np.arange(k)).all()
        assert all(len(set(line)) == k for line in hits.rows.tolist())
        for rows, scores in zip(hits.rows, hits.scores, strict=True):
            assert len(set(zip((rows % 6).tolist(), scores.tolist(), strict=True))) == len(set((rows % 6).tolist()))
    assert_is(index.search(queries, 300), oracle(vectors, queries, 300))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_thousand_equal_vectors_are_all_found(build, value):
    """Worse than any catalogue: a graph over them falls apart, but k answers are still owed."""
    index = build(np.full((1000, 8), value, dtype=np.float32))
    allowed = some_bitmap(1000, 0.3)
    for k in (10, 200, 1000):
        hits = index.search(np.ones((2, 8), dtype=np.float32), k)
        assert (hits.scores == 8 * value).all()
        assert all(len(set(line) - {-1}) == k for line in hits.rows.tolist())
        hits = index.search(np.ones((2, 8), dtype=np.float32), k, allowed=allowed)
        assert all(len(set(line) - {-1}) == min(k, allowed.count) for line in hits.rows.tolist())


def test_a_query_of_zeros_is_answered(build):
    hits = build(some_vectors(1000, 8)).search(np.zeros((2, 8), dtype=np.float32), 30)
    assert (hits.scores == 0).all()
    assert all(len(set(line) - {-1}) == 30 for line in hits.rows.tolist())


def test_no_queries_no_answers(build):
    index = build(some_vectors(20, 3))
    none = np.empty((0, 3), dtype=np.float32)
    for allowed in (None, some_bitmap(20, 0.5)):
        for hits in (index.search(none, 4, allowed=allowed), index.search_exact(none, 4, allowed=allowed)):
            assert hits.rows.shape == hits.scores.shape == (0, 4)


@pytest.mark.parametrize("n", [1, 2500])
def test_a_saved_index_answers_as_before(build, tmp_path, n):
    vectors, queries, allowed = some_vectors(n, 9), some_vectors(10, 9, seed=1), some_bitmap(n, 0.4)
    index = build(vectors)
    save_index(index, tmp_path / "index.faiss")
    again = load_index(tmp_path / "index.faiss")
    assert type(again) is type(index)
    assert (again.size, again.dim) == (n, 9)
    for search in ("search", "search_exact"):
        for kept in (None, allowed):
            assert_same(*(getattr(one, search)(queries, 30, allowed=kept) for one in (again, index)))
    assert_same(*(one.search(queries, 30, effort=SearchParams(2, 40)) for one in (again, index)))
    np.testing.assert_array_equal(again.get_vectors(np.array([n - 1, 0])), index.vectors(np.array([n - 1, 0])))


@pytest.mark.parametrize("engine", BUILDERS)
def test_half_precision_and_single_build_the_same_index(engine, tmp_path):
    build = BUILDERS[engine] if engine == "exact" else partial(BUILDERS[engine], threads=1)
    vectors = some_vectors(600, 7)
    files = []
    for given in (vectors, vectors.astype(np.float16), vectors.astype(np.float16).astype(np.float32)):
        save_index(build(given), tmp_path / "index.faiss")
        files.append((tmp_path / "index.faiss").read_bytes())
    assert files[0] == files[1] == files[2]


def test_threads_get_the_answers_of_one(build):
    index = build(some_vectors(3000, 16))
    queries = some_vectors(64, 16, seed=1)
    bitmaps = [None, some_bitmap(3000, 0.3), some_bitmap(3000, 0.6, seed=3)]
    jobs = [(b, 5 + b % 7, SearchParams(2 + b, 20 + b), bitmaps[b % 3]) for b in range(64)]  # each with its own effort

    def ask(job):
        b, k, effort, allowed = job
        hits = index.search(queries[b : b + 1], k, effort=effort, allowed=allowed)
        return hits.rows.tolist(), hits.scores.tolist()

    alone = [ask(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, jobs * 5)) == alone * 5


def test_the_callers_arrays_stay_as_they_are(build):
    vectors, queries, allowed = some_vectors(300, 5), some_vectors(3, 5, seed=1), some_bitmap(300, 0.5)
    for array in (vectors, queries, allowed.bits):
        array.flags.writeable = False
    index = build(vectors)
    index.search(queries, 7)
    index.search(queries, 7, allowed=allowed)
    index.search_exact(queries, 7, allowed=allowed)
    got = index.vectors(np.arange(3))
    got[:] = 0  # a copy: the index does not change either
    np.testing.assert_array_equal(index.vectors(np.arange(300)), vectors.astype(np.float16))
    writable = some_vectors(300, 5)
    index = build(writable)
    writable[:] = 0
    np.testing.assert_array_equal(index.vectors(np.arange(300)), vectors.astype(np.float16))


def test_views_of_other_arrays_will_do(build):
    vectors, queries = some_vectors(300, 10)[::2, ::2], some_vectors(8, 10, seed=1)[::2, ::2]
    index, expected = build(vectors), oracle(vectors, np.ascontiguousarray(queries), 3)
    assert_is(index.search(queries, 3, effort=ALL), expected)
    assert_same(index.search(queries, 3, effort=LITTLE), index.search(queries.copy(), 3, effort=LITTLE))
    turned = np.asfortranarray(queries)
    assert_is(index.search_exact(turned, 3), expected)
    assert_same(index.search(turned, 3, effort=LITTLE), index.search(queries.copy(), 3, effort=LITTLE))
    assert_is(build(np.asfortranarray(vectors)).search_exact(queries, 3), expected)


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
    index = build(np.array([[65504.0] * 64, [-65504.0] * 64] * 20, dtype=np.float32))
    for effort in (ALL, SearchParams(1, 3)):
        hits = index.search(np.full((1, 64), 1e29, dtype=np.float32), 2, effort=effort)
        assert (hits.rows % 2 == 0).all()
        assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("size", [49, 51, 0])
def test_a_bitmap_that_does_not_fit_is_refused(build, size):
    index = build(some_vectors(50, 4))
    for search in (index.search, index.search_exact):
        with pytest.raises(QueryError, match=f"over {size} rows; this index has 50"):
            search(some_vectors(1, 4), 3, allowed=Bitmap.full(size))


@pytest.mark.parametrize("row", [-1, 50])
def test_vectors_of_rows_that_are_not_there_are_refused(build, row):
    with pytest.raises(QueryError, match="0 to 49"):
        build(some_vectors(50, 4)).vectors(np.array([3, row]))


@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 4), np.float32),
        np.empty((4, 0), np.float16),
        np.ones(4, np.float32),
        np.ones((4, 4), np.float64),
        np.ones((4, 4), np.int64),
    ],
)
def test_arrays_of_another_kind_are_refused(build, vectors):
    with pytest.raises(DataError, match=r"expected float32 or float16 \[N, D\]"):
        build(vectors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 65520.0])
def test_numbers_that_cannot_be_stored_are_refused(build, number, dtype):
    with np.errstate(over="ignore"):
        vectors = some_vectors(50, 4).astype(dtype)
        vectors[31, 2] = number
    with pytest.raises(DataError, match="item vector 31"):
        build(vectors)
