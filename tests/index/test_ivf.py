import tracemalloc

import faiss
import numpy as np
import pytest

from vecall import progress
from vecall.index import coarse_quantizer, ivf
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.index_io import load_index
from vecall.index.ivf import IvfPqIndex


def normal(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.fixture(scope="module")
def clustered():
    """5,000 unit vectors of 32 dimensions around 100 centres, and 200 queries of the same kind."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, 32))
    points = centres[rng.integers(100, size=5200)] + 0.5 * rng.standard_normal((5200, 32))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points[:5000], points[5000:]


@pytest.fixture(scope="module")
def index(clustered):
    return IvfPqIndex.build(clustered[0], nlist=128, threads=1)


def ann_recall(index, queries, k, effort):
    """ANN recall@k: overlap with the exact answer."""
    exact = index.search_exact(queries, k).rows
    return recall_per_query(index, queries, index.search(queries, k, effort=effort).rows, exact).mean()


def assert_same(hits, others):
    np.testing.assert_array_equal(hits.rows, others.rows)
    np.testing.assert_array_equal(hits.scores, others.scores)


def bytes_of(index):
    return faiss.serialize_index(index._refined).tobytes()


def test_exact_answers_are_those_of_the_exact_index(clustered, index):
    assert_same(index.search_exact(clustered[1], 50), ExactIndex.build(clustered[0]).search(clustered[1], 50))


def test_ann_recall_is_high_and_grows_with_both_kinds_of_effort(clustered, index):
    by_width = [ann_recall(index, clustered[1], 10, SearchParams(width, 200)) for width in (1, 4, 32)]
    by_depth = [ann_recall(index, clustered[1], 100, SearchParams(64, depth)) for depth in (100, 150, 300)]
    for recalls in (by_width, by_depth):
        assert recalls == sorted(recalls)
        assert recalls[0] < recalls[-1]
        assert recalls[-1] >= 0.98


def test_every_cell_scanned_finds_every_answer(clustered, index):
    """All but the one row whose code is worst are scored exactly."""
    effort = SearchParams(128, 4999)
    assert_same(index.search(clustered[1], 400, effort=effort), index.search_exact(clustered[1], 400))
    allowed = Bitmap.from_mask(np.arange(5000) % 3 > 0)
    hits = index.search(clustered[1], 400, effort=effort, allowed=allowed)
    assert_same(hits, index.search_exact(clustered[1], 400, allowed=allowed))


def test_depth_is_never_below_k_and_no_more_cells_are_scanned_than_there_are(clustered, index):
    assert_same(*(index.search(clustered[1], 60, effort=SearchParams(8, depth)) for depth in (0, 60)))
    assert_same(*(index.search(clustered[1], 60, effort=SearchParams(width, 90)) for width in (128, 10**6)))


def test_candidates_come_by_code_from_the_cells_nearest_to_the_query(clustered, index):
    queries = clustered[1][:50]
    stored = index.vectors(np.arange(5000))
    cell_of = np.argmax(stored @ index._centroids.T, axis=1)
    nearest = np.argsort(-(queries @ index._centroids.T), axis=1)
    allowed = Bitmap.from_mask(np.random.default_rng(1).random(5000) < 0.5)
    for probes in (1, 5):
        for kept in (None, allowed):
            rows = index.candidates(queries, SearchParams(probes, 2000), kept)
            assert rows.shape == (50, 2000)
            for found, near in zip(rows, nearest[:, :probes], strict=True):
                inside = np.isin(cell_of, near) if kept is None else np.isin(cell_of, near) & kept.to_mask()
                assert set(found[found >= 0].tolist()) == set(np.flatnonzero(inside).tolist())
                assert (np.diff((found >= 0).astype(int)) <= 0).all()  # empty places last
    # Codes say nearly what vectors do.
    rows = index.candidates(queries, SearchParams(128, 5000))
    order = [
        np.corrcoef((stored[found] @ query), -np.arange(5000))[0, 1] for found, query in zip(rows, queries, strict=True)
    ]
    assert min(order) > 0.9


def test_many_queries_take_no_more_memory_than_their_answers(clustered, index):
    queries = np.tile(clustered[1], (5, 1))
    tracemalloc.start()
    try:
        index.candidates(queries, SearchParams(128, 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1000 * 128 * 32  # the centroids of all of them, D numbers each, would be four times that


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("given", [1, 3, None, 10**6])
def test_a_handful_of_vectors(capfd, n, given):
    vectors, queries = normal(n, 3), normal(5, 3, seed=1)
    index = IvfPqIndex.build(vectors, nlist=given)
    assert index.nlist == min(n, given or coarse_quantizer.choose_nlist(n))
    for k in {1, max(1, n // 3)}:
        assert_same(index.search(queries, k, search_params=SearchParams(n, n - 1)), index.search_exact(queries, k))
    assert capfd.readouterr() == ("", "")  # faiss prints its warnings


def test_cells_that_stay_empty_are_no_harm():
    """Cells are more than there are different vectors."""
    vectors = np.tile(normal(6, 5), (60, 1))
    index = IvfPqIndex.build(vectors, nlist=50)
    assert np.isfinite(index._centroids).all()
    hits = index.search(normal(20, 5, seed=1), 100, search_params=SearchParams(4, 120))
    assert all(len(set(line) - {-1}) == 100 for line in hits.rows.tolist())


def test_lengths_that_differ_widely():
    """Cells are found by direction; long vectors must not hide in them."""
    vectors = normal(3000, 8) * np.exp(1.5 * normal(3000, 1, seed=1))
    vectors[::7] = 0
    index = IvfPqIndex.build(vectors, nlist=32)
    assert np.isfinite(index._centroids).all()
    assert ann_recall(index, normal(100, 8, seed=2), 10, SearchParams(24, 300)) >= 0.95


def test_the_same_seed_makes_the_same_cells(clustered):
    vectors = clustered[0]
    one, again, other = (IvfPqIndex.build(vectors, nlist=16, seed=seed, threads=1) for seed in (0, 0, 1))
    assert bytes_of(one) == bytes_of(again) != bytes_of(other)


def test_vectors_are_read_in_pieces_that_change_nothing(monkeypatch, tmp_path, clustered):
    vectors = clustered[0][:1000].astype(np.float16)
    whole = IvfPqIndex.build(vectors, nlist=16, threads=1)
    np.save(tmp_path / "vectors.npy", vectors)
    monkeypatch.setattr(ivf, "_CHUNK", 130)
    cut = IvfPqIndex.build(np.load(tmp_path / "vectors.npy", mmap_mode="r"), nlist=16, threads=1)
    assert bytes_of(cut) == bytes_of(whole)


def test_many_cells_are_found_in_two_levels_and_vectors_filed_by_groups_of_them(monkeypatch, tmp_path, clustered):
    vectors, queries = clustered
    monkeypatch.setattr(coarse_quantizer, "_AT_ONCE", 32)
    index = IvfPqIndex.build(vectors, nlist=128, threads=1)
    assert index.nlist == 128
    assert ann_recall(index, queries, 10, SearchParams(32, 200)) >= 0.98
    assert_same(index.search(queries, 400, search_params=SearchParams(128, 4999)), index.search_exact(queries, 400))
    index.save(tmp_path / "index.faiss")
    monkeypatch.undo()
    again = load_index(tmp_path / "index.faiss")
    assert isinstance(again, IvfPqIndex)  # the groups are not part of it
    assert_same(*(one.search(queries, 20, search_params=SearchParams(8, 60)) for one in (index, again)))


def test_an_index_outlives_what_it_was_made_of(clustered):
    """Its parts belong to it: nothing of faiss is freed twice, or too soon."""
    kept = [IvfPqIndex.build(clustered[0][:200], nlist=4) for _ in range(20)]
    before = [index.search(clustered[1], 5) for index in kept]
    del kept[::2]
    for index, hits in zip(kept, before[1::2], strict=True):
        assert_same(index.search(clustered[1], 5), hits)


def test_progress_is_told(monkeypatch, clustered):
    told = []

    class Listener:
        def begin(self, task, total):
            told.append((task, total))
            return lambda steps=1, note="": told.append(steps)

        def end(self):
            told.append("end")

    monkeypatch.setattr(ivf, "_CHUNK", 4096)
    with progress.report_to(Listener()):
        IvfPqIndex.build(clustered[0], nlist=8)
    assert told == [("filling cells", 5000), 4096, 904, "end"]


def test_the_callers_number_of_threads_stays(clustered, index):
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        IvfPqIndex.build(clustered[0][:100], threads=1)
        index.search(clustered[1][:1], 5)
        index.search(clustered[1], 5)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
