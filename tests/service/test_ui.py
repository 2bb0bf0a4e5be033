"""What the pages show, without a browser."""

import random
import re

import numpy as np
import polars as pl
import pytest
from support import synthetic
from support.server import open_test_client, wait_until
from vecall.service.ui.projection import draw

from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.service.auth import ApiKeys
from vecall.service.settings import Limits
from vecall.service.ui.form import ExploreForm
from vecall.service.ui.i18n import TEXTS, negotiate_language
from vecall.service.ui.presenters import find_ids_with_prefix, find_title_column, sample_ids, search_items

SCORED = r'>(Item \d+)</a>\s*<span class="score"'
PAGES = ("/", "/items", "/map", "/releases", "/docs")


def page(client, path, **headers):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def test_both_languages_say_everything():
    assert set(TEXTS["en"]) == set(TEXTS["zh"])
    assert all(text for texts in TEXTS.values() for text in texts.values())


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        ("zh", "en", "zh"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "fr, en-GB;q=0.5", "en"),
        ("xx", "", "en"),
    ],
)
def test_the_language_is_the_reader_s(asked, accepted, language):
    assert negotiate_language(asked, accepted) == language


@pytest.mark.parametrize("path", PAGES)
def test_every_page_speaks_both_languages(client, path):
    assert '<html lang="en">' in page(client, path)
    assert '<html lang="zh">' in page(client, path, **{"Accept-Language": "zh-CN"})
    chinese = page(client, f"{path}?lang=zh")
    assert "矢量召回" in chinese
    assert "built-in" not in chinese
    assert "tiny" in chinese


def test_a_user_s_history_stands_beside_what_is_recalled(client, shop):
    with open_recaller(shop) as recaller:
        recalled = recaller.candidates(Query(user_id="user-3", k=7))["title"].to_list()
    html = page(client, "/?user=user-3&k=7")
    assert re.findall(SCORED, html) == recalled
    taken = {f"Item {item}" for item in synthetic.make_user_sequences()[3]}
    assert taken <= set(re.findall(r">(Item \d+)</a>\s*<span class=\"id\"", html))


def test_what_the_index_answers_is_shown_too(index_client):
    answer = index_client.post("/v1/recall", json={"user_id": "user-3", "k": 7, "explain": True}).json()
    assert answer["plan"]["path"] == "index"
    assert answer["plan"]["effort"]["width"] > 0
    html = page(index_client, "/?user=user-3&k=7")
    assert len(re.findall(SCORED, html)) == 7
    assert f"width {answer['plan']['effort']['width']}" in html


def test_a_browser_is_shown_a_page_where_a_machine_gets_json(client, monkeypatch):
    html = {"Accept": "text/html,application/xhtml+xml"}
    missing = client.get("/nothing", headers=html)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "This page cannot be shown" in missing.text
    assert "无法显示此页面" in client.get("/nothing?lang=zh", headers=html).text
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/v1/nothing", headers=html).json()["error"]["code"] == "not_found"

    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("vecall.service.ui.routes.search_items", fail)
    broken = client.get("/items?q=a", headers=html)
    assert broken.status_code == 500
    assert "it is in the log as request" in broken.text
    assert "planted" not in broken.text
    assert client.get("/items?q=a").json()["error"]["code"] == "internal"


def test_a_key_is_asked_for_on_a_page(shop):
    with open_test_client(shop, ApiKeys((b"read-key-0123456789",))) as client:
        answer = client.get("/", headers={"Accept": "text/html"})
        assert answer.status_code == 401
        assert "Basic" in answer.headers["WWW-Authenticate"]
        assert answer.headers["content-type"].startswith("text/html")


def test_filters_and_exclusions_are_those_of_the_form(client):
    asked = "/?user=user-3&sent=1&k=50&field=year&op=lt&value=3"
    assert len(re.findall(SCORED, page(client, f"{asked}&field=&op=eq&value="))) == 3
    html = page(client, f"{asked}&exclude={synthetic.make_item_id(0)}, {synthetic.make_item_id(1)}")
    assert re.findall(SCORED, html) == ["Item 2"]
    assert "These are all items that pass." in html


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("user=user-1&k=abc", "k: expected a number"),
        ("user=user-1&k=10001", "k: expected a number"),
        ("user=user-1&field=none&op=eq&value=1", "where[0]"),
        ("user=user-1&field=year&op=eq&value=old", "where[0].value: expected a number"),
        ("user=user-1&field=year&op=contains_any&value=1", "where[0].op"),
    ],
)
def test_what_is_wrong_in_the_form_is_said_on_the_page(client, query, told):
    assert told in page(client, f"/?sent=1&{query}")


def test_nothing_typed_becomes_markup(client):
    evil = "%3Cscript%3Ealert(1)%3C/script%3E%22%27"
    for path in (
        f"/?user={evil}&history={evil}&k={evil}",
        f"/items?q={evil}",
        f"/items?id={evil}",
        f"/map?colour={evil}",
    ):
        assert "<script>alert" not in page(client, path)
    client.post("/v1/items", json={"items": [{"id": "<b>bold</b>", "fields": {"title": "<script>alert(1)</script>"}}]})
    for path in ("/items?q=alert", "/items?id=%3Cb%3Ebold%3C/b%3E"):
        html = page(client, path)
        assert "&lt;script&gt;alert(1)" in html
        assert "<script>alert" not in html
        assert "<b>bold" not in html


def test_pages_load_nothing_from_elsewhere(client):
    for path in PAGES:
        html = page(client, path)
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
        assert " style=" not in html  # which the security policy would not let through
        assert "<script>" not in html


def test_items_are_found_and_have_neighbours(client):
    assert "Item 11" in page(client, "/items?q=ITEM 1")
    html = page(client, f"/items?id={synthetic.make_item_id(3)}")
    assert "<h1>Item 3</h1>" in html
    assert re.findall(SCORED, html)
    assert "no item has the id" in page(client, "/items?id=none")


def test_pages_need_a_key_where_there_are_keys(shop):
    key = "read-key-0123456789"
    with open_test_client(shop, ApiKeys((key.encode(),))) as client:
        for path in (*PAGES, "/ui/users"):
            answer = client.get(path)
            assert answer.status_code == 401
            assert "Basic" in answer.headers["WWW-Authenticate"]
            assert client.get(path, auth=("anyone", key)).status_code == 200


def test_users_are_suggested(client):
    assert client.get("/ui/users?prefix=user-1").json()["ids"] == ["user-1", *(f"user-1{n}" for n in range(10))]
    assert len(client.get("/ui/users").json()["ids"]) == 12


@pytest.fixture
def view_of(tmp_path):
    def make(ids, attributes=None):
        vectors = np.random.default_rng(0).standard_normal((len(ids), 8)).astype(np.float32)
        publish_vectors(tmp_path / "store", ids, vectors, attributes=attributes)
        return Snapshot.from_release(open_release(Store.open(tmp_path / "store")))

    return make


def test_integer_ids_are_found_by_their_first_digits(view_of):
    ids = view_of([*range(1, 200), 1000, 1999, 12345]).release.items
    assert find_ids_with_prefix(ids, "19", 100) == [19, *range(190, 200), 1999]
    assert find_ids_with_prefix(ids, "12345", 5) == [12345]
    assert find_ids_with_prefix(ids, "x", 5) == []
    assert find_ids_with_prefix(ids, "1", 3) == [1, 10, 11]
    assert sample_ids(ids, 3) == [1, 101, 12345]


def test_large_integer_ids_are_suggested_to_the_last_digit(view_of):
    big = [5, 1_800_000_000_000_000_001, 5_000_000_000_000_000_001, 2**63 - 1, -(2**63), -12, -125]
    ids = view_of(big).release.items
    assert find_ids_with_prefix(ids, "18", 9) == [1_800_000_000_000_000_001]
    assert (
        find_ids_with_prefix(ids, "50", 9)
        == find_ids_with_prefix(ids, "5000000000000000001", 9)
        == [5_000_000_000_000_000_001]
    )
    assert find_ids_with_prefix(ids, "5", 9) == [5, 5_000_000_000_000_000_001]
    assert find_ids_with_prefix(ids, "9", 9) == find_ids_with_prefix(ids, str(2**63 - 1), 9) == [2**63 - 1]
    assert find_ids_with_prefix(ids, str(2**63), 9) == find_ids_with_prefix(ids, "9" * 30, 9) == []
    assert find_ids_with_prefix(ids, "-12", 9) == [-12, -125]
    assert find_ids_with_prefix(ids, "-9", 9) == [-(2**63)]


def test_a_browser_gets_integer_ids_as_text(tmp_path, publish_users):
    """JavaScript would round them."""
    with open_test_client(publish_users([5, 1_800_000_000_000_000_001])) as client:
        assert client.get("/ui/users?prefix=18").json()["ids"] == ["1800000000000000001"]
        assert client.get("/ui/users").json()["ids"] == ["5", "1800000000000000001"]
        assert "1800000000000000001" in page(client, "/?user=1800000000000000001")


def test_items_without_titles_are_called_by_their_ids(view_of):
    view = view_of([5, 6, 7])
    assert find_title_column(view.release.attributes) is None
    assert search_items(view, "6").tolist() == [1]
    assert search_items(view, "nothing").tolist() == []


def test_form_values_are_of_the_attribute_s_kind(view_of):
    attributes = pl.DataFrame({"n": [1, 2, 3], "x": [1.5, 2, 3], "s": ["a", "b", "c"], "b": [True, False, True]})
    attributes = attributes.with_columns(tags=pl.Series([["a"], ["b", "c"], []]))
    view = view_of([1, 2, 3], attributes)
    form = ExploreForm.from_query_params(
        {
            "user": ["5"],
            "sent": ["1"],
            "field": ["n", "x", "s", "b", "tags", "n"],
            "op": ["eq", "gt", "eq", "eq", "contains_any", "in"],
            "value": ["2", "1.5", "2", "true", "a, b", "1,2"],
        }
    )
    values = [condition["value"] for condition in form.to_query(view, Limits()).where]
    assert values == [2, 1.5, "2", True, ["a", "b"], [1, 2]]
    assert not form.exclude_seen
    assert ExploreForm.from_query_params({}).exclude_seen
    with pytest.raises(QueryError, match="integers"):
        ExploreForm.from_query_params({"history": ["a"]}).to_query(view, Limits())


def test_the_map_lays_out_what_is_apart(view_of):
    n = 60
    kinds = np.arange(n) % 3
    attributes = pl.DataFrame({"kind": [f"kind {k}" for k in kinds], "price": np.arange(n) * 1.0})
    view = view_of(list(range(n)), attributes)
    drawn = draw(view, "kind", unknown="?", others="others")
    assert len(drawn.points) == n
    assert {value: count for value, _, count in drawn.legend} == {f"kind {k}": 20 for k in range(3)}
    assert all(0 <= point.x <= 1600 and 0 <= point.y <= 1000 for point in drawn.points)
    assert 0 < drawn.share < 1
    assert drawn.points == draw(view, "kind", unknown="?", others="others").points
    assert len(draw(view, "price", unknown="?", others="others").legend) == 4
    assert draw(view, "none", unknown="?", others="others").attribute == "kind"


def test_two_dimensions_are_shown_as_they_are(tmp_path):
    vectors = np.array([[0, 0], [1, 0], [0, 3], [1, 3]], dtype=np.float32)
    publish_vectors(tmp_path / "flat", [1, 2, 3, 4], vectors)
    drawn = draw(Snapshot.from_release(open_release(Store.open(tmp_path / "flat"))), None, unknown="?", others="others")
    assert drawn.share == pytest.approx(1.0)
    assert {point.x for point in drawn.points} == {20.0, 1580.0}  # along the longer side


def test_a_problem_is_said_on_every_page(client, shop):
    (shop / "CURRENT").write_text("{")
    wait_until(lambda: client.service.degraded_reason is not None)
    assert "CURRENT" in page(client, "/map")


@pytest.mark.parametrize("path", ["/", "/items", "/map", "/releases", "/docs", "/ui/users"])
def test_no_address_is_a_mistake_of_ours(client, path):
    rng = random.Random(0)
    odd = ["", "user-1", "-1", "9" * 40, "%00", "%ff", "%ED%A0%80", "a" * 5000, "٣", "1e9", "NaN", ",,,", "null", "<>"]
    names = ["user", "history", "k", "exclude", "sent", "field", "op", "value", "q", "id", "colour", "lang", "prefix"]
    for _ in range(150):
        given = [f"{rng.choice(names)}={rng.choice(odd)}" for _ in range(rng.randrange(6))]
        if rng.random() < 0.3:
            given += ["field=year", f"op={rng.choice(FILTER_OPS)}", f"value={rng.choice(odd)}"]
        answer = client.get(f"{path}?{'&'.join(given)}")
        assert answer.status_code in (200, 422), (given, answer.text)
    assert client.get(path + "?" + "a=1&" * 300).status_code in (200, 422)
