"""The lower layer against a real Milvus server: what the fake of the other tests only pretends to do."""

import threading
import time
import uuid

import numpy as np
import pytest
from support.milvus_server import TOKEN
from support.vectors import random_vectors

from vecall.errors import EngineUnavailableError, StoreError
from vecall.index.milvus import client, collection
from vecall.index.milvus.building import CollectionParams, build_collection, compare_vectors
from vecall.index.milvus.endpoint import MilvusEndpoint
from vecall.index.milvus.searching import count_short_answers, search_collection
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.stored_vectors import StoredVectors

pytestmark = pytest.mark.milvus

STORE = "abcdef0123456789"


@pytest.fixture
def milvus_connection(milvus_server):
    """A connection to the server; the collections of the test are dropped afterwards."""
    connection = client.acquire_connection(MilvusEndpoint(milvus_server.uri, token=TOKEN))
    yield connection
    for name in collection.list_collections(connection, STORE):
        collection.drop(connection, name)
    client.release_connection(connection)


def params(m=16, ef_construction=200, **settings):
    return CollectionParams(m, ef_construction, MilvusSettings(build_stall_minutes=1, **settings))


def build(connection, vectors, parameters=None):
    name = collection.make_collection_name(STORE, uuid.uuid4().hex)
    build_collection(connection, name, vectors, parameters or params())
    return name


def seconds_of(function):
    start = time.monotonic()
    with pytest.raises(EngineUnavailableError) as error_info:
        function()
    return time.monotonic() - start, str(error_info.value)


def test_collection_is_built_searched_released_loaded_and_dropped(milvus_connection):
    connection = milvus_connection
    vectors, queries = random_vectors(12_000, 16).astype(np.float16), random_vectors(50, 16, seed=1)
    name = build(connection, vectors)
    assert collection.list_collections(connection, STORE) == [name]
    assert collection.count_rows(connection, name) == 12_000

    hits = search_collection(connection, name, 12_000, queries, 100, ef=400, timeout=5)
    stored = StoredVectors(vectors)
    exact = stored.search_exact(queries, 100)
    recall = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(hits.rows, exact.rows, strict=True)])
    assert recall >= 0.98
    for query, rows, scores in zip(queries, hits.rows, hits.scores, strict=True):
        np.testing.assert_allclose(scores, stored.score(query, rows), rtol=0, atol=1e-5)
    assert count_short_answers(hits, 12_000) == 0

    collection.release(connection, name)
    assert not collection.is_loaded(connection, name)
    with pytest.raises(EngineUnavailableError, match=r"not loaded.*the server loads it"):
        search_collection(connection, name, 12_000, queries, 100, ef=400, timeout=5)
    collection.load(connection, name, replicas=1, stall_seconds=60)
    compare_vectors(connection, name, vectors)
    again = search_collection(connection, name, 12_000, queries, 100, ef=400, timeout=5)
    assert (np.sort(again.rows) == np.sort(hits.rows)).mean() > 0.98

    for _ in range(2):
        collection.point_alias(connection, "vecall_test_alias", name)
    for _ in range(2):
        collection.drop(connection, name)
    assert collection.list_collections(connection, STORE) == []
    with pytest.raises(EngineUnavailableError):
        collection.is_loaded(connection, name)


@pytest.mark.parametrize(("n", "dim"), [(1, 2), (1500, 128)])
def test_small_collections_are_built_and_complete(milvus_connection, n, dim):
    vectors = random_vectors(n, dim).astype(np.float16)
    name = build(milvus_connection, vectors, params(shards=2) if n == 1500 else params())
    assert collection.count_rows(milvus_connection, name) == n
    compare_vectors(milvus_connection, name, vectors)
    hits = search_collection(milvus_connection, name, n, random_vectors(3, dim, seed=1), min(n, 10), ef=n, timeout=5)
    assert count_short_answers(hits, n) == 0


@pytest.mark.parametrize(("m", "ef_construction"), [(4, 8), (64, 512)])
def test_extreme_parameters_that_are_allowed_are_built(milvus_connection, m, ef_construction):
    build(milvus_connection, random_vectors(1500, 4).astype(np.float16), params(m, ef_construction))


def test_largest_k_is_answered(milvus_connection):
    vectors = random_vectors(17_000, 4).astype(np.float16)
    name = build(milvus_connection, vectors)
    hits = search_collection(
        milvus_connection, name, 17_000, random_vectors(1, 4, seed=1), 16_384, ef=16_384, timeout=10
    )
    assert len(np.unique(hits.rows[hits.rows >= 0])) > 0.9 * 16_384


def test_insert_that_is_repeated_is_noticed_and_the_collection_dropped(milvus_connection, monkeypatch):
    insert = collection.insert_rows

    def insert_twice(*arguments, **options):
        insert(*arguments, **options)
        insert(*arguments, **options)

    monkeypatch.setattr(collection, "insert_rows", insert_twice)
    with pytest.raises(StoreError, match="counts 3,000 rows, expected 1,500"):
        build(milvus_connection, random_vectors(1500, 4).astype(np.float16))
    assert collection.list_collections(milvus_connection, STORE) == []


def test_repeated_rows_are_counted_by_a_strong_count_too_and_vectors_that_differ_are_noticed(milvus_connection):
    vectors = random_vectors(1500, 4).astype(np.float16)
    name = build(milvus_connection, vectors)
    other = vectors.copy()
    other[:750, 2] += np.float16(1)
    with pytest.raises(StoreError, match=r"of 1000 compared rows differ"):
        compare_vectors(milvus_connection, name, other)
    collection.insert_rows(milvus_connection, name, 0, vectors[:100], timeout=10)
    assert collection.count_rows(milvus_connection, name) == 1600


@pytest.mark.parametrize("token", ["", "root:wrong", "nobody:Milvus"])
def test_wrong_token_is_refused_within_the_deadline_and_never_repeated(milvus_server, token):
    endpoint = MilvusEndpoint(milvus_server.uri, token=token)
    seconds, text = seconds_of(lambda: client.acquire_connection(endpoint))
    assert seconds < 6
    assert "VECALL_MILVUS_TOKEN" in text
    assert "wrong" not in text


def test_nothing_that_listens_is_unavailable_at_once():
    endpoint = MilvusEndpoint("http://127.0.0.1:1")
    seconds, text = seconds_of(lambda: client.acquire_connection(endpoint))
    assert seconds < 2
    assert "check that the server runs" in text


def wait_for(condition, timeout_seconds):
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            if condition():
                return
        except EngineUnavailableError as error:
            assert time.monotonic() < deadline, error  # noqa: PT017
        time.sleep(0.1)


def test_token_of_the_server_is_accepted(milvus_server):
    connection = client.acquire_connection(MilvusEndpoint(milvus_server.uri, token=TOKEN))
    assert collection.list_collections(connection, STORE) == []
    client.release_connection(connection)


def test_frozen_killed_and_restarted_server_fails_within_the_deadline_and_recovers(milvus_server, milvus_connection):
    vectors, query = random_vectors(5000, 8).astype(np.float16), random_vectors(1, 8, seed=1)
    name = build(milvus_connection, vectors)
    threads = threading.active_count()

    def search():
        return search_collection(milvus_connection, name, 5000, query, 50, ef=100, timeout=0.3).rows

    expected = search()
    milvus_server.freeze()
    try:
        for _ in range(3):
            seconds, text = seconds_of(search)
            assert seconds < 0.6
            assert "DEADLINE_EXCEEDED" in text
    finally:
        milvus_server.thaw()
    wait_for(lambda: np.array_equal(search(), expected), 30)

    milvus_server.kill()
    for _ in range(20):
        seconds, _ = seconds_of(search)
        assert seconds < 0.6
    started = time.monotonic()
    milvus_server.start(wait=False)
    try:
        wait_for(lambda: np.array_equal(search(), expected), 90)
    except AssertionError:
        pytest.fail(milvus_server.read_log())
    print(f"answers again {time.monotonic() - started:.1f} s after the start")  # noqa: T201
    assert collection.count_rows(milvus_connection, name) == 5000
    compare_vectors(milvus_connection, name, vectors)
    assert threading.active_count() <= threads + 1
