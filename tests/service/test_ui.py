"""The pages as HTML, without a browser."""

import html as html_module
import random
import re
import shlex

import polars as pl
import pytest
from support import synthetic
from support.server import open_test_client, wait_until

from vecall.channels.merge_plan import MergePlan
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.ranking.ranker import NamedRanker
from vecall.recall.conditions import FILTER_OPS
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.service.auth import ApiKeys
from vecall.service.ui.i18n import TEXTS
from vecall.service.ui.language import negotiate_language

SCORED = r'>(Item \d+)</a>\s*<span class="id">[^<]*</span>\s*</p>\s*<span class="score"'
PAGES = ("/", "/items", "/releases", "/docs")
KEY = "read-key-0123456789"


def get_page(client, path, **headers):
    response = client.get(path, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/html")
    return response.text


def get_commands(client, **headers):
    """Method, path, headers and body of the curl commands on the API page, and the base URL that they have."""
    commands = []
    for command in re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", get_page(client, "/docs", **headers), re.DOTALL):
        words = shlex.split(html_module.unescape(command).replace("\\\n", " "))
        options = list(zip(words[2::2], words[3::2], strict=True))
        base_url, path = re.fullmatch(r"(https?://[^/]*)(/.*)", words[1]).groups()
        sent_headers = dict(value.split(": ", 1) for option, value in options if option == "-H")
        body = next((value for option, value in options if option == "-d"), None)
        commands.append((base_url, path, sent_headers, body))
    return commands


@pytest.fixture
def vector_client(tmp_path):
    """A client of a release without towers and users: integer ids, attributes of every type."""
    attributes = pl.DataFrame(
        {
            "label": [f"it's {n}" for n in range(40)],
            "price": [n / 4 for n in range(40)],
            "sold": [n % 2 == 0 for n in range(40)],
            "added": pl.datetime_range(pl.datetime(2018, 1, 1), pl.datetime(2018, 2, 9), "1d", eager=True),
            "day": pl.date_range(pl.date(2018, 1, 1), pl.date(2018, 2, 9), "1d", eager=True),
            "tags": [["red", "new"] if n % 3 else ["red"] for n in range(40)],
        }
    )
    ids = [*range(39), 2**63 - 1]
    vectors = [[float(n), 1.0, -float(n % 5)] for n in range(40)]
    publish_vectors(
        tmp_path / "vectors", ids, pl.Series(vectors, dtype=pl.Array(pl.Float32, 3)).to_numpy(), attributes=attributes
    )
    with open_test_client(tmp_path / "vectors") as client:
        yield client


def test_languages_have_the_same_texts():
    assert set(TEXTS["en"]) == set(TEXTS["zh"])
    assert all(text for texts in TEXTS.values() for text in texts.values())
    for name, text in TEXTS["en"].items():
        assert text.count("{}") == TEXTS["zh"][name].count("{}"), name
        assert not hasattr(dict, name)  # a template would take the method


@pytest.mark.parametrize(
    ("requested", "accept_language", "language"),
    [
        ("zh", "en", "zh"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "fr, en-GB;q=0.5", "en"),
        ("xx", "", "en"),
    ],
)
def test_language_is_negotiated(requested, accept_language, language):
    assert negotiate_language(requested, accept_language) == language


@pytest.mark.parametrize("path", PAGES)
def test_page_is_shown_in_both_languages(readonly_client, path):
    assert '<html lang="en">' in get_page(readonly_client, path)
    assert '<html lang="zh-Hans">' in get_page(readonly_client, path, **{"Accept-Language": "zh-CN"})
    response = readonly_client.get(f"{path}?lang=zh")
    assert response.headers["Content-Language"] == "zh-Hans"
    assert "矢量召回" in response.text
    assert TEXTS["zh"]["served_release"] in response.text
    assert TEXTS["en"]["served_release"] not in response.text
    assert "built-in" not in response.text  # a dict's method instead of a text
    assert "tiny" in response.text


def test_history_is_shown_beside_the_recalled_items(readonly_client, readonly_shop):
    with open_recaller(readonly_shop) as recaller:
        titles = recaller.candidates(Query(user_id="user-3", k=7))["title"].to_list()
    html = get_page(readonly_client, "/?user=user-3&k=7")
    assert re.findall(SCORED, html) == titles
    seen = {f"Item {item}" for item in synthetic.make_user_sequences()[3]}
    assert seen <= set(re.findall(r">(Item \d+)</a>\s*<span class=\"id\"", html))
    assert f"History <small>{len(seen)} newest of {len(seen)}</small>" in html


@pytest.fixture
def set_channels(client, monkeypatch):
    """Let the served release have been tuned to the vectors and what is popular."""
    manifest = client.service.snapshot.release.manifest
    monkeypatch.setitem(manifest.__dict__, "merge", MergePlan(weights={"vector": 1.0, "popular": 1.0}))


def list_sections(html):
    """Titles of the items in each list, by heading."""
    sections = re.findall(r'<h2 id="[^"]+">([A-Za-z ]+) <small>(.*?)</section>', html, re.DOTALL)
    return {heading: re.findall(r">(Item \d+)</a>", body) for heading, body in sections}


def list_titles(client, path, **request):
    ids = client.post(path, json={"user_id": "user-3", "k": 4, "exclude_seen": False} | request).json()["ids"]
    titles = {synthetic.make_item_id(row): f"Item {row}" for row in range(36)}
    return [titles[item_id] for item_id in ids]


def test_lists_of_the_channels_stand_beside_the_merged_one(client, set_channels):
    page = "/?user=user-3&k=4&sent=1"  # seen items are not left out
    sections = list_sections(get_page(client, page))
    assert list(sections) == ["Recalled items", "vectors", "popular", "History"]
    assert sections["Recalled items"] == list_titles(client, "/v1/recall")
    assert sections["vectors"] == list_titles(client, "/v1/recall", channels=["vector"])
    assert sections["popular"] == list_titles(client, "/v1/recall", channels=["popular"])
    assert "热门" in get_page(client, f"{page}&lang=zh")


def test_final_list_stands_beside_the_recalled_one(client, set_channels):
    client.service.recaller._ranker = NamedRanker("mine", lambda candidates: candidates["year"].fill_null(-1))
    html = get_page(client, "/?user=user-3&k=4&sent=1")
    sections = list_sections(html)
    assert list(sections) == ["Final list", "Recalled items", "vectors", "popular", "History"]
    assert sections["Final list"] == list_titles(client, "/v1/recommend")
    assert sections["Recalled items"] == list_titles(client, "/v1/recall", k=500)[:4]
    assert "ordered by mine from 36 candidates" in html
    assert '<th scope="row">ranking</th>' in html
    assert '<p class="from" title="Channels that recalled it"><span>vectors</span><span>popular</span></p>' in html
    assert "由 mine 排序" in get_page(client, "/?user=user-3&k=4&lang=zh")
    client.service.recaller._ranker = NamedRanker("mine", lambda _: None)
    broken = get_page(client, "/?user=user-3&k=4")
    assert "in the order of recall, from" in broken
    assert "Left out because it failed or was too late: ranker" in broken


def test_without_ranker_and_channels_there_is_one_list(readonly_client):
    assert list(list_sections(get_page(readonly_client, "/?user=user-3&k=4"))) == ["Recalled items", "History"]


def test_plan_of_an_index_search_is_shown_in_words(readonly_index_client):
    answer = readonly_index_client.post("/v1/recall", json={"user_id": "user-3", "k": 7, "explain": True}).json()
    assert answer["plan"]["path"] == "index"
    assert answer["plan"]["effort"]["width"] > 0
    html = get_page(readonly_index_client, "/?user=user-3&k=7")
    assert len(re.findall(SCORED, html)) == 7
    assert "Searched the index" in html
    assert f"width {answer['plan']['effort']['width']}" in html
    assert f"<b>{answer['plan']['matches']}</b> <span>matching items" in html
    assert f"<b>{answer['plan']['excluded']}</b> <span>excluded or seen" in html
    assert "<b>0</b> <span>live items searched" in html
    assert "索引检索" in get_page(readonly_index_client, "/?user=user-3&k=7&lang=zh")


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("user=user-3&k=3", "Scanned all matching items exactly"),
        ("user=user-3&k=500", "All matching items"),
        ("user=nobody&k=3", "Popular items"),
    ],
)
def test_plan_without_an_index_is_shown_in_words(readonly_client, query, title):
    assert f"<strong>{title}</strong>" in get_page(readonly_client, f"/?{query}")


def test_stage_times_are_a_bar_chart(readonly_client):
    html = get_page(readonly_client, "/?user=user-3")
    stages = re.findall(r'<th scope="row">([a-z ]+)</th>\s*<td class="bar".*?<rect width="([\d.]+)"', html)
    assert [stage for stage, _ in stages] == ["waiting", "user vector", "filters", "search", "ids"]
    assert max(float(width) for _, width in stages) == 100


def test_browser_gets_an_error_page_and_others_json(client, monkeypatch):
    html = {"Accept": "text/html,application/xhtml+xml"}
    missing = client.get("/nothing", headers=html)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "This page cannot be shown" in missing.text
    assert "无法显示此页面" in client.get("/nothing?lang=zh", headers=html).text
    assert 'href="//' not in client.get("http://localhost//example.org/", headers=html).text
    assert client.get("/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/v1/nothing", headers=html).json()["error"]["code"] == "not_found"

    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("vecall.service.ui.page_contexts.search_items", fail)
    broken = client.get("/items?q=a", headers=html)
    assert broken.status_code == 500
    assert "the log has it as request" in broken.text
    assert "planted" not in broken.text
    assert client.get("/items?q=a").json()["error"]["code"] == "internal"


def test_browser_is_prompted_for_a_key(shop):
    with open_test_client(shop, ApiKeys((KEY.encode(),))) as client:
        response = client.get("/", headers={"Accept": "text/html"})
        assert response.status_code == 401
        assert "Basic" in response.headers["WWW-Authenticate"]
        assert response.headers["content-type"].startswith("text/html")


def test_pages_need_a_key_if_there_are_keys(shop):
    with open_test_client(shop, ApiKeys((KEY.encode(),))) as client:
        for path in (*PAGES, "/ui/users"):
            response = client.get(path)
            assert response.status_code == 401
            assert "Basic" in response.headers["WWW-Authenticate"]
            assert client.get(path, auth=("anyone", KEY)).status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "héllo", "x" * 300, ""])
def test_invalid_host_does_not_break_a_page(shop, host):
    """Without `allowed_hosts` a service with keys accepts any Host."""
    with open_test_client(shop, ApiKeys((KEY.encode(),))) as client:
        for path in PAGES:
            headers = {"Host": host.encode("latin-1")}
            assert client.get(path, headers=headers, auth=("anyone", KEY)).status_code == 200


def test_filters_and_exclusions_of_the_form_are_applied(readonly_client):
    path = "/?user=user-3&sent=1&k=50&field=year&op=lt&value=3"
    assert len(re.findall(SCORED, get_page(readonly_client, f"{path}&field=&op=eq&value="))) == 3
    html = get_page(readonly_client, f"{path}&exclude={synthetic.make_item_id(0)}, {synthetic.make_item_id(1)}")
    assert re.findall(SCORED, html) == ["Item 2"]
    assert "These are all matching items." in html


def test_filter_rows_are_added_and_removed_without_javascript(readonly_client):
    path = "/?user=user-3&sent=1&k=50&field=year&op=lt&value=3&field=type&op=eq&value=kind 1"
    row = '<div class="filter"'
    assert get_page(readonly_client, path).count(row) == 3  # the last one is empty
    assert get_page(readonly_client, f"{path}&add=1").count(row) == 4
    html = get_page(readonly_client, f"{path}&remove=1")
    assert html.count(row) == 2
    assert len(re.findall(SCORED, html)) == 3
    chinese = html_module.unescape(re.search(r'href="([^"]*)" lang="zh-Hans" hreflang', html).group(1))
    assert "remove" not in chinese
    assert readonly_client.get(chinese).text.count(row) == 2
    for odd in ("-1", "9" * 30, "x", ""):
        assert get_page(readonly_client, f"{path}&remove={odd}").count(row) == 3


def test_filters_are_explained_by_the_attribute_type(client, vector_client):
    html = get_page(client, "/?sent=1&field=year&op=in&value=3")
    assert "whole number; such as 0, 18, 35; several, separated by commas" in html
    operations = re.search(r'<select name="op">(.*?)</select>', html, re.DOTALL).group(1)
    assert 'value="lt">' in operations
    assert 'value="contains_any" hidden>' in operations
    html = get_page(vector_client, "/")
    for hint in (
        "number; such as 0, 5, 9.75",
        'data-hint="true or false"',
        "date and time; such as 2018-01-01T00:00:00",
        "date; such as 2018-01-01, 2018-01-21, 2018-02-09",
        "tags; such as red, new",
    ):
        assert hint in html
    assert 'value="sold" data-ops="eq ne in not_in"' in html


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("user=user-1&k=abc", "k: expected a number"),
        ("user=user-1&k=10001", "k: expected a number"),
        ("user=user-1&field=none&op=eq&value=1", "where[0]"),
        ("user=user-1&field=year&op=eq&value=old", "where[0].value: expected a number"),
        ("user=user-1&field=year&op=contains_any&value=1", "where[0].op"),
    ],
)
def test_form_error_is_shown_on_the_page(readonly_client, query, message):
    assert message in get_page(readonly_client, f"/?sent=1&{query}")


def test_input_is_escaped(client):
    markup = "%3Cscript%3Ealert(1)%3C/script%3E%22%27"
    for path in (f"/?user={markup}&history={markup}&k={markup}", f"/items?q={markup}", f"/items?id={markup}"):
        assert "<script>alert" not in get_page(client, path)
    client.post("/v1/items", json={"items": [{"id": "<b>bold</b>", "fields": {"title": "<script>alert(1)</script>"}}]})
    for path in ("/items?q=alert", "/items?id=%3Cb%3Ebold%3C/b%3E"):
        html = get_page(client, path)
        assert "&lt;script&gt;alert(1)" in html
        assert "<script>alert" not in html
        assert "<b>bold" not in html


def test_pages_load_only_own_resources(readonly_client):
    for path in (*PAGES, "/?user=user-3"):
        html = get_page(readonly_client, path)
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
        assert " style=" not in html  # the content security policy would block it
        assert not re.findall(r" on[a-z]+=", html)
        assert "<script>" not in html


def test_links_of_items_with_odd_ids_lead_to_them(tmp_path):
    ids = [
        "a,b",
        " lead",
        "trail ",
        "<b>",
        "a&b=c",
        "100%",
        "%20",
        "#h",
        "?q",
        "../x",
        "é😀",
        "x" * 300,
        "a\nb",
        "a+b",
        "0",
    ]
    publish_vectors(tmp_path, ids, [[float(n), 1.0] for n in range(len(ids))], name="one")
    with open_test_client(tmp_path) as client:
        html = get_page(client, "/items")
        links = [html_module.unescape(link) for link in re.findall(r'href="(/items\?id=[^"]*)"', html)]
        assert len(links) >= 10
        for link in links:
            assert "no item has the id" not in get_page(client, link), link


def test_items_are_found_and_have_neighbors(readonly_client):
    assert "Item 11" in get_page(readonly_client, "/items?q=ITEM 1")
    html = get_page(readonly_client, f"/items?id={synthetic.make_item_id(3)}")
    assert "<h1>Item 3</h1>" in html
    assert re.findall(SCORED, html)
    assert "no item has the id" in get_page(readonly_client, "/items?id=none")


def test_item_page_shows_what_was_taken_together(client, vector_client):
    item_id = synthetic.make_item_id(3)
    request = {"history": [item_id], "channels": ["similar"], "k": 24}
    answer = client.post("/v1/recall", json=request).json()
    html = get_page(client, f"/items?id={item_id}")
    related = html[html.index("<h2>Taken together</h2>") : html.index("<h2>Neighbors</h2>")]
    assert len(answer["ids"]) == synthetic.GROUP_SIZE - 1
    assert re.findall(r'<span class="id">(.*?)</span>', related) == answer["ids"]
    assert "常被一起选择" in get_page(client, f"/items?id={item_id}&lang=zh")
    client.post("/v1/items/delete", json={"ids": answer["ids"]})
    assert "No item was taken together with this one." in get_page(client, f"/items?id={item_id}")
    assert "Taken together" not in get_page(vector_client, "/items?id=5")


def test_items_page_suggests_popular_items(client, shop, vector_client):
    with open_recaller(shop) as recaller:
        popular_ids = recaller.recall(Query(user_id="nobody", k=24)).ids
    html = get_page(client, "/items")
    assert "<h1>Popular items</h1>" in html
    assert re.findall(r'<span class="id">(.*?)</span>', html) == popular_ids
    client.post("/v1/items/delete", json={"ids": popular_ids[:1]})
    assert popular_ids[0] not in get_page(client, "/items")
    assert "<h1>Popular items</h1>" in get_page(client, "/items?q=nothing has this title")
    assert "<h1>Popular items</h1>" in get_page(client, "/items?id=none")
    html = get_page(vector_client, "/items")
    assert "<h1>Some of the items</h1>" in html
    assert html.count("it&#39;s ") == 24


def test_release_without_towers_points_to_its_items(vector_client):
    html = get_page(vector_client, "/")
    assert "no towers" in html
    assert "Some users" not in html
    assert "Recall with this item" not in get_page(vector_client, "/items?id=5")


def test_users_are_suggested(readonly_client):
    assert readonly_client.get("/ui/users?prefix=user-1").json()["ids"] == [
        "user-1",
        *(f"user-1{n}" for n in range(10)),
    ]
    assert len(readonly_client.get("/ui/users").json()["ids"]) == 12


def test_integer_ids_are_sent_to_the_browser_as_text(publish_users):
    """JavaScript would round them."""
    with open_test_client(publish_users([5, 1_800_000_000_000_000_001])) as client:
        assert client.get("/ui/users?prefix=18").json()["ids"] == ["1800000000000000001"]
        assert client.get("/ui/users").json()["ids"] == ["5", "1800000000000000001"]
        assert "1800000000000000001" in get_page(client, "/?user=1800000000000000001")


def test_releases_are_shown_with_their_metrics_beside_the_parent_s(client, shop, publish_release):
    publish_release(shop, "second", activate=False)
    html = get_page(client, "/releases")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["second", "tiny"]
    assert re.findall(r'data-activate="(.*?)"', html) == ["second"]
    second, tiny = html.split('<li class="release')[1:]
    assert "recall@10" in second
    assert "Parent</th>" in second
    assert 'class="equal"' in second  # the same run
    assert "Parent</th>" not in tiny
    assert "served now" in tiny
    with open_test_client(shop, writable=False) as readonly_client:
        html = get_page(readonly_client, "/releases")
    assert "data-activate" not in html
    assert "read-only. To activate a release, run: vecall releases activate" in html


def test_live_changes_are_shown_with_the_served_release(client):
    assert "Live changes" not in get_page(client, "/releases")
    client.post("/v1/items/delete", json={"ids": [synthetic.make_item_id(3)]})
    client.post("/v1/items", json={"items": [{"id": "new", "fields": {}}]})
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", get_page(client, "/releases")))
    assert facts["Items that can be recalled"] == "36"
    assert facts["Added or replaced"] == "1"
    assert facts["Deleted or replaced in the release"] == "1"


def test_commands_of_the_api_page_run_as_they_are(client, vector_client):
    for each in (client, vector_client):
        commands = get_commands(each)
        assert {"/v1/recall", "/v1/items", "/v1/items/delete", "/v1/releases/activate"} <= {
            path for _, path, *_ in commands
        }
        for base_url, path, headers, body in commands:
            assert base_url == "http://localhost"
            method = "GET" if body is None else "POST"
            response = each.request(method, path, headers=headers, content=body)
            assert response.status_code == 200, (path, body, response.text)
            if path == "/v1/recall":
                assert len(response.json()["ids"]) > 0, body


def test_commands_have_the_address_and_ids_of_this_service(readonly_client):
    commands = get_commands(readonly_client, Host="localhost:9321")
    assert {base_url for base_url, *_ in commands} == {"http://localhost:9321"}
    recalls = [body for _, path, _, body in commands if path == "/v1/recall"]
    assert '"user_id": "user-' in recalls[0]
    assert re.search(r'"history": \["item-\d+-é"', recalls[1])
    assert '"field": "year", "op": "gte"' in recalls[1]


def test_commands_have_a_key_if_there_are_keys(shop):
    with open_test_client(shop, ApiKeys((KEY.encode(),))) as client:
        for _, path, headers, _ in get_commands(client, Authorization=f"Bearer {KEY}"):
            assert ("Authorization" in headers) == (path not in ("/healthz", "/readyz"))
            assert KEY not in str(headers)


def test_degraded_reason_is_shown_on_every_page(client, shop):
    (shop / "CURRENT").write_text("{")
    wait_until(lambda: client.service.degraded_reason is not None)
    assert "CURRENT" in get_page(client, "/docs")


@pytest.mark.parametrize("path", [*PAGES, "/ui/users"])
def test_odd_query_strings_cause_no_internal_error(readonly_client, path):
    rng = random.Random(0)
    odd = ["", "user-1", "-1", "9" * 40, "%00", "%ff", "%ED%A0%80", "a" * 5000, "٣", "1e9", "NaN", ",,,", "null", "<>"]
    names = [
        "user",
        "history",
        "k",
        "exclude",
        "sent",
        "field",
        "op",
        "value",
        "q",
        "id",
        "lang",
        "prefix",
        "add",
        "remove",
    ]
    for _ in range(150):
        params = [f"{rng.choice(names)}={rng.choice(odd)}" for _ in range(rng.randrange(6))]
        if rng.random() < 0.3:
            params += ["field=year", f"op={rng.choice(FILTER_OPS)}", f"value={rng.choice(odd)}"]
        response = readonly_client.get(f"{path}?{'&'.join(params)}")
        assert response.status_code in (200, 422), (params, response.text)
    assert readonly_client.get(path + "?" + "a=1&" * 300).status_code in (200, 422)
