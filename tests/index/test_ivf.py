import tracemalloc

import faiss
import numpy as np
import pytest
from support.vectors import random_vectors

from vecall.index import coarse_quantizer, ivf
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.ivf import IvfPqIndex


@pytest.fixture(scope="module")
def index(clustered):
    return IvfPqIndex.build(clustered[0], nlist=128, threads=1)


def measure_ann_recall(index, queries, k, search_params):
    exact_rows = index.vectors.search_exact(queries, k).rows
    found_rows = index.search(queries, k, search_params=search_params).rows
    return recall_per_query(index.vectors, queries, found_rows, exact_rows).mean()


def assert_same(hits, other_hits):
    np.testing.assert_array_equal(hits.rows, other_hits.rows)
    np.testing.assert_array_equal(hits.scores, other_hits.scores)


def to_bytes(index):
    return faiss.serialize_index(index._faiss_index).tobytes()


def test_ann_recall_grows_with_nprobe_and_with_rerank_depth(clustered, index):
    by_nprobe = [measure_ann_recall(index, clustered[1], 10, SearchParams(nprobe, 200)) for nprobe in (1, 4, 32)]
    by_depth = [measure_ann_recall(index, clustered[1], 100, SearchParams(64, depth)) for depth in (100, 150, 300)]
    for recalls in (by_nprobe, by_depth):
        assert recalls == sorted(recalls)
        assert recalls[0] < recalls[-1]
        assert recalls[-1] >= 0.98


def test_scan_of_every_list_finds_the_exact_hits(clustered, index):
    """All rows but the one with the worst code are scored exactly."""
    params = SearchParams(128, 4999)
    assert_same(index.search(clustered[1], 400, search_params=params), index.vectors.search_exact(clustered[1], 400))
    allowed = Bitmap.from_mask(np.arange(5000) % 3 > 0)
    hits = index.search(clustered[1], 400, search_params=params, allowed=allowed)
    assert_same(hits, index.vectors.search_exact(clustered[1], 400, allowed=allowed))


def test_depth_is_raised_to_k_and_nprobe_limited_to_nlist(clustered, index):
    queries = clustered[1]
    assert_same(*(index.search(queries, 60, search_params=SearchParams(8, depth)) for depth in (0, 60)))
    assert_same(*(index.search(queries, 60, search_params=SearchParams(nprobe, 90)) for nprobe in (128, 10**6)))


def test_candidates_are_the_allowed_rows_of_the_nearest_lists(clustered, index):
    queries = clustered[1][:50]
    vectors = index.vectors.get_vectors(np.arange(5000))
    list_of = np.argmax(vectors @ index._centroids.T, axis=1)
    nearest_lists = np.argsort(-(queries @ index._centroids.T), axis=1)
    bitmap = Bitmap.from_mask(np.random.default_rng(1).random(5000) < 0.5)
    for nprobe in (1, 5):
        for allowed in (None, bitmap):
            rows = index.search_candidates(queries, 2000, SearchParams(nprobe, 2000), allowed)
            assert rows.shape == (50, 2000)
            for found, lists in zip(rows, nearest_lists[:, :nprobe], strict=True):
                expected = np.isin(list_of, lists)
                if allowed is not None:
                    expected &= allowed.to_mask()
                assert set(found[found >= 0].tolist()) == set(np.flatnonzero(expected).tolist())
                assert (np.diff((found >= 0).astype(int)) <= 0).all()  # padding is last


def test_candidates_by_code_are_nearly_in_the_order_of_exact_scores(clustered, index):
    queries = clustered[1][:50]
    vectors = index.vectors.get_vectors(np.arange(5000))
    rows = index.search_candidates(queries, 5000, SearchParams(128, 5000))
    correlations = [
        np.corrcoef((vectors[found] @ query), -np.arange(5000))[0, 1]
        for found, query in zip(rows, queries, strict=True)
    ]
    assert min(correlations) > 0.9


def test_large_batch_allocates_no_centroids_per_query(clustered, index):
    queries = np.tile(clustered[1], (5, 1))
    tracemalloc.start()
    try:
        index.search_candidates(queries, 10, SearchParams(128, 10))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1000 * 128 * 32  # a float32 copy [B, nprobe, D] of the centroids would take four times that


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("nlist", [1, 3, None, 10**6])
def test_few_vectors_are_indexed_without_warnings(capfd, n, nlist):
    vectors, queries = random_vectors(n, 3), random_vectors(5, 3, seed=1)
    index = IvfPqIndex.build(vectors, nlist=nlist)
    assert index.nlist == min(n, nlist or coarse_quantizer.choose_nlist(n))
    for k in {1, max(1, n // 3)}:
        assert_same(
            index.search(queries, k, search_params=SearchParams(n, n - 1)), index.vectors.search_exact(queries, k)
        )
    assert capfd.readouterr() == ("", "")  # faiss prints its warnings


def test_empty_lists_do_no_harm():
    """There are more lists than distinct vectors."""
    vectors = np.tile(random_vectors(6, 5), (60, 1))
    index = IvfPqIndex.build(vectors, nlist=50)
    assert np.isfinite(index._centroids).all()
    hits = index.search(random_vectors(20, 5, seed=1), 100, search_params=SearchParams(4, 120))
    assert all(len(set(rows) - {-1}) == 100 for rows in hits.rows.tolist())


def test_vectors_of_very_different_lengths_are_found():
    """Lists are selected by direction, and must not hide long vectors."""
    vectors = random_vectors(3000, 8) * np.exp(1.5 * random_vectors(3000, 1, seed=1))
    vectors[::7] = 0
    index = IvfPqIndex.build(vectors, nlist=32)
    assert np.isfinite(index._centroids).all()
    assert measure_ann_recall(index, random_vectors(100, 8, seed=2), 10, SearchParams(24, 300)) >= 0.95


def test_lists_by_spread_find_long_and_short_vectors():
    vectors = random_vectors(3000, 8) * np.exp(1.5 * random_vectors(3000, 1, seed=1))
    vectors[::7] = 0
    index = IvfPqIndex.build(vectors, nlist=32)
    assert measure_ann_recall(index, random_vectors(100, 8, seed=2), 10, SearchParams(1, 300, 0.999)) >= 0.95


@pytest.fixture(scope="module")
def planted():
    """300 centres, the centre of each of 20,000 vectors around them, and their index."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, 16)) / 4
    centre_of = rng.integers(300, size=20_000)
    vectors = (centres[centre_of] + 0.1 * rng.standard_normal((20_000, 16))).astype(np.float32)
    return centres, centre_of, IvfPqIndex.build(vectors, threads=1)


@pytest.mark.parametrize("n_skipped", [0, 100])
def test_filter_that_takes_away_the_rows_near_the_query_leaves_the_recall(planted, n_skipped):
    """The half of the centres that is nearest to the query is not allowed."""
    centres, centre_of, index = planted
    k = 100 + n_skipped
    recalls = {"adapted": [], "nearest": []}
    noise = np.random.default_rng(1).standard_normal((40, 16))
    for query in (centres[:40] + 0.1 * noise).astype(np.float32):
        far_centres = np.argsort(centres @ query)[:150]
        allowed = Bitmap.from_mask(np.isin(centre_of, far_centres))
        request = SearchRequest(query, k, n_skipped, allowed.count, index.profile_filter(allowed))
        adapted = index.adapt(request, SearchParams(20, 3 * k, 0.4))
        exact = index.vectors.search_exact(query[None], k, allowed=allowed).rows[0, n_skipped:]
        assert len(adapted.lists) == adapted.search_params.width < index.nlist
        for name, lists in (("adapted", adapted.lists), ("nearest", None)):
            hits = index.search(query[None], k, search_params=adapted.search_params, allowed=allowed, lists=lists)
            recalls[name].append(np.isin(exact, hits.rows).mean())
    assert np.mean(recalls["adapted"]) >= 0.95
    assert np.min(recalls["adapted"]) >= 0.8
    assert np.mean(recalls["nearest"]) <= 0.8  # as many lists, but the nearest ones


def test_deleted_rows_are_reckoned_with(index, clustered):
    """A tenth of the rows that are counted may be found: the search reaches ten times as far."""
    query = clustered[1][0]
    few, many = (
        index.adapt(SearchRequest(query, 50, 0, allowed_count, None), SearchParams(9, 90, 0.9)).lists
        for allowed_count in (5000, 500)
    )
    np.testing.assert_array_equal(many, index._select_lists(query, index._list_sizes, 500, 0, 0.9))
    assert len(few) < len(many)


def test_filter_profile_counts_the_allowed_rows_of_each_list(index):
    mask = np.random.default_rng(1).random(5000) < 0.2
    counts = index.profile_filter(Bitmap.from_mask(mask)).list_counts
    lists = index._ivf_index.invlists
    ids = [faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)) for number in range(index.nlist)]
    assert counts.tolist() == [int(mask[rows].sum()) for rows in ids]


def test_same_seed_builds_the_same_index(clustered):
    first, second, other = (IvfPqIndex.build(clustered[0], nlist=16, seed=seed, threads=1) for seed in (0, 0, 1))
    assert to_bytes(first) == to_bytes(second) != to_bytes(other)


def test_build_in_chunks_from_a_mapped_file_gives_the_same_index(monkeypatch, tmp_path, clustered):
    vectors = clustered[0][:1000].astype(np.float16)
    in_one_chunk = IvfPqIndex.build(vectors, nlist=16, threads=1)
    np.save(tmp_path / "vectors.npy", vectors)
    monkeypatch.setattr(ivf, "_ADD_CHUNK_ROWS", 130)
    in_chunks = IvfPqIndex.build(np.load(tmp_path / "vectors.npy", mmap_mode="r"), nlist=16, threads=1)
    assert to_bytes(in_chunks) == to_bytes(in_one_chunk)


def test_index_with_two_level_centroids_is_accurate_and_saved_without_the_graph(monkeypatch, tmp_path, clustered):
    vectors, queries = clustered
    monkeypatch.setattr(coarse_quantizer, "_MAX_FLAT_CENTROIDS", 32)
    index = IvfPqIndex.build(vectors, nlist=128, threads=1)
    assert index.nlist == 128
    assert measure_ann_recall(index, queries, 10, SearchParams(32, 200)) >= 0.98
    assert_same(
        index.search(queries, 400, search_params=SearchParams(128, 4999)), index.vectors.search_exact(queries, 400)
    )
    index.save(tmp_path / "index.faiss")
    monkeypatch.undo()
    loaded = IvfPqIndex.load(tmp_path / "index.faiss")
    assert isinstance(loaded, IvfPqIndex)  # which requires a flat quantizer
    assert_same(*(each.search(queries, 20, search_params=SearchParams(8, 60)) for each in (index, loaded)))


def test_index_owns_its_faiss_parts(clustered):
    """No faiss object is freed twice or while it is used."""
    indexes = [IvfPqIndex.build(clustered[0][:200], nlist=4) for _ in range(20)]
    expected = [index.search(clustered[1], 5) for index in indexes]
    del indexes[::2]
    for index, hits in zip(indexes, expected[1::2], strict=True):
        assert_same(index.search(clustered[1], 5), hits)


def test_build_reports_progress(progress_events, monkeypatch, clustered):
    monkeypatch.setattr(ivf, "_ADD_CHUNK_ROWS", 4096)
    IvfPqIndex.build(clustered[0], nlist=8)
    assert progress_events == [("filling IVF lists", 5000), 4096, 904, "end"]
