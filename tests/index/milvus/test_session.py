import gc
import time

import numpy as np
import pytest
from support.fake_milvus import FakeMilvusError, FakeRpcError
from support.milvus_index import MilvusIndexBuilder
from support.vectors import random_vectors
from support.waiting import count_probe_threads, wait_until

from vecall.errors import EngineUnavailableError
from vecall.index.search_deadline import limit_search_time

VECTORS = random_vectors(500, 6)
QUERIES = random_vectors(4, 6, seed=1)


@pytest.fixture
def index(fake_milvus):
    index = MilvusIndexBuilder()(VECTORS)
    yield index
    index.close()


def search(index):
    return index.search(QUERIES[:1], 10)


def fail(index, times):
    for _ in range(times):
        with pytest.raises(EngineUnavailableError):
            search(index)


def test_hits_are_those_of_the_stored_vectors(index):
    hits, exact = index.search(QUERIES, 10), index.vectors.search_exact(QUERIES, 10)
    np.testing.assert_array_equal(hits.rows, exact.rows)
    np.testing.assert_array_equal(hits.scores, exact.scores)


def test_outage_is_refused_at_once_after_three_failures_and_ends_by_itself(index, fake_milvus):
    fake_milvus.is_down = True
    fail(index, 3)
    searches = fake_milvus.called().count("search")
    fail(index, 10)
    assert index.unavailable_reason is not None
    assert fake_milvus.called().count("search") == searches
    assert index.search(QUERIES, 600).rows.shape == (4, 600)  # a scan needs no server
    fake_milvus.is_down = False
    wait_until(lambda: index.unavailable_reason is None)
    assert len(search(index).rows[0]) == 10
    wait_until(lambda: count_probe_threads() == 0)


def test_collection_that_another_process_released_is_loaded_again(index, fake_milvus):
    name = index._session.collection
    fake_milvus.collections[name].loaded = 0
    fail(index, 3)
    wait_until(lambda: index.unavailable_reason is None)
    assert fake_milvus.collections[name].loaded
    search(index)


def test_unloaded_index_is_not_loaded_again_by_its_own_probe_but_by_load(index, fake_milvus):
    index.unload()
    fail(index, 3)
    time.sleep(0.05)
    assert not fake_milvus.collections[index._session.collection].loaded
    index.load()
    assert index.unavailable_reason is None
    search(index)


def test_alias_names_the_collection_of_the_current_release(fake_milvus):
    indexes = [MilvusIndexBuilder(alias="shop")(random_vectors(100, 6, seed=seed)) for seed in range(2)]
    for index in (*indexes, indexes[0]):
        index.load()
        index.mark_current()
        assert fake_milvus.aliases == {"shop": index._session.collection}
    indexes[1].load()  # as to verify another release
    assert fake_milvus.aliases == {"shop": indexes[0]._session.collection}
    fake_milvus.failures = dict.fromkeys(("alter_alias", "create_alias"), FakeMilvusError(1, "no"))
    indexes[1].mark_current()


def test_closed_index_refuses_searches_until_it_is_loaded(index, fake_milvus):
    index.close()
    fail(index, 1)
    assert fake_milvus.called()[-1] == "close"
    index.load()
    search(index)


def test_load_raises_while_the_server_is_down_or_has_no_such_collection(index, fake_milvus):
    fake_milvus.is_down = True
    with pytest.raises(EngineUnavailableError):
        index.load()
    fake_milvus.is_down = False
    fake_milvus.collections.clear()
    with pytest.raises(EngineUnavailableError, match="has no collection"):
        index.load()


def test_end_of_an_index_ends_its_thread_and_its_connection(fake_milvus):
    index = MilvusIndexBuilder()(VECTORS)
    fake_milvus.is_down = True
    fail(index, 3)
    assert count_probe_threads() == 1
    del index
    gc.collect()
    assert count_probe_threads() == 0
    assert fake_milvus.called()[-1] == "close"


def test_deadline_of_the_request_shortens_the_search(index, fake_milvus):
    with limit_search_time(time.perf_counter() + 0.05):
        search(index)
    assert 0 < fake_milvus.calls[-1][2]["timeout"] <= 0.05
    search(index)
    assert fake_milvus.calls[-1][2]["timeout"] == 5
    index.search(QUERIES, 10)
    assert fake_milvus.calls[-1][2]["timeout"] == 5 * len(QUERIES)
    index.search(np.repeat(QUERIES, 9, axis=0), 10)
    assert fake_milvus.calls[-1][2]["timeout"] == 60
    calls = len(fake_milvus.calls)
    with limit_search_time(time.perf_counter() - 1), pytest.raises(EngineUnavailableError, match="deadline has passed"):
        search(index)
    assert len(fake_milvus.calls) == calls


def test_short_answers_are_filled_by_a_scan_counted_and_logged_once_a_minute(index, fake_milvus, caplog):
    fake_milvus.max_answer_rows = 3
    for _ in range(5):
        hits = index.search(QUERIES, 10)
        np.testing.assert_array_equal(hits.rows, index.vectors.search_exact(QUERIES, 10).rows)
    assert index._session.short_answer_count == 20
    assert caplog.text.count("answered 4 queries with fewer rows than it has") == 1


@pytest.mark.parametrize("error", [FakeRpcError("DEADLINE_EXCEEDED", "late"), FakeMilvusError(65535, "any"), None])
def test_failures_of_the_server_and_impossible_answers_make_the_engine_unavailable(index, fake_milvus, error):
    if error is None:
        fake_milvus.search = lambda *_, **__: [type("Answer", (), {"ids": [5, 5], "distances": [1.0, 1.0]})]
    else:
        fake_milvus.failures["search"] = error
    fail(index, 3)
    assert index.unavailable_reason is not None
