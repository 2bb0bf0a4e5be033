"""The endpoints, against the library's own answers."""

import json

import numpy as np
import pytest
from support import synthetic
from support.server import open_test_client, wait_until

from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.pruning import get_journal_path
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.store import Store

ITEM = synthetic.make_item_id(3)


def recall(client, **request):
    answer = client.post("/v1/recall", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def error(answer):
    told = answer.json()
    assert list(told) == ["error"]
    assert list(told["error"]) == ["code", "message", "field"]
    return answer.status_code, told["error"]["code"], told["error"]["field"]


REQUESTS = pytest.mark.parametrize(
    "request_",
    [
        {"user_id": "user-3", "k": 5},
        {"user_id": "user-3", "k": 5, "recent": [synthetic.make_item_id(9), "unheard of"]},
        {"user_id": "user-3", "k": 5, "exclude_seen": False, "where": [{"field": "year", "op": "lt", "value": 9}]},
        {"user_id": "nobody", "k": 4},
        {
            "user_id": "nobody",
            "history": [synthetic.make_item_id(1), "unheard of"],
            "k": 4,
            "exclude": [synthetic.make_item_id(7)],
        },
        {"user": {"type": "kind 1"}, "history": [], "k": 36},
        {"vector": [0.5] * 8, "k": 100},
    ],
)


@REQUESTS
def test_the_answer_is_the_library_s(client, shop, request_):
    with open_recaller(shop) as recaller:
        assert recall(client, **request_) == recaller.recall(Query.from_json(request_)).as_json()


@REQUESTS
def test_the_index_answers_as_a_scan_does(client, index_client, request_):
    scanned, searched = recall(client, **request_), recall(index_client, **request_)
    assert searched["ids"] == scanned["ids"]
    assert searched["scores"] == pytest.approx(scanned["scores"], abs=1e-6)
    assert recall(index_client, user_id="user-3", k=5, explain=True)["plan"]["path"] == "index"


def test_today_s_clicks_are_appended_and_excluded(client):
    clicked = recall(client, user_id="user-3", k=1)["ids"]
    after = recall(client, user_id="user-3", k=36, recent=[*clicked, "unheard of"])
    assert after["unknown"] == {"user": False, "history": 1, "exclude": 0}
    assert not set(clicked) & set(after["ids"])
    assert error(client.post("/v1/recall", json={"user_id": "user-3", "recent": "item"})) == (422, "invalid", "recent")


def test_explain_says_how(client):
    plan = recall(client, user_id="user-1", k=3, explain=True)["plan"]
    assert list(plan) == ["path", "matches", "excluded", "delta", "effort", "ms"]
    assert list(plan["ms"]) == ["encode", "plan", "search", "merge"]


def test_a_partial_change_keeps_what_it_does_not_name(client):
    before = {"user_id": "user-1", "k": 36, "exclude_seen": False}
    held = [{"field": "title", "op": "eq", "value": "Item 3"}]
    told = client.post("/v1/items", json={"items": [{"id": ITEM, "fields": {"year": 2000}}], "partial": True})
    assert told.status_code == 200, told.text
    year = {"field": "year", "op": "eq", "value": 2000}
    assert recall(client, **before, where=[*held, year])["ids"] == [ITEM]
    whole = {"items": [{"id": ITEM, "fields": {"year": 2001}}]}
    assert client.post("/v1/items", json=whole).status_code == 200
    assert recall(client, **before, where=held)["ids"] == []  # without a title from now on
    new = {"items": [{"id": "new", "fields": {"year": 2000}}], "partial": True}
    assert error(client.post("/v1/items", json=new)) == (422, "invalid", "items[0].id")
    wrong = client.post("/v1/items", json=whole | {"partial": "yes"})
    assert error(wrong) == (422, "invalid", "partial")


def test_changes_that_the_release_cannot_take_are_told(shop):
    with Journal.open(get_journal_path(Store.open(shop)), "string") as journal:
        journal.append([Operation(0, "upsert", "new", {}, np.ones(3, np.float32), None, has_external_vector=True)])
    with open_test_client(shop) as client:
        told = client.get("/readyz").json()
        assert (told["ready"], told["rejected_changes"]) == (True, 1)
        assert "cannot apply 1 live changes (seq 1)" in told["reason"]
        assert "vecall_refused_changes 1.0" in client.get("/metrics").text
        assert "cannot take 1 live changes" in client.get("/").text
        fields = {"type": "kind 0", "title": "New", "year": 2000}
        assert client.post("/v1/items", json={"items": [{"id": "new", "fields": fields}]}).status_code == 200
        told = client.get("/readyz").json()
        assert (told["rejected_changes"], told["reason"]) == (0, None)


def test_a_change_is_seen_by_the_next_request(client):
    fields = {"type": "kind 0", "title": "New", "year": 2000}
    told = client.post("/v1/items", json={"items": [{"id": "new", "fields": fields}]}).json()
    assert told == {"release": "tiny", "seq": 1, "accepted": 1}
    only_new = {"where": [{"field": "year", "op": "eq", "value": 2000}]}
    assert recall(client, user_id="user-1", k=2, **only_new)["ids"] == ["new"]
    told = client.post("/v1/items/delete", json={"ids": ["new", "nothing"]}).json()
    assert told == {"release": "tiny", "seq": 3, "deleted": 1, "unknown": 1}
    assert recall(client, user_id="user-1", k=2, **only_new)["ids"] == []


def test_releases_are_listed_and_gone_over_to(client, shop, publish_more):
    publish_more(shop, "second", activate=False)
    listed = client.get("/v1/releases").json()
    assert listed["current"] == "tiny"
    assert [one["name"] for one in listed["releases"]] == ["second", "tiny"]
    assert set(listed["releases"][0]) == {
        *("name", "created", "items", "dim", "bytes", "metrics", "parent", "journal_seq"),
    }
    for name, before in (("second", "tiny"), ("tiny", "second")):
        told = client.post("/v1/releases/activate", json={"name": name})
        assert (told.status_code, told.json()) == (200, {"release": name, "previous": before})
        assert recall(client, user_id="user-1")["release"] == name
        assert client.get("/v1/releases").json()["current"] == name


def test_what_another_process_publishes_is_gone_over_to(client, shop, publish_more):
    publish_more(shop, "second", activate=True)
    wait_until(lambda: recall(client, user_id="user-1")["release"] == "second")
    assert 'vecall_swaps_total{result="done"} 1.0' in client.get("/metrics").text


def test_a_damaged_release_is_refused_and_the_old_one_serves_on(client, shop, publish_more):
    publish_more(shop, "second", activate=False)
    file = shop / "releases" / "second" / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    told = client.post("/v1/releases/activate", json={"name": "second"})
    assert error(told) == (409, "release_refused", None)
    assert "index.faiss" in told.json()["error"]["message"]
    assert recall(client, user_id="user-1")["release"] == "tiny"
    # So it is when another process calls it current, which no check of the store would let happen.
    pointer = json.loads((shop / "CURRENT").read_text())
    digest = (shop / "releases" / "second" / "manifest.sha256").read_text().strip()
    (shop / "CURRENT").write_text(json.dumps(pointer | {"release": "second", "manifest_sha256": digest}) + "\n")
    wait_until(lambda: "index.faiss" in (client.get("/readyz").json()["reason"] or ""))
    assert recall(client, user_id="user-1")["release"] == "tiny"
    assert client.get("/readyz").json()["ready"]


def test_no_release_of_that_name(client):
    assert error(client.post("/v1/releases/activate", json={"name": "none"})) == (404, "not_found", "name")
    assert error(client.post("/v1/releases/activate", json={"name": "../tiny"})) == (422, "invalid", "name")


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
def test_what_is_wrong_is_told_with_its_field(client, body, expected):
    assert error(client.post("/v1/recall", content=body)) == expected


def test_limits_name_what_is_too_much(shop):
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
        is_red = {"field": "year", "op": "in", "value": [1, 2]}
        for field, request in (
            ("k", {"k": 11}),
            ("history", {"history": ["a"] * 3}),
            ("exclude", {"exclude": ["a"] * 4}),
            ("where", {"where": [is_red] * 2}),
            ("where[0].value", {"where": [is_red | {"value": [1, 2, 3]}]}),
        ):
            assert error(client.post("/v1/recall", json={"user_id": "a", "k": 5} | request)) == (422, "invalid", field)
        most = {"k": 10, "history": ["a"] * 2, "exclude": ["a"] * 3, "where": [is_red]}
        assert client.post("/v1/recall", json={"user_id": "a"} | most).status_code == 200
        three = {"items": [{"id": str(i)} for i in range(3)]}
        assert error(client.post("/v1/items", json=three)) == (422, "invalid", "items")
        assert error(client.post("/v1/items/delete", json={"ids": ["a"] * 3})) == (422, "invalid", "ids")
        large = {"user_id": "a" * 2000}
        assert error(client.post("/v1/recall", json=large)) == (413, "too_large", None)
        parts = iter([b"{", b" " * 2000])  # its length is not told beforehand
        assert error(client.post("/v1/recall", content=parts)) == (413, "too_large", None)


def test_other_paths_and_methods(client):
    assert error(client.get("/nothing"))[:2] == (404, "not_found")
    assert error(client.get("/v1/recall"))[:2] == (405, "method_not_allowed")


def test_vectors_of_another_encoder_are_refused(client):
    item = {"id": "new", "vector": [0.1] * 8, "encoder": "00", "fields": {}}
    assert error(client.post("/v1/items", json={"items": [item]}))[:2] == (409, "encoder_mismatch")


def test_too_many_changes_wait(shop):
    with open_test_client(shop, max_delta_items=1) as client:
        answers = [client.post("/v1/items", json={"items": [{"id": f"new-{n}", "fields": {}}]}) for n in range(2)]
        assert answers[0].status_code == 200
        assert error(answers[1])[:2] == (429, "delta_full")
        assert answers[1].headers["Retry-After"]


def test_metrics_tell_what_happened(client):
    for k in (5, 10):
        recall(client, vector=np.eye(8)[0].tolist(), k=k)
    recall(client, user_id="nobody", k=1)
    recall(client, user={"type": "never heard of", "price.eur": 5}, k=1)
    client.post("/v1/recall", content=b"{")
    client.get("/nothing")
    text = client.get("/metrics").text
    for line in (
        'vecall_requests_total{endpoint="/v1/recall",status="200"} 4.0',
        'vecall_requests_total{endpoint="/v1/recall",status="400"} 1.0',
        'vecall_requests_total{endpoint="other",status="404"} 1.0',
        'vecall_errors_total{code="bad_json"} 1.0',
        'vecall_recall_fallbacks_total{kind="popular"} 1.0',
        'vecall_recall_stage_seconds_count{stage="search"} 4.0',
        'vecall_unknown_share{what="user"} 1.0',
        'vecall_unknown_share{what="features"} 1.0',
        "vecall_items 36.0",
    ):
        assert line in text
    # Paths without an index are exact, and are judged to be.
    wait_until(lambda: 'vecall_live_ann_recall{bound="mean",path="scan"} 1.0' in client.get("/metrics").text)
