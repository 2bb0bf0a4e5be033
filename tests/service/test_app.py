"""The endpoints of the API, against `Recaller`."""

import asyncio
import json
import re
import shutil
import time

import numpy as np
import pytest
from starlette.requests import Request
from support import synthetic
from support.server import open_test_client, wait_until

from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.store import Store
from vecall.service.auth import ApiKeys
from vecall.service.parsing import read_body

ITEM = synthetic.make_item_id(3)


def recall(client, **request):
    response = client.post("/v1/recall", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def parse_error(response):
    """Status, code and field of an error response."""
    content = response.json()
    assert list(content) == ["error"]
    assert list(content["error"]) == ["code", "message", "field"]
    return response.status_code, content["error"]["code"], content["error"]["field"]


REQUESTS = pytest.mark.parametrize(
    "request_",
    [
        {"user_id": "user-3", "k": 5},
        {"user_id": "user-3", "k": 5, "recent": [synthetic.make_item_id(9), "unknown"]},
        {"user_id": "user-3", "k": 5, "exclude_seen": False, "where": [{"field": "year", "op": "lt", "value": 9}]},
        {"user_id": "nobody", "k": 4},
        {
            "user_id": "nobody",
            "history": [synthetic.make_item_id(1), "unknown"],
            "k": 4,
            "exclude": [synthetic.make_item_id(7)],
        },
        {"user": {"type": "kind 1"}, "history": [], "k": 36},
        {"vector": [0.5] * 8, "k": 100},
    ],
)


@REQUESTS
def test_recall_answers_like_the_recaller(readonly_client, readonly_shop, request_):
    with open_recaller(readonly_shop) as recaller:
        assert recall(readonly_client, **request_) == recaller.recall(Query.from_json(request_)).as_json()


@REQUESTS
def test_index_and_scan_return_the_same_items(readonly_client, readonly_index_client, request_):
    scanned, searched = recall(readonly_client, **request_), recall(readonly_index_client, **request_)
    assert searched["ids"] == scanned["ids"]
    assert searched["scores"] == pytest.approx(scanned["scores"], abs=1e-6)
    assert recall(readonly_index_client, user_id="user-3", k=5, explain=True)["plan"]["path"] == "index"


def test_recent_items_are_appended_and_excluded(readonly_client):
    clicked_ids = recall(readonly_client, user_id="user-3", k=1)["ids"]
    answer = recall(readonly_client, user_id="user-3", k=36, recent=[*clicked_ids, "unknown"])
    assert answer["unknown"] == {"user": False, "history": 1, "exclude": 0}
    assert not set(clicked_ids) & set(answer["ids"])
    assert parse_error(readonly_client.post("/v1/recall", json={"user_id": "user-3", "recent": "item"})) == (
        422,
        "invalid",
        "recent",
    )


def test_explain_returns_the_plan(readonly_client):
    plan = recall(readonly_client, user_id="user-1", k=3, explain=True)["plan"]
    assert list(plan) == ["path", "matches", "excluded", "delta", "effort", "ms", "channels"]
    assert list(plan["ms"]) == ["encode", "plan", "search", "merge"]


def test_partial_upsert_keeps_missing_columns(client):
    query = {"user_id": "user-1", "k": 36, "exclude_seen": False}
    title_condition = {"field": "title", "op": "eq", "value": "Item 3"}
    year_condition = {"field": "year", "op": "eq", "value": 2000}
    partial = client.post("/v1/items", json={"items": [{"id": ITEM, "fields": {"year": 2000}}], "partial": True})
    assert partial.status_code == 200, partial.text
    assert recall(client, **query, where=[title_condition, year_condition])["ids"] == [ITEM]
    replacement = {"items": [{"id": ITEM, "fields": {"year": 2001}}]}
    assert client.post("/v1/items", json=replacement).status_code == 200
    assert recall(client, **query, where=[title_condition])["ids"] == []  # its title is null now
    new_item = {"items": [{"id": "new", "fields": {"year": 2000}}], "partial": True}
    assert parse_error(client.post("/v1/items", json=new_item)) == (422, "invalid", "items[0].id")
    not_boolean = client.post("/v1/items", json=replacement | {"partial": "yes"})
    assert parse_error(not_boolean) == (422, "invalid", "partial")


def test_rejected_changes_are_reported_until_they_are_replaced(shop):
    with Journal.open(get_journal_path(Store.open(shop)), "string") as journal:
        journal.append([Operation(0, "upsert", "new", {}, np.ones(3, np.float32), None, has_external_vector=True)])
    with open_test_client(shop) as client:
        readiness = client.get("/readyz").json()
        assert (readiness["ready"], readiness["rejected_changes"]) == (True, 1)
        assert "cannot apply 1 live changes (seq 1)" in readiness["reason"]
        assert "vecall_rejected_changes 1.0" in client.get("/metrics").text
        assert "cannot apply 1 live changes" in client.get("/").text
        fields = {"type": "kind 0", "title": "New", "year": 2000}
        assert client.post("/v1/items", json={"items": [{"id": "new", "fields": fields}]}).status_code == 200
        readiness = client.get("/readyz").json()
        assert (readiness["rejected_changes"], readiness["reason"]) == (0, None)


def test_writes_are_visible_to_the_next_recall(client):
    fields = {"type": "kind 0", "title": "New", "year": 2000}
    response = client.post("/v1/items", json={"items": [{"id": "new", "fields": fields}]}).json()
    assert response == {"release": "tiny", "seq": 1, "accepted": 1}
    new_items = {"where": [{"field": "year", "op": "eq", "value": 2000}]}
    assert recall(client, user_id="user-1", k=2, **new_items)["ids"] == ["new"]
    response = client.post("/v1/items/delete", json={"ids": ["new", "nothing"]}).json()
    assert response == {"release": "tiny", "seq": 3, "deleted": 1, "unknown": 1}
    assert recall(client, user_id="user-1", k=2, **new_items)["ids"] == []


def test_releases_are_listed_and_activated(client, shop, publish_release):
    publish_release(shop, "second", activate=False)
    listed = client.get("/v1/releases").json()
    assert listed["current"] == "tiny"
    assert [release["name"] for release in listed["releases"]] == ["second", "tiny"]
    assert set(listed["releases"][0]) == {
        *("name", "created", "items", "dim", "bytes", "metrics", "parent", "journal_seq"),
    }
    for name, previous in (("second", "tiny"), ("tiny", "second")):
        response = client.post("/v1/releases/activate", json={"name": name})
        assert (response.status_code, response.json()) == (200, {"release": name, "previous": previous})
        assert recall(client, user_id="user-1")["release"] == name
        assert client.get("/v1/releases").json()["current"] == name


def test_release_published_by_another_process_is_served(client, shop, publish_release):
    publish_release(shop, "second", activate=True)
    wait_until(lambda: recall(client, user_id="user-1")["release"] == "second")
    assert 'vecall_release_switches_total{result="success"} 1.0' in client.get("/metrics").text


def test_damaged_release_is_rejected_while_the_old_one_is_served(client, shop, publish_release):
    publish_release(shop, "second", activate=False)
    file = shop / "releases" / "second" / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    response = client.post("/v1/releases/activate", json={"name": "second"})
    assert parse_error(response) == (409, "release_refused", None)
    assert "index.faiss" in response.json()["error"]["message"]
    assert recall(client, user_id="user-1")["release"] == "tiny"
    # Likewise if CURRENT names it, which no check of the store would let happen.
    pointer = json.loads((shop / "CURRENT").read_text())
    digest = (shop / "releases" / "second" / "manifest.sha256").read_text().strip()
    (shop / "CURRENT").write_text(json.dumps(pointer | {"release": "second", "manifest_sha256": digest}) + "\n")
    wait_until(lambda: "index.faiss" in (client.get("/readyz").json()["reason"] or ""))
    assert recall(client, user_id="user-1")["release"] == "tiny"
    assert client.get("/readyz").json()["ready"]


def test_release_that_replaces_one_of_its_name_is_served(shop, tmp_path):
    """As on a machine that gets copies of the release `latest`."""
    for ids in ([1, 2, 3], [7, 8, 9]):
        publish_vectors(tmp_path / f"store-{ids[0]}", ids, np.eye(3), name="latest")
    store = tmp_path / "store-1"
    with open_test_client(store, writable=False, poll_seconds=0.05) as client:
        assert sorted(recall(client, vector=[1, 0, 0])["ids"]) == [1, 2, 3]
        shutil.rmtree(store / "releases" / "latest")
        shutil.copytree(tmp_path / "store-7" / "releases" / "latest", store / "releases" / "latest")
        Store.open(store).activate("latest")
        wait_until(lambda: sorted(recall(client, vector=[1, 0, 0])["ids"]) == [7, 8, 9])
        switches = 'vecall_release_switches_total{result="success"} 1.0'
        assert switches in client.get("/metrics").text
        time.sleep(0.2)  # nothing is loaded again
        assert switches in client.get("/metrics").text
        pointer = json.loads((store / "CURRENT").read_text())
        (store / "CURRENT").write_text(json.dumps(pointer | {"manifest_sha256": "0" * 64}) + "\n")
        wait_until(lambda: "CURRENT is damaged" in (client.get("/readyz").json()["reason"] or ""))
        assert sorted(recall(client, vector=[1, 0, 0])["ids"]) == [7, 8, 9]


def test_activating_an_unknown_release_is_an_error(readonly_client):
    assert parse_error(readonly_client.post("/v1/releases/activate", json={"name": "none"})) == (
        404,
        "not_found",
        "name",
    )
    assert parse_error(readonly_client.post("/v1/releases/activate", json={"name": "../tiny"})) == (
        422,
        "invalid",
        "name",
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", (400, "bad_json", None)),
        (b"", (400, "bad_json", None)),
        (b"[]", (422, "invalid", None)),
        (b"{}", (422, "empty_query", None)),
        (b'{"user_id": 1.5}', (422, "invalid", "user_id")),
        (b'{"user_id": "a", "k": 0}', (422, "invalid", "k")),
        (b'{"user_id": "a", "k": "5"}', (422, "invalid", "k")),
        (b'{"user_id": "a", "k": 10001}', (422, "invalid", "k")),
        (b'{"user_id": "a", "surprise": 1}', (422, "invalid", "surprise")),
        (b'{"history": ["a", null]}', (422, "invalid", "history[1]")),
        (b'{"history": ["a", 5]}', (422, "invalid", "history")),
        (b'{"vector": [NaN]}', (422, "invalid", "vector[0]")),
        (b'{"vector": [1]}', (422, "invalid", "vector")),
        (b'{"user": {"price.eur": "dear"}}', (422, "invalid", "user.price.eur")),
        (b'{"user": {"int": 5}}', (422, "invalid", "user.int")),
        (b'{"user_id": "a", "where": [{"field": "year", "op": "has", "value": 1}]}', (422, "invalid", "where[0].op")),
        (
            b'{"user_id": "a", "where": [{"field": "year", "op": "contains_any", "value": [1]}]}',
            (422, "invalid", "where[0].op"),
        ),
        (b'{"user_id": "a", "where": [{"field": "year", "op": "eq"}]}', (422, "invalid", "where[0].value")),
    ],
)
def test_invalid_recall_error_names_the_field(readonly_client, body, expected):
    assert parse_error(readonly_client.post("/v1/recall", content=body)) == expected


def test_limit_error_names_the_field(shop):
    limits = {
        "max_k": 10,
        "max_history": 2,
        "max_exclude": 3,
        "max_conditions": 1,
        "max_filter_values": 2,
        "max_batch_items": 2,
        "max_body_bytes": 2000,
    }
    with open_test_client(shop, limits=limits) as client:
        condition = {"field": "year", "op": "in", "value": [1, 2]}
        for field, request in (
            ("k", {"k": 11}),
            ("history", {"history": ["a"] * 3}),
            ("exclude", {"exclude": ["a"] * 4}),
            ("where", {"where": [condition] * 2}),
            ("where[0].value", {"where": [condition | {"value": [1, 2, 3]}]}),
        ):
            assert parse_error(client.post("/v1/recall", json={"user_id": "a", "k": 5} | request)) == (
                422,
                "invalid",
                field,
            )
        at_limits = {"k": 10, "history": ["a"] * 2, "exclude": ["a"] * 3, "where": [condition]}
        assert client.post("/v1/recall", json={"user_id": "a"} | at_limits).status_code == 200
        items = {"items": [{"id": str(i)} for i in range(3)]}
        assert parse_error(client.post("/v1/items", json=items)) == (422, "invalid", "items")
        assert parse_error(client.post("/v1/items/delete", json={"ids": ["a"] * 3})) == (422, "invalid", "ids")
        large_body = {"user_id": "a" * 2000}
        assert parse_error(client.post("/v1/recall", json=large_body)) == (413, "too_large", None)
        chunks = iter([b"{", b" " * 2000])  # sent without Content-Length
        assert parse_error(client.post("/v1/recall", content=chunks)) == (413, "too_large", None)


def test_unknown_path_and_method_are_errors(readonly_client):
    assert parse_error(readonly_client.get("/nothing"))[:2] == (404, "not_found")
    assert parse_error(readonly_client.get("/v1/recall"))[:2] == (405, "method_not_allowed")


def test_content_length_of_other_digits_is_ignored():
    async def receive():
        return {"type": "http.request", "body": b"{}"}

    headers = [(b"content-length", "²".encode("latin-1"))]  # a digit to `str.isdigit`, but not to `int`
    request = Request({"type": "http", "headers": headers}, receive)
    assert asyncio.run(read_body(request, max_bytes=10, timeout_seconds=5)) == b"{}"


@pytest.mark.parametrize("path", ["/docs/", "/nothing", "/v1/recall/"])
def test_invalid_host_of_an_unknown_path_causes_no_internal_error(shop, path):
    with open_test_client(shop, ApiKeys((b"read-key-0123456789",))) as client:  # accepts any Host
        response = client.get(path, headers={"Host": "["})
        assert response.status_code < 500, response.text


def test_vector_of_another_encoder_is_rejected(readonly_client):
    item = {"id": "new", "vector": [0.1] * 8, "encoder": "00", "fields": {}}
    assert parse_error(readonly_client.post("/v1/items", json={"items": [item]}))[:2] == (409, "encoder_mismatch")


def test_full_delta_rejects_new_items(shop):
    with open_test_client(shop, max_delta_items=1) as client:
        first, second = (client.post("/v1/items", json={"items": [{"id": f"new-{n}", "fields": {}}]}) for n in range(2))
        assert first.status_code == 200
        assert parse_error(second)[:2] == (429, "delta_full")
        assert second.headers["Retry-After"]


def test_metrics_count_requests_and_recalls(client):
    for k in (5, 10):
        recall(client, vector=np.eye(8)[0].tolist(), k=k)
    recall(client, user_id="nobody", k=1)
    recall(client, user={"type": "unknown", "price.eur": 5}, k=1)
    client.post("/v1/recall", content=b"{")
    client.get("/nothing")
    text = client.get("/metrics").text
    for line in (
        'vecall_http_requests_total{endpoint="/v1/recall",status="200"} 4.0',
        'vecall_http_requests_total{endpoint="/v1/recall",status="400"} 1.0',
        'vecall_http_requests_total{endpoint="other",status="404"} 1.0',
        'vecall_errors_total{code="bad_json"} 1.0',
        'vecall_recall_fallbacks_total{kind="popular"} 1.0',
        'vecall_recall_stage_duration_seconds_count{stage="search"} 4.0',
        'vecall_unknown_input_ratio{kind="user"} 1.0',
        'vecall_unknown_input_ratio{kind="features"} 1.0',
        "vecall_items 36.0",
    ):
        assert line in text
    # A scan is exact, so its online ANN recall is 1.
    wait_until(lambda: 'vecall_online_ann_recall_ratio{path="scan"} 1.0' in client.get("/metrics").text)
    text = client.get("/metrics").text
    assert 'vecall_online_ann_recall_ratio_upper{path="scan"} 1.0' in text
    assert 0 < float(re.search(r'vecall_online_ann_recall_ratio_lower{path="scan"} (.*)', text).group(1)) < 1
