"""What is too much is turned away, and told so."""

import threading
import time

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.server import open_test_client, wait_until

from vecall.errors import InvalidReleaseError, OverloadedError, TooManyScansError
from vecall.recall import filters, scan_limiter
from vecall.recall.query import Query
from vecall.recall.scan_limiter import ScanLimiter
from vecall.release.release import Release
from vecall.release.store import Store
from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.recall_service import RecallService
from vecall.service.settings import ServeSettings


def test_the_deadline_counts_between_stages(client, monkeypatch):
    calls = []

    class Late:
        queue_ms = 1.0

        def raise_if_expired(self):
            calls.append(1)
            if len(calls) > 2:
                raise OverloadedError("too late")

    with pytest.raises(OverloadedError):
        client.service.run_query(Query(user_id="user-1"), Late())
    assert len(calls) == 3


def test_an_overloaded_service_says_when_to_come_again(shop, monkeypatch):
    with open_test_client(shop, max_queue=0, max_concurrent_scans=1) as client:
        begun = threading.Event()
        answer = client.service.recaller.recall_with_trace

        def slow(*args, **options):
            begun.set()
            time.sleep(0.5)  # more than the deadline
            return answer(*args, **options)

        monkeypatch.setattr(client.service.recaller, "recall_with_trace", slow)
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.post("/v1/recall", json={"user_id": "a"})))
        first.start()
        begun.wait(10)
        second = client.post("/v1/recall", json={"user_id": "a"})
        first.join()
        assert second.status_code == 503
        assert second.json()["error"]["code"] == "overloaded"
        assert second.headers["Retry-After"] == "1"
        assert answers[0].status_code in (200, 503)  # its deadline may have passed


def test_large_scans_are_few(monkeypatch, client):
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 10)
    limit = ScanLimiter(1)
    with limit.acquire(100):
        with limit.acquire(9):
            pass
        with pytest.raises(TooManyScansError, match="100 items"), limit.acquire(100):
            pass
        client.service.recaller._scan_limiter = limit
        one = {"vector": np.eye(8)[0].tolist(), "k": 3}
        answer = client.post("/v1/recall", json=one)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_scans")
        assert answer.headers["Retry-After"] == "1"
    assert client.post("/v1/recall", json=one).status_code == 200


def test_a_filter_that_is_new_is_evaluated_beside_the_loop(monkeypatch, client):
    """Among millions of items it takes as long as many recalls; its answer is kept."""
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 10)
    where, evaluated = [{"field": "year", "op": "gte", "value": 1}], []
    plainly = filters.evaluate_filter
    monkeypatch.setattr(
        filters,
        "evaluate_filter",
        lambda *asked, **options: (evaluated.append(threading.current_thread().name), plainly(*asked, **options))[1],
    )
    for _ in range(3):
        assert client.post("/v1/recall", json={"user_id": "user-1", "k": 3, "where": where}).status_code == 200
    assert len(evaluated) == 1
    assert evaluated[0].startswith("vecall-scan")


def test_before_it_is_ready_nothing_is_recalled(client):
    client.service.not_ready_reason = "golden queries are still asked"
    for answer in (client.get("/readyz"), client.post("/v1/recall", json={"user_id": "user-1"})):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert "golden queries" in answer.json()["error"]["message"]
        assert answer.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200


def test_a_release_that_answers_otherwise_is_not_ready_until_another_one_is(shop, publish_more, monkeypatch):
    publish_more(shop, "second", activate=False)
    check = Release.check_golden_queries

    def other_processor(release):
        if release.name == "tiny":
            raise InvalidReleaseError("golden queries: user vectors differ", file="golden.vectors.npy")
        check(release)

    monkeypatch.setattr(Release, "check_golden_queries", other_processor)
    serving = RecallService.open(shop, ServeSettings(poll_seconds=0.05))
    with TestClient(create_app(serving, ApiKeys()), base_url="http://localhost") as client:
        wait_until(lambda: "user vectors differ" in client.get("/readyz").text)
        assert client.post("/v1/recall", json={"user_id": "user-1"}).status_code == 503
        Store.open(shop).activate("second")  # by another process
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/v1/recall", json={"user_id": "user-1"}).json()["release"] == "second"
