"""The service while the server that holds the index is slow, frozen, down, wrong or back again."""

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient
from support.channel_oracles import make_similar_items
from support.fake_engine import NAME, register
from support.server import open_test_client, wait_until

from vecall.channels.channel_tables import ChannelTables
from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import EngineUnavailableError
from vecall.index import timing
from vecall.index.settings import IndexSettings
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.service import recall_service
from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.metrics import online_recall
from vecall.service.recall_service import RecallService
from vecall.service.settings import ServeSettings
from vecall.service.ui.i18n import TEXTS

N = 60
VECTORS = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
BY_VECTOR = {"vector": [1.0, 2.0, -1.0, 0.5], "k": 5}
EXACT_IDS = np.argsort(-(VECTORS.astype(np.float16).astype(np.float32) @ np.float32(BY_VECTOR["vector"])))[:5].tolist()
POPULAR_IDS = list(range(N - 1, N - 6, -1))
RELATED = {"history": [7], "channels": ["similar"], "k": 1}
RELATED_TO_NEW = {"history": [1_000], "channels": ["similar"], "k": 1}
FEW = {**BY_VECTOR, "where": [{"field": "year", "op": "lt", "value": 3}]}


@pytest.fixture(scope="module")
def shared_server():
    with pytest.MonkeyPatch.context() as patch:
        yield register(patch)


@pytest.fixture
def server(shared_server):
    shared_server.reset()
    return shared_server


def publish(path, name, sign=1.0, *, activate=True):
    """Publish items whose vectors, and so the order of answers, are turned round by the sign."""
    contents = ReleaseContents(
        item_ids=build_id_map(pl.Series(range(N)), "integer"),
        vectors=sign * VECTORS,
        attributes=pl.DataFrame({"year": np.arange(N)}),
        popularity=np.arange(N, dtype=np.float32),
        users=UserTable(build_id_map(pl.Series([1]), "integer"), pl.DataFrame(height=1), RaggedArray.from_lists([[3]])),
        channels=ChannelTables(similar=make_similar_items([[((row + 1) % N, 64.0)] for row in range(N)], [1.0])),
    )
    queries = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    with Store.open_or_create(path).create_draft(name) as draft:
        settings = IndexSettings(engine=NAME, ks=(5, 20))
        metadata = write_release(draft.directory, contents, settings, queries=queries, name=name)
        draft.commit(metadata, activate=activate)


@pytest.fixture(scope="module")
def shared_store(shared_server, tmp_path_factory):
    """A store of the releases `one`, which is current, and `two`; their indexes are always cheaper than a scan."""
    path = tmp_path_factory.mktemp("outage") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)
        publish(path, "one")
        publish(path, "two", sign=-1.0, activate=False)
    return path


@pytest.fixture
def store(shared_store, tmp_path):
    return shutil.copytree(shared_store, tmp_path / "store")


@contextmanager
def frozen(server):
    """Let searches wait during the context, whatever their deadline."""
    server.set(fault="frozen", keeps_deadlines=False)
    try:
        yield
    finally:
        server.set(fault="down")


@contextmanager
def serve(store, **settings):
    """A client of a service that is perhaps not ready."""
    service = RecallService.open(store, ServeSettings(poll_seconds=0.05, **settings))
    with TestClient(create_app(service, ApiKeys()), base_url="http://localhost") as client:
        client.service = service
        yield client


def recall(client, query, path="/v1/recall"):
    response = client.post(path, json=query)
    return response.status_code, response.json()


def assert_refused(client, query, path="/v1/recall"):
    response = client.post(path, json=query)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert response.headers["Retry-After"] == "1"


def read_metric(client, name):
    match = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return None if match is None else float(match[1])


@pytest.mark.parametrize("fault", ["down", "frozen"])
def test_refused_requests_recover_by_themselves(store, server, fault):
    with open_test_client(store) as client:
        server.set(fault=fault)
        start = time.perf_counter()
        for path in ("/v1/recall", "/v1/recommend"):
            assert_refused(client, BY_VECTOR | ({"candidates": 10} if path == "/v1/recommend" else {}), path)
        assert time.perf_counter() - start < 2
        for query, ids in ((RELATED, [8]), (FEW, {0, 1, 2})):
            status, answer = recall(client, query)
            assert (status, type(ids)(answer["ids"]), answer["degraded"]) == (200, ids, [])
        assert_refused(client, BY_VECTOR)
        assert read_metric(client, "vecall_engine_available") == 0
        assert read_metric(client, "vecall_engine_failures_total") == 3
        status, readiness = client.get("/readyz").status_code, client.get("/readyz").json()
        assert (status, readiness["reason"]) == (200, "the fake server has failed three times")
        server.set(fault=None)
        assert recall(client, BY_VECTOR)[1]["ids"] == EXACT_IDS
        assert read_metric(client, "vecall_engine_available") == 1
        assert client.get("/readyz").json()["reason"] is None


def test_popular_items_answer_within_the_deadline(store, server):
    server.when_down = "popular"
    with open_test_client(store, deadline_ms=500, recall_sample_rate=0.0) as client:
        for fault in ("frozen", "down"):
            server.set(fault=fault)
            status, answer = recall(client, BY_VECTOR)
            assert (status, answer["ids"], answer["fallback"]) == (200, POPULAR_IDS, "popular")
            assert answer["degraded"] == ["engine"]
        status, final = recall(client, BY_VECTOR | {"candidates": 10}, "/v1/recommend")
        assert (status, final["ids"], final["degraded"]) == (200, POPULAR_IDS, ["engine"])
        assert final["channels"] == [["popular"]] * 5
        assert read_metric(client, 'vecall_degraded_answers_total{part="engine"}') == 3
        assert read_metric(client, "vecall_engine_failures_total") == 3


@pytest.mark.parametrize("fault", ["short", "empty", "damaged"])
def test_incomplete_answers_of_the_server_are_completed(store, server, fault):
    with open_test_client(store) as client:
        server.set(fault=fault)
        status, answer = recall(client, BY_VECTOR | {"explain": True})
        assert (status, answer["ids"], answer["plan"]["path"]) == (200, EXACT_IDS, "index")


def test_client_that_waits_for_ever_does_not_delay_the_answer(store, server):
    with open_test_client(store, max_concurrent_remote_searches=1, deadline_ms=150) as client:
        with frozen(server):
            start = time.perf_counter()
            assert_refused(client, BY_VECTOR)
            status, answer = recall(client, BY_VECTOR)  # the only thread is occupied
            assert (status, answer["error"]["code"]) == (503, "overloaded")
            assert recall(client, RELATED)[1]["ids"] == [8]
            assert time.perf_counter() - start < 3
        wait_until(lambda: not server.running)
        server.set(fault=None)
        wait_until(lambda: recall(client, BY_VECTOR)[0] == 200)


def test_slow_searches_delay_neither_readiness_nor_other_requests(store, server):
    with open_test_client(store, deadline_ms=10_000) as client, ThreadPoolExecutor(16) as threads:
        server.threads.clear()
        few_candidates = BY_VECTOR | {"candidates": 10}
        with frozen(server):
            searches = [
                threads.submit(recall, client, query, path)
                for query, path in ((BY_VECTOR, "/v1/recall"), (few_candidates, "/v1/recommend"))
                for _ in range(8)
            ]
            wait_until(lambda: server.running == 16)
            start = time.perf_counter()
            for _ in range(3):
                assert client.get("/readyz").status_code == 200
                assert recall(client, RELATED)[1]["ids"] == [8]
                assert recall(client, RELATED, "/v1/recommend")[0] == 200
                assert recall(client, FEW | {"channels": ["repeat"], "user_id": 1})[0] == 200
            assert time.perf_counter() - start < 3
        assert {search.result()[0] for search in searches} == {503}
        assert len(server.threads) == 16
        assert all(name.startswith("vecall-remote") for name in server.threads)


def test_seeds_without_neighbours_wait_for_the_server_in_threads_for_it(store, server):
    with open_test_client(store, deadline_ms=10_000) as client, ThreadPoolExecutor(8) as threads:
        upsert = {"items": [{"id": 1_000, "vector": VECTORS[7].tolist(), "fields": {"year": 3}}]}
        assert client.post("/v1/items", json=upsert).status_code == 200
        server.threads.clear()
        nearest = int(np.argmax(VECTORS @ VECTORS[7]))
        assert recall(client, RELATED_TO_NEW)[1]["ids"] == [nearest]
        with frozen(server):
            searches = [
                threads.submit(recall, client, RELATED_TO_NEW, path)
                for path in ("/v1/recall", "/v1/recommend")
                for _ in range(4)
            ]
            wait_until(lambda: server.running == 8)
            start = time.perf_counter()
            assert client.get("/readyz").status_code == 200
            assert recall(client, RELATED)[1]["ids"] == [8]
            assert time.perf_counter() - start < 3
        assert {search.result()[0] for search in searches} == {503}
        assert all(name.startswith("vecall-remote") for name in server.threads)
        server.when_down = "popular"
        status, answer = recall(client, RELATED_TO_NEW)
        assert (status, answer["fallback"], answer["degraded"]) == (200, "popular", ["engine"])


def test_service_is_ready_once_the_server_answers(store, server, monkeypatch):
    monkeypatch.setattr(recall_service, "_READINESS_RETRY_SECONDS", 0.02)
    server.set(fault="down")
    with serve(store) as client:
        wait_until(lambda: "fake server does not answer" in client.get("/readyz").text)
        assert client.get("/readyz").json()["error"]["code"] == "not_ready"
        assert client.post("/v1/recall", json=BY_VECTOR).json()["error"]["code"] == "not_ready"
        assert client.get("/healthz").status_code == 200
        server.set(fault=None)
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert recall(client, BY_VECTOR)[1]["ids"] == EXACT_IDS


def test_service_with_popular_items_is_ready_without_the_server_and_verifies_it_later(store, server, monkeypatch):
    monkeypatch.setattr(recall_service, "_READINESS_RETRY_SECONDS", 0.02)
    server.set(fault="down", when_down="popular")
    with serve(store) as client:
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert recall(client, BY_VECTOR)[1]["ids"] == POPULAR_IDS
        assert "vecall-golden" in {thread.name for thread in threading.enumerate()}
        server.set(fault=None)
        wait_until(lambda: "vecall-golden" not in {thread.name for thread in threading.enumerate()})
        assert recall(client, BY_VECTOR)[1]["ids"] == EXACT_IDS


def test_page_of_an_item_says_that_the_server_does_not_answer(store, server):
    with open_test_client(store) as client:
        server.set(fault="down")
        for when_down, text in (
            ("refuse", "fake server does not answer"),
            ("popular", "server that holds the index does not answer"),
        ):
            server.set(when_down=when_down)
            page = client.get("/items?id=7")
            assert page.status_code == 200
            assert text in page.text
            assert re.search(r'href="/items\?id=8[&"]', page.text)  # related items, by the channel `similar`
            assert not re.search(r'href="/items\?id=59[&"]', page.text)  # popular items are no neighbors


def test_explorer_says_that_the_server_does_not_answer(client, monkeypatch):
    run_query = client.service.run_query

    def degrade(query, deadline):
        trace = run_query(query, deadline)
        return replace(trace, answer=replace(trace.answer, degraded=("engine",), fallback="popular"))

    def refuse(query, deadline):
        raise EngineUnavailableError("the server is down")

    monkeypatch.setattr(client.service, "run_query", degrade)
    page = client.get("/?user=user-3&k=7")
    assert page.status_code == 200
    assert TEXTS["en"]["channel_engine"] in page.text
    assert TEXTS["en"]["fallback_popular"] not in page.text
    monkeypatch.setattr(client.service, "run_query", refuse)
    page = client.get("/?user=user-3&k=7")
    assert page.status_code == 200
    assert "the server is down" in page.text


def test_ann_recall_is_sampled_less_with_an_engine_on_a_server(store, server):
    with open_test_client(store) as client:
        trace = client.service.recaller.recall_with_trace(
            recall_service.parse_recall(b'{"vector": [1, 2, -1, 0.5], "k": 5}', client.service.settings.limits)
        )
        monitor = online_recall.OnlineRecallMonitor(0.5, seed=0)
        monitor._queue = queue = type(monitor._queue)()  # unbounded
        for _ in range(400):
            monitor.maybe_sample("index", trace)
        assert 5 <= queue.qsize() <= 40  # a twentieth
        server.set(fault="down", when_down="popular")
        popular = client.service.recaller.recall_with_trace(
            recall_service.parse_recall(b'{"vector": [1, 2, -1, 0.5], "k": 5}', client.service.settings.limits)
        )
        count = queue.qsize()
        for _ in range(400):
            monitor.maybe_sample("popular", popular)
        assert queue.qsize() == count


def test_closed_service_leaves_no_thread_and_no_connection(store, server):
    before = set(threading.enumerate())
    with open_test_client(store, deadline_ms=5_000) as client, ThreadPoolExecutor(8) as threads:
        server.set(delay_seconds=0.05)
        assert all(status == 200 for status, _ in threads.map(lambda _: recall(client, BY_VECTOR), range(16)))
        index = client.service.snapshot.release.remote_index
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("vecall-remote")]
    assert not left
    assert index.is_closed


def test_switch_and_rollback_under_load_fail_and_mix_nothing(store, server, monkeypatch):
    monkeypatch.setattr("vecall.live.index_unloading.UNLOAD_GRACE_SECONDS", 0.4)
    expected = {"one": EXACT_IDS, "two": np.argsort(VECTORS.astype(np.float16) @ np.float32(BY_VECTOR["vector"]))[:5]}
    expected = {name: list(map(int, ids)) for name, ids in expected.items()}
    with (
        open_test_client(store, deadline_ms=10_000, recall_sample_rate=0.0) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        server.set(delay_seconds=0.01)
        stopped = threading.Event()

        def send_requests():
            answers = []
            while not stopped.is_set():
                answers.append(recall(client, BY_VECTOR))
            return answers

        clients = [threads.submit(send_requests) for _ in range(4)]
        for name in ("two", "one", "two"):  # a rollback within the grace time, then one after it
            assert client.post("/v1/releases/activate", json={"name": name}).status_code == 200
            time.sleep(0.03)
        wait_until(lambda: server.calls[-1][0] == "unload")
        assert client.post("/v1/releases/activate", json={"name": "one"}).status_code == 200
        time.sleep(0.05)
        stopped.set()
        answers = [answer for sender in clients for answer in sender.result()]
    assert {status for status, _ in answers} == {200}
    assert {answer["release"] for _, answer in answers} == {"one", "two"}
    assert all(answer["ids"] == expected[answer["release"]] for _, answer in answers)
    assert all(answer["degraded"] == [] for _, answer in answers)
