"""Contract of `vecall.index.base.Index`: one suite over every engine, compared with an oracle that sorts all scores."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import faiss
import numpy as np
import pytest
from support.fake_engine import FakeServer, make_engine
from support.vectors import random_vectors

from vecall.errors import DataError, QueryError
from vecall.index.base import SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.engine import BuildContext, ReleaseDraft
from vecall.index.engines import ENGINES
from vecall.index.exact import ExactIndex
from vecall.index.faiss_adapter import use_faiss_threads
from vecall.index.hnsw import HnswIndex
from vecall.index.index_info import IndexInfo
from vecall.index.ivf import IvfPqIndex
from vecall.index.kernels import compute_inner_products
from vecall.index.settings import IndexSettings

SHAPES = [(1, 1), (1, 128), (2, 3), (15, 2), (17, 5), (40, 1), (300, 128), (700, 17)]
NARROW, FULL = SearchParams(3, 8), SearchParams(10**6, 10**6)
REMOTE_ENGINE = make_engine(FakeServer())
BUILDERS = {"exact": ExactIndex.build, "hnsw": HnswIndex.build, "ivf": partial(IvfPqIndex.build, nlist=8)}


@pytest.fixture(params=[*BUILDERS, "remote", pytest.param("milvus", marks=pytest.mark.milvus)])
def engine(request):
    return request.param


@pytest.fixture
def build(engine, request):
    if engine == "remote":
        return partial(build_remote, directory=request.getfixturevalue("tmp_path"))
    return BUILDERS[engine] if engine in BUILDERS else request.getfixturevalue("build_on_milvus_server")


def build_remote(vectors, *, directory):
    """Build an index on a fake server."""
    index = REMOTE_ENGINE.build(vectors, BuildContext(IndexSettings(), ReleaseDraft(directory))).index
    (directory / REMOTE_ENGINE.file).unlink()  # it stays mapped; the next index is written to another file
    return index


def save_and_open(index, engine, directory):
    """Save an index as a release does, and open it by what the manifest says."""
    opener = REMOTE_ENGINE if engine == "remote" else ENGINES[engine]
    parameters = {"collection": index._finder.collection} if opener.is_remote else {}
    index.save(directory / opener.file)
    return opener.open(directory / opener.file, IndexInfo(engine=opener.name, parameters=parameters))


def oracle(vectors, queries, k, mask=None):
    """Rows and scores [B, k] of the exact result: each row is scored alone, and all scores are sorted."""
    stored = np.ascontiguousarray(vectors).astype(np.float16)
    rows = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    candidates = np.arange(len(stored)) if mask is None else np.flatnonzero(mask)
    for b, query in enumerate(queries):
        all_scores = np.array([compute_inner_products(stored[row : row + 1], query)[0] for row in range(len(stored))])
        assert_within_rounding_error(all_scores, stored.astype(np.float64), query.astype(np.float64))
        best = candidates[np.lexsort((candidates, -all_scores[candidates]))][:k]
        rows[b, : len(best)], scores[b, : len(best)] = best, all_scores[best]
    return rows, scores


def assert_within_rounding_error(scores, vectors, query):
    """Error bound of a float32 sum of D products in any order (Higham 2002, section 3.1)."""
    bound = 1.01 * len(query) * 2.0**-24 * (np.abs(vectors) @ np.abs(query))
    assert (np.abs(scores - vectors @ query) <= bound + 2.0**-140).all()


def assert_hits(hits, expected):
    rows, scores = expected
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.scores, scores)


def assert_same(hits, other_hits):
    assert_hits(hits, (other_hits.rows, other_hits.scores))


def count_distinct_rows(hits):
    """Number of distinct rows of each query, without padding."""
    return [len(set(rows) - {-1}) for rows in hits.rows.tolist()]


def random_bitmap(n, selectivity, seed=2):
    return Bitmap.from_mask(np.random.default_rng(seed).random(n) < selectivity)


@pytest.mark.parametrize(("n", "dim"), SHAPES)
def test_full_search_returns_the_oracles_hits(build, n, dim):
    vectors, queries = random_vectors(n, dim), random_vectors(5, dim, seed=1)
    index = build(vectors)
    assert (index.vectors.size, index.vectors.dim) == (n, dim)
    for k in {1, min(n, 20), n, n + 3}:
        rows, scores = oracle(vectors, queries, k)
        assert_hits(index.vectors.search_exact(queries, k), (rows, scores))
        assert_hits(index.search(queries, k, search_params=FULL), (rows, scores))
        assert_hits(index.search(queries[:1], k, search_params=FULL), (rows[:1], scores[:1]))


@pytest.mark.parametrize(("n", "dim"), [(1, 3), (17, 1), (300, 17)])
@pytest.mark.parametrize("selectivity", [0.0, 0.02, 0.5, 1.0])
def test_full_search_under_a_bitmap_returns_the_oracles_hits(build, n, dim, selectivity):
    vectors, queries = random_vectors(n, dim), random_vectors(5, dim, seed=1)
    index = build(vectors)
    random_mask = np.random.default_rng(2).random(n) < selectivity
    single_row_mask = np.arange(n) == n // 2
    for mask in (random_mask, single_row_mask):
        allowed = Bitmap.from_mask(mask)
        for k in (1, 20, n + 3):
            rows, scores = oracle(vectors, queries, k, mask)
            assert_hits(index.vectors.search_exact(queries, k, allowed=allowed), (rows, scores))
            assert_hits(index.vectors.search_exact(queries[:1], k, allowed=allowed), (rows[:1], scores[:1]))
            assert_hits(index.search(queries, k, search_params=FULL, allowed=allowed), (rows, scores))


def test_exact_search_returns_the_hits_of_the_exact_index(build, clustered):
    vectors, queries = clustered
    assert_same(build(vectors).vectors.search_exact(queries, 50), ExactIndex.build(vectors).search(queries, 50))


@pytest.mark.parametrize("search_params", [None, NARROW, SearchParams(40, 100)])
@pytest.mark.parametrize("selectivity", [0.0, 0.003, 0.05, 0.5, 1.0])
def test_any_search_fills_k_hits_with_allowed_rows_and_exact_scores(build, search_params, selectivity):
    vectors, queries = random_vectors(1200, 9), random_vectors(10, 9, seed=1)
    index, allowed = build(vectors), random_bitmap(1200, selectivity)
    exact = index.vectors.search_exact(queries, 1200, allowed=allowed)
    for k in (1, 30, 400):
        hits = index.search(queries, k, search_params=search_params, allowed=allowed)
        count = min(k, allowed.count)
        assert (hits.rows[:, count:] == -1).all()
        assert (hits.scores[:, count:] == -np.inf).all()
        rows, scores = hits.rows[:, :count], hits.scores[:, :count]
        assert all(len(set(query_rows)) == count for query_rows in rows.tolist())
        assert allowed.contains(rows).all()
        # The scores are bit-equal to those of the exact search, and the hits are in its order.
        positions = np.array([np.flatnonzero(np.isin(a, b)) for a, b in zip(exact.rows, rows, strict=True)])
        np.testing.assert_array_equal(rows, np.take_along_axis(exact.rows, positions, 1))
        np.testing.assert_array_equal(scores, np.take_along_axis(exact.scores, positions, 1))


@pytest.mark.parametrize("search_params", [NARROW, SearchParams(40, 100), SearchParams(4, 100, spread=0.9)])
@pytest.mark.parametrize("region", ["random", "near", "far", "none", "all"])
def test_adapted_search_fills_k_hits_with_allowed_rows(build, search_params, region):
    """Wherever the allowed rows lie, and however many of the hits are to be dropped afterwards."""
    vectors, queries = random_vectors(1200, 9), random_vectors(6, 9, seed=1)
    queries[0] = 0
    index = build(vectors)
    for query in queries:
        ranking = np.argsort(-(vectors @ query), kind="stable")
        row_lists = {"near": ranking[:300], "far": ranking[-300:], "none": ranking[:0], "all": ranking}
        mask = np.isin(np.arange(1200), row_lists.get(region, np.arange(0, 1200, 4)))
        allowed = Bitmap.from_mask(mask)
        profile = index.profile_filter(allowed)
        assert (profile.allowed.count, profile.pass_rate) == (mask.sum(), mask.mean())
        for k, n_skipped in ((1, 0), (30, 0), (150, 120), (400, 0)):
            request = SearchRequest(query, k, n_skipped, allowed.count, profile)
            adapted = index.adapt(request, search_params)
            if adapted is None:
                continue
            params = adapted.search_params
            hits = index.search(query[None], k, search_params=params, allowed=allowed, lists=adapted.lists)
            count = min(k, allowed.count)
            assert (hits.rows[0, count:] == -1).all()
            assert len(np.unique(hits.rows[0, :count])) == count
            assert allowed.contains(hits.rows[0, :count]).all()
            np.testing.assert_array_equal(hits.scores[0, :count], index.vectors.score(query, hits.rows[0, :count]))


def test_search_without_a_filter_is_adapted_too(build):
    index, query = build(random_vectors(1200, 9)), random_vectors(1, 9, seed=1)
    adapted = index.adapt(SearchRequest(query[0], 30, 0, 1200, None), SearchParams(4, 100, spread=0.9))
    hits = index.search(query, 30, search_params=adapted.search_params, lists=adapted.lists)
    assert count_distinct_rows(hits) == [30]
    assert adapted.search_params.rerank_depth == 100


@pytest.mark.parametrize("search_params", [None, NARROW, SearchParams(40, 100), SearchParams(4, 100, spread=0.9)])
@pytest.mark.parametrize("selectivity", [None, 0.3])
def test_single_query_gets_the_hits_it_gets_in_a_batch(engine, build, search_params, selectivity):
    """Half of the vectors have an equal one, so that ties are cut at k."""
    vectors = random_vectors(1500, 13)
    vectors[500:1000] = vectors[:500]
    index, queries = build(vectors), random_vectors(150, 13, seed=1)
    allowed = None if selectivity is None else random_bitmap(1500, selectivity)
    for search in (partial(index.search, search_params=search_params), index.vectors.search_exact):
        with use_faiss_threads(2):
            batch = search(queries, 25, allowed=allowed)
        singles = [search(queries[b : b + 1], 25, allowed=allowed) for b in range(150)]
        rows = np.concatenate([hits.rows for hits in singles])
        scores = np.concatenate([hits.scores for hits in singles])
        if engine == "milvus" and search != index.vectors.search_exact:
            # The server searches several queries otherwise, and returns any of the rows that tie at the end.
            assert (batch.scores == scores).mean() > 0.95
        else:
            assert_hits(batch, (rows, scores))


@pytest.mark.parametrize("search_params", [None, SearchParams(1, 1), FULL])
def test_k_beyond_the_size_returns_all_rows_and_padding(build, search_params):
    index = build(random_vectors(30, 4))
    hits = index.search(random_vectors(3, 4, seed=1), 50, search_params=search_params)
    assert (np.sort(hits.rows[:, :30], axis=1) == np.arange(30)).all()
    assert (hits.rows[:, 30:] == -1).all()
    assert (hits.scores[:, 30:] == -np.inf).all()


@pytest.mark.parametrize("dim", [7, 33])
def test_equal_vectors_have_equal_scores_and_ascending_rows(build, dim):
    vectors = np.tile(random_vectors(6, dim), (50, 1))  # rows r and r + 6 are equal
    queries = random_vectors(4, dim, seed=1)
    index = build(vectors)
    for k in (1, 49, 51, 300):
        assert_hits(index.vectors.search_exact(queries, k), oracle(vectors, queries, k))
        hits = index.search(queries, k)
        order = np.lexsort((hits.rows, -hits.scores), axis=-1)
        assert (order == np.arange(k)).all()
        assert all(len(set(rows)) == k for rows in hits.rows.tolist())
        for rows, scores in zip(hits.rows, hits.scores, strict=True):
            assert len(set(zip((rows % 6).tolist(), scores.tolist(), strict=True))) == len(set((rows % 6).tolist()))
    assert_hits(index.search(queries, 300), oracle(vectors, queries, 300))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_thousand_equal_vectors_are_all_found(build, value):
    """A graph over them is disconnected, but the search must return k hits."""
    index = build(np.full((1000, 8), value, dtype=np.float32))
    allowed = random_bitmap(1000, 0.3)
    queries = np.ones((2, 8), dtype=np.float32)
    for k in (10, 200, 1000):
        hits = index.search(queries, k)
        assert (hits.scores == 8 * value).all()
        assert count_distinct_rows(hits) == [k, k]
        for search_params in (None, SearchParams(4, 60, spread=0.9)):
            hits = index.search(queries, k, search_params=search_params, allowed=allowed)
            assert count_distinct_rows(hits) == [min(k, allowed.count)] * 2


def test_query_of_zeros_gets_k_hits_of_score_zero(build):
    index = build(random_vectors(1000, 8))
    for search_params in (None, SearchParams(4, 60, spread=0.9)):
        hits = index.search(np.zeros((2, 8), dtype=np.float32), 30, search_params=search_params)
        assert (hits.scores == 0).all()
        assert count_distinct_rows(hits) == [30, 30]


def test_empty_batch_gives_empty_hits(build):
    index = build(random_vectors(20, 3))
    queries = np.empty((0, 3), dtype=np.float32)
    for allowed in (None, random_bitmap(20, 0.5)):
        for hits in (
            index.search(queries, 4, allowed=allowed),
            index.vectors.search_exact(queries, 4, allowed=allowed),
        ):
            assert hits.rows.shape == hits.scores.shape == (0, 4)


@pytest.mark.parametrize("n", [1, 2500])
def test_loaded_index_returns_the_hits_of_the_saved_one(engine, build, tmp_path, n):
    vectors, queries, bitmap = random_vectors(n, 9), random_vectors(10, 9, seed=1), random_bitmap(n, 0.4)
    saved = build(vectors)
    loaded = save_and_open(saved, engine, tmp_path)
    assert type(loaded) is type(saved)
    assert (loaded.vectors.size, loaded.vectors.dim) == (n, 9)
    for allowed in (None, bitmap):
        assert_same(*(index.search(queries, 30, allowed=allowed) for index in (loaded, saved)))
        assert_same(
            loaded.vectors.search_exact(queries, 30, allowed=allowed),
            saved.vectors.search_exact(queries, 30, allowed=allowed),
        )
    assert_same(*(index.search(queries, 30, search_params=SearchParams(2, 40)) for index in (loaded, saved)))
    rows = np.array([n - 1, 0])
    np.testing.assert_array_equal(loaded.vectors.get_vectors(rows), saved.vectors.get_vectors(rows))


def test_half_and_single_precision_build_the_same_index(engine, build, tmp_path):
    if engine in ("hnsw", "ivf"):
        build = partial(build, threads=1)
    vectors = random_vectors(600, 7)
    files = []
    for values in (vectors, vectors.astype(np.float16), vectors.astype(np.float16).astype(np.float32)):
        build(values).save(tmp_path / "index")
        files.append((tmp_path / "index").read_bytes())
        (tmp_path / "index").unlink()
    assert files[0] == files[1] == files[2]


def test_concurrent_searches_get_the_hits_of_sequential_ones(engine, build):
    index = build(random_vectors(3000, 16))
    queries = random_vectors(64, 16, seed=1)
    bitmaps = [None, random_bitmap(3000, 0.3), random_bitmap(3000, 0.6, seed=3)]
    jobs = [(b, 5 + b % 7, SearchParams(2 + b, 20 + b), bitmaps[b % 3]) for b in range(64)]  # all parameters differ

    def run(job):
        b, k, search_params, allowed = job
        hits = index.search(queries[b : b + 1], k, search_params=search_params, allowed=allowed)
        return hits.rows.tolist(), hits.scores.tolist()

    sequential = [run(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        concurrent = list(pool.map(run, jobs * 5))
    if engine == "milvus":  # the server joins searches that wait, whose widths differ, to one
        assert np.mean([a == b for a, b in zip(concurrent, sequential * 5, strict=True)]) > 0.8
    else:
        assert concurrent == sequential * 5


def test_thread_count_of_faiss_is_restored(engine, build, clustered):
    if engine in ("hnsw", "ivf"):
        build = partial(build, threads=1)
    vectors, queries = clustered
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        index = build(vectors[:2000])
        index.search(queries[:1], 5)
        index.search(queries, 5)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def test_index_and_callers_arrays_do_not_change_each_other(build):
    vectors, queries, allowed = random_vectors(300, 5), random_vectors(3, 5, seed=1), random_bitmap(300, 0.5)
    for array in (vectors, queries, allowed.bits):
        array.flags.writeable = False
    index = build(vectors)
    index.search(queries, 7)
    index.search(queries, 7, allowed=allowed)
    index.vectors.search_exact(queries, 7, allowed=allowed)
    returned = index.vectors.get_vectors(np.arange(3))
    returned[:] = 0  # a copy
    np.testing.assert_array_equal(index.vectors.get_vectors(np.arange(300)), vectors.astype(np.float16))
    overwritten = random_vectors(300, 5)
    index = build(overwritten)
    overwritten[:] = 0
    np.testing.assert_array_equal(index.vectors.get_vectors(np.arange(300)), vectors.astype(np.float16))


def test_non_contiguous_arrays_are_accepted(build):
    vectors, queries = random_vectors(300, 10)[::2, ::2], random_vectors(8, 10, seed=1)[::2, ::2]
    index, expected = build(vectors), oracle(vectors, np.ascontiguousarray(queries), 3)
    fortran_queries = np.asfortranarray(queries)
    narrow_hits = index.search(queries.copy(), 3, search_params=NARROW)
    assert_hits(index.search(queries, 3, search_params=FULL), expected)
    assert_same(index.search(queries, 3, search_params=NARROW), narrow_hits)
    assert_hits(index.vectors.search_exact(fortran_queries, 3), expected)
    assert_same(index.search(fortran_queries, 3, search_params=NARROW), narrow_hits)
    assert_hits(build(np.asfortranarray(vectors)).vectors.search_exact(queries, 3), expected)


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
def test_invalid_queries_are_refused(build, queries, k):
    index = build(random_vectors(50, 4))
    for search in (index.search, index.vectors.search_exact):
        with pytest.raises(QueryError, match="expect"):
            search(queries, k)


def test_largest_allowed_queries_and_vectors_have_finite_scores(build):
    index = build(np.array([[65504.0] * 64, [-65504.0] * 64] * 20, dtype=np.float32))
    for search_params in (FULL, SearchParams(1, 3), SearchParams(1, 3, spread=0.9)):
        hits = index.search(np.full((1, 64), 1e29, dtype=np.float32), 2, search_params=search_params)
        assert (hits.rows % 2 == 0).all()
        assert np.isfinite(hits.scores).all()


@pytest.mark.parametrize("size", [49, 51, 0])
def test_bitmap_of_another_size_is_refused(build, size):
    index = build(random_vectors(50, 4))
    for search in (index.search, index.vectors.search_exact):
        with pytest.raises(QueryError, match=f"over {size} rows; this index has 50"):
            search(random_vectors(1, 4), 3, allowed=Bitmap.full(size))


@pytest.mark.parametrize("row", [-1, 50])
def test_vectors_of_missing_rows_are_refused(build, row):
    with pytest.raises(QueryError, match="0 to 49"):
        build(random_vectors(50, 4)).vectors.get_vectors(np.array([3, row]))


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
def test_vectors_of_wrong_shape_or_type_are_refused(build, vectors):
    with pytest.raises(DataError, match=r"expected float32 or float16 \[N, D\]"):
        build(vectors)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0])
def test_values_beyond_half_precision_are_refused(build, value, dtype):
    with np.errstate(over="ignore"):
        vectors = random_vectors(50, 4).astype(dtype)
        vectors[31, 2] = value
    with pytest.raises(DataError, match="item vector 31"):
        build(vectors)
