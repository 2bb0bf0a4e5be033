import re
import uuid

import numpy as np
import pytest
from support.fake_milvus import FakeMilvus, FakeMilvusError, FakeRpcError
from support.vectors import random_vectors

from vecall.errors import ConfigError, EngineUnavailableError, StoreError
from vecall.index.milvus import collection, hnsw_index
from vecall.index.milvus.building import CollectionParams, build_collection, compare_vectors
from vecall.index.milvus.settings import MilvusSettings

PARAMS = CollectionParams(16, 200, MilvusSettings(build_stall_minutes=0.002, replicas=2, shards=3))
STORE = "0123456789abcdef"
NAME = f"vecall_{STORE}_{32 * '0'}"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(hnsw_index, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(collection, "_LOAD_POLL_SECONDS", 0.001)


@pytest.fixture
def server():
    return FakeMilvus()


@pytest.fixture
def vectors():
    return random_vectors(2500, 6).astype(np.float16)


def build(server, vectors, params=PARAMS):
    build_collection(server.connect(), NAME, vectors, params)


def test_collection_holds_every_vector_with_its_row_as_the_key(server, vectors, monkeypatch):
    monkeypatch.setattr(collection, "MAX_INSERT_ROWS", 1000)
    build(server, vectors)
    built = server.collections[NAME]
    assert built.rows == list(range(2500))
    np.testing.assert_array_equal(np.array(built.vectors), vectors.astype(np.float32))
    assert built.vectors[0].dtype == np.float32
    assert built.schema.fields == {"row": (5, {"is_primary": True}), "vector": (101, {"dim": 6})}
    assert built.schema.options == {"auto_id": False, "enable_dynamic_field": False}
    assert built.shards == 3
    assert built.index == {
        "field_name": "vector",
        "index_type": "HNSW",
        "metric_type": "IP",
        "index_name": "vecall_hnsw",
        "params": {"M": 16, "efConstruction": 200},
    }
    assert [len(arguments[1]) for method, arguments, _ in server.calls if method == "insert"] == [1000, 1000, 500]


def test_steps_follow_one_another_and_the_rows_are_counted_after_loading(server, vectors):
    build(server, vectors)
    steps = list(dict.fromkeys(server.called()))
    assert steps == [
        *("create_collection", "insert", "flush", "get_collection_stats", "create_index", "describe_index"),
        *("load_collection", "get_load_state", "query"),
    ]
    loads = [options for method, _, options in server.calls if method == "load_collection"]
    assert loads[0]["replica_number"] == 2


def test_progress_is_reported_in_rows_and_rows_a_second(server, vectors, progress_events):
    build(server, vectors)
    line = progress_events.pop(3)
    assert progress_events == [
        *(("inserting into Milvus", 2500), 2500, "end"),
        *(("building the index in Milvus", 2500), 2500, "end"),
    ]
    assert re.fullmatch(r"inserted 2,500 rows into Milvus in \d+ s, [\d,]+ rows a second", line)


def test_wide_vectors_are_inserted_in_messages_of_16_mib():
    assert collection.compute_insert_size(128) == 10_000
    assert collection.compute_insert_size(4096) == 1023
    assert collection.compute_insert_size(10**9) == 1


@pytest.mark.parametrize(
    "method",
    [
        *("create_collection", "insert", "flush", "get_collection_stats", "create_index", "describe_index"),
        *("load_collection", "get_load_state", "query"),
    ],
)
@pytest.mark.parametrize(
    "error", [FakeRpcError("UNAVAILABLE", "down"), FakeMilvusError(65535, "disk full"), KeyboardInterrupt]
)
def test_failure_at_any_step_drops_the_collection(server, vectors, method, error):
    server.failures[method] = error
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else EngineUnavailableError):
        build(server, vectors)
    assert server.called()[-1] == "drop_collection"
    assert server.collections == {}


def test_collection_that_cannot_be_dropped_is_left_over_and_the_first_error_is_raised(server, vectors, caplog):
    server.failures = {
        "flush": FakeMilvusError(65535, "disk full"),
        "drop_collection": FakeRpcError("UNAVAILABLE", "x"),
    }
    with pytest.raises(EngineUnavailableError, match="disk full"):
        build(server, vectors)
    assert f"{NAME} is left over" in caplog.text


def test_insert_that_the_client_repeats_is_noticed(server, vectors):
    server.inserted_twice = {0}
    with pytest.raises(StoreError, match="counts 5,000 rows, expected 2,500"):
        build(server, vectors)
    assert server.collections == {}


def test_rows_that_the_statistics_hide_are_noticed_after_loading(server, vectors, monkeypatch):
    server.inserted_twice = {0}
    monkeypatch.setattr(FakeMilvus, "get_collection_stats", lambda *_, **__: {"row_count": 2500})
    with pytest.raises(StoreError, match="counts 5,000 rows, expected 2,500"):
        build(server, vectors)


@pytest.mark.parametrize(("row", "value"), [(0, np.float32(6e-8)), (1234, np.float32(-1)), (2499, np.float32(np.nan))])
def test_vector_that_differs_by_a_bit_is_noticed(server, vectors, row, value):
    build(server, vectors[:900])
    server.collections[NAME].vectors[row % 900][3] += value
    with pytest.raises(StoreError, match=f"1 of 900 compared rows differ .* such as row {row % 900};"):
        compare_vectors(server.connect(), NAME, vectors[:900])


def test_negative_zero_differs_from_zero(server):
    vectors = np.zeros((10, 2), dtype=np.float16)
    build(server, vectors)
    server.collections[NAME].vectors[3][0] = -0.0
    with pytest.raises(StoreError, match="such as row 3;"):
        compare_vectors(server.connect(), NAME, vectors)


def test_missing_rows_are_noticed(server, vectors):
    build(server, vectors[:900])
    server.collections[NAME].rows[7] = 5000
    with pytest.raises(StoreError, match=r"1 of 900 .*\(1 are missing\), such as row 7;"):
        compare_vectors(server.connect(), NAME, vectors[:900])


def test_index_that_makes_no_progress_ends_with_what_the_server_says(server, vectors):
    server.max_indexed_rows = 1000
    server._get_connection = lambda: type("Handler", (), {"get_index_state": lambda *_, **__: (None, "no index node")})
    with pytest.raises(
        StoreError,
        match=r"no progress for 0\.002 min: state Finished, 1,000 of 2,500 rows .* 1,500 pending.* no index node",
    ):
        build(server, vectors)
    assert server.collections == {}


def test_failed_index_ends_at_once_with_the_reason(server, vectors):
    server.index_failure = "knowhere: bad allocation"
    with pytest.raises(StoreError, match=r"failed: state Failed, .* the server says: knowhere: bad allocation"):
        build(server, vectors, CollectionParams(16, 200, MilvusSettings()))


def test_index_that_grows_slowly_is_waited_for(server, vectors):
    def grow(method):
        if method == "describe_index":
            server.max_indexed_rows += 250

    server.max_indexed_rows, server.before_call = 0, grow
    build(server, vectors)
    assert server.called().count("describe_index") == 10


def test_loading_that_makes_no_progress_ends_with_how_far_it_came(server, vectors):
    server.load_progress = [0, 40, 40]
    with pytest.raises(EngineUnavailableError, match=r"has loaded 40 % of vecall_.* no progress for 0\.002 min"):
        build(server, vectors)


@pytest.mark.parametrize(("m", "ef_construction"), [(3, 200), (65, 200), (16, 7), (16, 513)])
def test_parameters_that_are_never_built_are_refused_before_the_server_hears_of_them(
    server, vectors, m, ef_construction
):
    with pytest.raises(ConfigError, match=r"index\.(M|ef_construction): \d+ with engine 'milvus'; expected"):
        build(server, vectors, CollectionParams(m, ef_construction, MilvusSettings()))
    assert server.calls == []


def make_name(store_id=STORE):
    return collection.make_collection_name(store_id, uuid.uuid4().hex)


def test_names_have_the_store():
    assert re.fullmatch(r"vecall_0123456789abcdef_[0-9a-f]{32}", make_name())
    assert collection.parse_store_id(make_name()) == STORE
    assert [collection.parse_store_id(name) for name in ("docs", "vecall_a_b", make_name() + "_copy")] == ["", "", ""]
    with pytest.raises(StoreError, match="cannot be part of a collection's name"):
        make_name("a_b")


def test_collections_of_other_stores_and_tools_are_not_listed(server):
    own = [make_name() for _ in range(3)]
    server.collections = dict.fromkeys(
        ["docs", f"vecall_{STORE}", make_name("fedcba9876543210"), own[0] + "_copy", *own]
    )
    assert collection.list_collections(server.connect(), STORE) == sorted(own)


def test_release_and_drop_and_alias_call_the_server(server, vectors):
    connection = server.connect()
    build(server, vectors[:10])
    assert collection.is_loaded(connection, NAME)
    collection.release(connection, NAME)
    assert not collection.is_loaded(connection, NAME)
    for _ in range(2):
        collection.point_alias(connection, "shop", NAME)
        assert server.aliases == {"shop": NAME}
    collection.drop(connection, NAME)
    collection.drop(connection, NAME)
    assert server.collections == server.aliases == {}
    with pytest.raises(EngineUnavailableError, match="has no collection"):
        collection.is_loaded(connection, NAME)
