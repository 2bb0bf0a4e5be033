import faiss
import numpy as np
import pytest

from vecall import progress
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex


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
    return HnswIndex.build(clustered[0], threads=1)


def ann_recall(index, queries, k, width, allowed=None):
    """ANN recall@k: overlap with the exact answer."""
    found = index.search(queries, k, effort=SearchParams(width), allowed=allowed).rows
    truth = index.search_exact(queries, k, allowed=allowed).rows
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


def test_exact_answers_are_those_of_the_exact_index(clustered, index):
    vectors, queries = clustered
    a, b = index.search_exact(queries, 50), ExactIndex.build(vectors).search(queries, 50)
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_ann_recall_is_high_and_grows_with_effort(clustered, index):
    recalls = [ann_recall(index, clustered[1], 10, width) for width in (10, 20, 64)]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1]
    assert recalls[-1] >= 0.98
    assert ann_recall(index, clustered[1], 100, 128) >= 0.98


def test_a_bitmap_asks_for_more_effort(clustered, index):
    """As much more as fewer rows are allowed: so `vecall.index.planner` has it."""
    allowed = Bitmap.from_mask(np.random.default_rng(1).random(5000) < 0.1)
    assert ann_recall(index, clustered[1], 10, 30, allowed) < 0.95
    assert ann_recall(index, clustered[1], 10, 300, allowed) >= 0.98


def test_effort_is_never_below_k(clustered, index):
    few, as_k = (index.search(clustered[1], 60, effort=SearchParams(width)) for width in (1, 60))
    np.testing.assert_array_equal(few.rows, as_k.rows)


def test_one_thread_builds_the_same_graph_again(clustered, index):
    again = HnswIndex.build(clustered[0], threads=1)
    assert faiss.serialize_index(again._graph).tobytes() == faiss.serialize_index(index._graph).tobytes()


def test_settings_lie_in_the_graph_and_its_default_effort_is_kept(tmp_path, clustered):
    index = HnswIndex.build(clustered[0][:500], m=8, ef_construction=40, ef=23)
    assert index.ef == 23
    assert index._graph.hnsw.efConstruction == 40
    assert index._graph.hnsw.nb_neighbors(0) == 16
    default, said = index.search(clustered[1], 5), index.search(clustered[1], 5, search_params=SearchParams(23))
    np.testing.assert_array_equal(default.rows, said.rows)


def test_progress_is_told(clustered):
    told = []

    class Listener:
        def begin(self, task, total):
            told.append((task, total))
            return lambda steps=1, note="": told.append(steps)

        def end(self):
            told.append("end")

    with progress.report_to(Listener()):
        HnswIndex.build(clustered[0], ef_construction=10)
    assert told == [("building graph", 5000), 4096, 904, "end"]


def test_the_callers_number_of_threads_stays(clustered, index):
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        HnswIndex.build(clustered[0][:100], threads=1)
        index.search(clustered[1][:1], 5)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
