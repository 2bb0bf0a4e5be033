"""What `RemoteIndex` asks a server for, and what it makes of the answers; `test_contract` has its searches."""

import math

import numpy as np
import pytest
from support.fake_engine import FakeFinder, FakeServer
from support.vectors import random_vectors

from vecall.errors import EngineUnavailableError
from vecall.index.base import SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.remote import RemoteIndex
from vecall.index.stored_vectors import StoredVectors

N = 1500


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def index(server):
    vectors = random_vectors(N, 8)
    server.collections["c"] = vectors.astype(np.float16).astype(np.float32)
    return RemoteIndex(StoredVectors(vectors.astype(np.float16)), FakeFinder(server, "c"))


QUERIES = random_vectors(6, 8, seed=1)


def make_bitmap(share):
    return Bitmap.from_mask(np.random.default_rng(2).random(N) < share)


def assert_exact(index, k, allowed=None, **options):
    hits, exact = (
        index.search(QUERIES, k, allowed=allowed, **options),
        index.vectors.search_exact(QUERIES, k, allowed=allowed),
    )
    np.testing.assert_array_equal(hits.rows, exact.rows)
    np.testing.assert_array_equal(hits.scores, exact.scores)


def test_server_is_asked_for_k_rows_without_a_filter(index, server):
    assert_exact(index, 30)
    assert_exact(index, 30, search_params=SearchParams(90))
    assert_exact(index, 30, search_params=SearchParams(10**6))  # no wider than the server searches
    assert server.searches == [(6, 30, 30), (6, 30, 90), (6, 30, 4000)]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_server_is_asked_for_so_many_rows_that_k_pass_the_filter(index, server, share):
    allowed = make_bitmap(share)
    assert_exact(index, 30, allowed)
    ((_, k, width),) = server.searches
    rate = allowed.count / N
    assert k == width == math.ceil((30 + 3 * math.sqrt(30 * (1 - rate))) / rate)


@pytest.mark.parametrize(("k", "share"), [(401, 1), (100, 0.2), (5, 0.01), (N, 1)])
def test_more_rows_than_the_server_returns_are_scanned(index, server, k, share):
    allowed = None if share == 1 else make_bitmap(share)
    assert_exact(index, k, allowed)
    assert not server.searches
    allowed_count = N if allowed is None else allowed.count
    assert index.adapt(SearchRequest(QUERIES[0], k, 0, allowed_count, None), SearchParams(50)) is None


def test_width_is_adapted_to_the_rows_that_will_be_asked_for(index, server):
    """So that the planner knows what the search will cost."""
    allowed = make_bitmap(0.5)
    request = SearchRequest(QUERIES[0], 60, 30, allowed.count, index.profile_filter(allowed))
    adapted = index.adapt(request, SearchParams(50))
    index.search(QUERIES[:1], 60, search_params=SearchParams(50), allowed=allowed)
    assert server.searches == [(1, adapted.search_params.width, adapted.search_params.width)]
    assert index.adapt(request, SearchParams(500)).search_params.width == 500


@pytest.mark.parametrize("fault", ["short", "empty", "damaged"])
@pytest.mark.parametrize("share", [1, 0.4])
def test_rows_that_the_server_does_not_return_are_found_by_a_scan(index, server, fault, share):
    server.fault = fault
    assert_exact(index, 50, None if share == 1 else make_bitmap(share))
    assert len(server.searches) == 1


def test_wrong_rows_of_the_server_get_their_own_scores(index, server):
    server.fault = "nan"
    hits = index.search(QUERIES, 20)
    for query, rows, scores in zip(QUERIES, hits.rows, hits.scores, strict=True):
        assert len(set(rows.tolist())) == 20
        np.testing.assert_array_equal(scores, index.vectors.score(query, rows))
        assert (np.diff(scores) <= 0).all()


def test_server_that_does_not_answer_is_an_error_of_searches_that_need_it(index, server):
    server.fault = "down"
    with pytest.raises(EngineUnavailableError, match="does not answer"):
        index.search(QUERIES, 20)
    assert_exact(index, 20, make_bitmap(0.01))  # these few rows are scanned
    assert index.search(QUERIES[:0], 20).rows.shape == (0, 20)
