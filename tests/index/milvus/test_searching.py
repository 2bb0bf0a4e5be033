import numpy as np
import pytest
from support.fake_milvus import FakeMilvus, FakeMilvusError
from support.vectors import random_vectors

from vecall.errors import EngineUnavailableError, QueryError
from vecall.index.milvus import searching
from vecall.index.milvus.building import CollectionParams, build_collection
from vecall.index.milvus.searching import count_short_answers, search_collection
from vecall.index.milvus.settings import MilvusSettings

NAME, SIZE = "vecall_c", 300


@pytest.fixture
def server():
    server = FakeMilvus()
    vectors = random_vectors(SIZE, 8).astype(np.float16)
    build_collection(server.connect(), NAME, vectors, CollectionParams(16, 200, MilvusSettings()))
    server.calls.clear()
    return server


def search(server, queries, k, *, ef=64, timeout=0.2, size=SIZE):
    return search_collection(server.connect(), NAME, size, queries, k, ef=ef, timeout=timeout)


def test_rows_and_scores_are_the_servers(server):
    queries = random_vectors(5, 8, seed=1)
    hits = search(server, queries, 20)
    stored = random_vectors(SIZE, 8).astype(np.float16).astype(np.float32)
    for query, rows, scores in zip(queries, hits.rows, hits.scores, strict=True):
        np.testing.assert_array_equal(rows, np.argsort(-(stored @ query), kind="stable")[:20])
        np.testing.assert_array_equal(scores, (stored @ query)[rows])
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    assert count_short_answers(hits, SIZE) == 0


def test_search_asks_for_k_with_ef_and_a_deadline_and_no_expression(server):
    search(server, random_vectors(1, 8), 20, ef=100, timeout=0.15)
    ((_, (name, data), options),) = server.calls
    assert name == NAME
    assert data[0].dtype == np.float32
    assert options == {
        "anns_field": "vector",
        "limit": 20,
        "search_params": {"metric_type": "IP", "params": {"ef": 100}},
        "consistency_level": "Eventually",
        "timeout": 0.15,
    }


@pytest.mark.parametrize(("k", "ef", "sent"), [(20, 5, 20), (20, 100, 100), (20, 10**6, 32_768)])
def test_ef_is_kept_within_what_the_server_accepts(server, k, ef, sent):
    search(server, random_vectors(1, 8), k, ef=ef)
    assert server.calls[0][2]["search_params"]["params"] == {"ef": sent}


def test_k_beyond_the_size_is_padded(server):
    hits = search(server, random_vectors(2, 8), SIZE + 5)
    assert (hits.rows[:, SIZE:] == -1).all()
    assert (np.sort(hits.rows[:, :SIZE]) == np.arange(SIZE)).all()
    assert server.calls[0][2]["limit"] == SIZE
    assert count_short_answers(hits, SIZE) == 0


@pytest.mark.parametrize("k", [0, 16_385])
def test_k_out_of_range_is_refused_before_the_server_hears_of_it(server, k):
    with pytest.raises(QueryError, match="expects 1 to 16384"):
        search(server, random_vectors(1, 8), k)
    assert server.calls == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_are_not_finite_are_refused_because_the_server_answers_nothing(server, value):
    queries = random_vectors(3, 8)
    queries[1, 2] = value
    with pytest.raises(QueryError, match="not finite"):
        search(server, queries, 5)
    assert server.calls == []


def test_short_answers_are_padded_and_counted(server):
    server.max_answer_rows = 18
    hits = search(server, random_vectors(4, 8), 100)
    assert ((hits.rows >= 0).sum(axis=1) == 18).all()
    assert (hits.scores[:, 18:] == -np.inf).all()
    assert count_short_answers(hits, SIZE) == 4
    assert count_short_answers(hits, 18) == 0


def test_many_queries_are_sent_in_several_calls(server, monkeypatch):
    monkeypatch.setattr(searching, "_MAX_HITS_PER_CALL", 100)
    queries = random_vectors(7, 8)
    hits = search(server, queries, 40)
    assert [len(arguments[1]) for _, arguments, _ in server.calls] == [2, 2, 2, 1]
    monkeypatch.undo()
    np.testing.assert_array_equal(hits.rows, search(server, queries, 40).rows)


def test_no_queries_need_no_call(server):
    assert search(server, np.empty((0, 8), dtype=np.float32), 5).rows.shape == (0, 5)
    assert server.calls == []


@pytest.mark.parametrize("rows", [[0, 300], [4, 4], [-2, 3]])
def test_rows_that_cannot_be_are_refused(server, rows):
    server.search = lambda *_, **__: [type("Answer", (), {"ids": rows, "distances": [1.0, 0.5]})]
    with pytest.raises(EngineUnavailableError, match="not what was published"):
        search(server, random_vectors(1, 8), 2)


def test_missing_answers_are_refused(server):
    server.search = lambda *_, **__: []
    with pytest.raises(EngineUnavailableError, match="answered 0 of 1 queries"):
        search(server, random_vectors(1, 8), 2)


def test_collection_that_is_not_loaded_makes_the_engine_unavailable(server):
    server.collections[NAME].loaded = 0
    with pytest.raises(EngineUnavailableError, match="the server loads it"):
        search(server, random_vectors(1, 8), 2)


def test_error_of_the_server_makes_the_engine_unavailable(server):
    server.failures["search"] = FakeMilvusError(65535, "anything")
    with pytest.raises(EngineUnavailableError, match=r"searching vecall_c failed .* within 0\.2 s"):
        search(server, random_vectors(1, 8), 2)
