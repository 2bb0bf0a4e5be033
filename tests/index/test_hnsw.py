import faiss
import numpy as np
import pytest

from vecall.index.ann_recall import recall_per_query
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.hnsw import HnswIndex


@pytest.fixture(scope="module")
def index(clustered):
    return HnswIndex.build(clustered[0], threads=1)


def measure_ann_recall(index, queries, k, width, allowed=None):
    found_rows = index.search(queries, k, search_params=SearchParams(width), allowed=allowed).rows
    exact_rows = index.vectors.search_exact(queries, k, allowed=allowed).rows
    return recall_per_query(index.vectors, queries, found_rows, exact_rows).mean()


def test_ann_recall_grows_with_width(clustered, index):
    recalls = [measure_ann_recall(index, clustered[1], 10, width) for width in (10, 20, 64)]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1]
    assert recalls[-1] >= 0.98
    assert measure_ann_recall(index, clustered[1], 100, 128) >= 0.98


def test_selective_bitmap_needs_a_proportionally_larger_width(clustered, index):
    """`vecall.index.planner` relies on this proportion."""
    allowed = Bitmap.from_mask(np.random.default_rng(1).random(5000) < 0.1)
    assert measure_ann_recall(index, clustered[1], 10, 30, allowed) < 0.95
    assert measure_ann_recall(index, clustered[1], 10, 300, allowed) >= 0.98


def test_width_is_raised_to_k(clustered, index):
    narrow, as_wide_as_k = (index.search(clustered[1], 60, search_params=SearchParams(width)) for width in (1, 60))
    np.testing.assert_array_equal(narrow.rows, as_wide_as_k.rows)


def test_scan_is_asked_for_where_the_filter_goes_against_the_query(clustered, index):
    vectors, queries = clustered
    params = SearchParams(40)
    is_random = np.random.default_rng(1).random(5000) < 0.3
    for query in queries[:50]:
        ranking = np.argsort(-(vectors @ query))
        masks = {"random": is_random, "with": np.isin(np.arange(5000), ranking[:1500])}
        masks["against"] = np.isin(np.arange(5000), ranking[1500:3000])
        for name, mask in masks.items():
            profile = index.profile_filter(Bitmap.from_mask(mask))
            adapted = index.adapt(SearchRequest(query, 10, 0, 1500, profile), params)
            assert adapted == (None if name == "against" else AdaptedSearch(params))
    assert index.adapt(SearchRequest(queries[0], 10, 0, 5000, None), params) == AdaptedSearch(params)


def test_single_threaded_builds_give_the_same_graph(clustered, index):
    rebuilt = HnswIndex.build(clustered[0], threads=1)
    assert faiss.serialize_index(rebuilt._graph).tobytes() == faiss.serialize_index(index._graph).tobytes()


def test_graph_keeps_its_parameters_and_default_width(clustered):
    index = HnswIndex.build(clustered[0][:500], m=8, ef_construction=40, ef=23)
    assert index.ef == 23
    assert index._graph.hnsw.efConstruction == 40
    assert index._graph.hnsw.nb_neighbors(0) == 16
    default, explicit = index.search(clustered[1], 5), index.search(clustered[1], 5, search_params=SearchParams(23))
    np.testing.assert_array_equal(default.rows, explicit.rows)


def test_build_reports_progress(progress_events, clustered):
    HnswIndex.build(clustered[0], ef_construction=10)
    assert progress_events == [("building graph", 5000), 4096, 904, "end"]
