"""Overload and unreadiness: excess requests are rejected with a code and Retry-After."""

import threading
import time

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.server import open_test_client, wait_until

from vecall.errors import InvalidReleaseError, OverloadedError, TooManyScansError
from vecall.index.hnsw import HnswIndex
from vecall.index.planner import CostModel
from vecall.recall import filters, scan_limiter
from vecall.recall.query import Query
from vecall.recall.scan_limiter import ScanLimiter
from vecall.release.release import Release
from vecall.release.store import Store
from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.recall_service import RecallService
from vecall.service.settings import ServeSettings


def test_deadline_is_checked_between_stages(client, monkeypatch):
    calls = []

    class ExpiringDeadline:
        queue_ms, expires_at = 1.0, float("inf")

        def raise_if_expired(self):
            calls.append(1)
            if len(calls) > 2:
                raise OverloadedError("too late")

    with pytest.raises(OverloadedError):
        client.service.run_query(Query(user_id="user-1"), ExpiringDeadline())
    assert len(calls) == 3


def test_overloaded_service_sends_retry_after(shop, monkeypatch):
    with open_test_client(shop, max_queue=0, max_concurrent_scans=1) as client:
        started = threading.Event()
        recall_with_trace = client.service.recaller.recall_with_trace

        def recall_slowly(*arguments, **options):
            started.set()
            time.sleep(0.5)  # more than the deadline
            return recall_with_trace(*arguments, **options)

        monkeypatch.setattr(client.service.recaller, "recall_with_trace", recall_slowly)
        responses = []
        first = threading.Thread(target=lambda: responses.append(client.post("/v1/recall", json={"user_id": "a"})))
        first.start()
        started.wait(10)
        second = client.post("/v1/recall", json={"user_id": "a"})
        first.join()
        assert second.status_code == 503
        assert second.json()["error"]["code"] == "overloaded"
        assert second.headers["Retry-After"] == "1"
        assert responses[0].status_code in (200, 503)  # its deadline may have passed


def test_large_scans_are_limited(monkeypatch, client):
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 10)
    limiter = ScanLimiter(1)
    with limiter.acquire(100):
        with limiter.acquire(9):
            pass
        with pytest.raises(TooManyScansError, match="100 items"), limiter.acquire(100):
            pass
        client.service.recaller._scan_limiter = limiter
        query = {"vector": np.eye(8)[0].tolist(), "k": 3}
        response = client.post("/v1/recall", json=query)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many_scans")
        assert response.headers["Retry-After"] == "1"
    assert client.post("/v1/recall", json=query).status_code == 200


@pytest.mark.parametrize("path", ["/v1/recall", "/v1/recommend"])
def test_large_scan_among_several_channels_is_restarted_in_a_thread(monkeypatch, client, path):
    """It is no failure of the channel, which the others would make up for."""
    query = {"user_id": "user-1", "k": 5, "channels": ["vector", "popular", "similar"]}
    expected = client.post(path, json=query).json()
    assert expected["degraded"] == []
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 1)
    assert client.post(path, json=query).json() == expected


def test_new_filter_is_evaluated_in_a_scan_thread_once(monkeypatch, client):
    """Over millions of items it takes as long as many recalls; the result is cached."""
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 10)
    where, thread_names = [{"field": "year", "op": "gte", "value": 1}], []
    evaluate_filter = filters.evaluate_filter

    def record_thread(*arguments, **options):
        thread_names.append(threading.current_thread().name)
        return evaluate_filter(*arguments, **options)

    monkeypatch.setattr(filters, "evaluate_filter", record_thread)
    for _ in range(3):
        assert client.post("/v1/recall", json={"user_id": "user-1", "k": 3, "where": where}).status_code == 200
    assert len(thread_names) == 1
    assert thread_names[0].startswith("vecall-scan")


@pytest.mark.parametrize(("equivalent_rows", "thread_name"), [(49_999, "asyncio"), (50_000, "vecall-scan")])
def test_long_search_of_the_index_runs_in_a_scan_thread(monkeypatch, index_client, equivalent_rows, thread_name):
    """Of a query far from all items it takes as long as many recalls, which would wait for it."""
    query, thread_names = {"user_id": "user-1", "k": 3}, []
    expected = index_client.post("/v1/recall", json=query).json()
    monkeypatch.setattr(CostModel, "count_equivalent_rows", lambda *_: equivalent_rows)
    search = HnswIndex.search

    def record_thread(*arguments, **options):
        thread_names.append(threading.current_thread().name)
        return search(*arguments, **options)

    monkeypatch.setattr(HnswIndex, "search", record_thread)
    assert index_client.post("/v1/recall", json=query).json() == expected
    assert thread_names[0].startswith(thread_name), thread_names


def test_recall_before_readiness_is_503(client):
    client.service.not_ready_reason = "the golden queries have not been verified yet"
    for response in (client.get("/readyz"), client.post("/v1/recall", json={"user_id": "user-1"})):
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "not_ready"
        assert "golden queries" in response.json()["error"]["message"]
        assert response.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200


def test_failed_golden_queries_keep_the_service_unready_until_another_release(shop, publish_release, monkeypatch):
    publish_release(shop, "second", activate=False)
    check_golden_queries = Release.check_golden_queries

    def fail_for_tiny(release):
        if release.name == "tiny":
            raise InvalidReleaseError("golden queries: user vectors differ", file="golden.vectors.npy")
        check_golden_queries(release)

    monkeypatch.setattr(Release, "check_golden_queries", fail_for_tiny)
    service = RecallService.open(shop, ServeSettings(poll_seconds=0.05))
    with TestClient(create_app(service, ApiKeys()), base_url="http://localhost") as client:
        wait_until(lambda: "user vectors differ" in client.get("/readyz").text)
        assert client.post("/v1/recall", json={"user_id": "user-1"}).status_code == 503
        Store.open(shop).activate("second")  # by another process
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/recall", json={"user_id": "user-1"}).json()["release"] == "second"
