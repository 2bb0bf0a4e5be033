"""Who is let in: keys, names, origins, types of content."""

import base64

import pytest
from support.server import open_test_client

from vecall.errors import ConfigError
from vecall.service.auth import ApiKeys, load_api_keys

READ, ADMIN = "read-key-0123456789", "admin-key-0123456789"
KEYS = ApiKeys((READ.encode(),), (ADMIN.encode(),))
QUERY = {"user_id": "user-1", "k": 1}
ITEMS = {"ids": ["nothing"]}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def browser(key):
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()}


def test_reading_needs_a_key_and_changing_an_admin_s(shop):
    with open_test_client(shop, KEYS) as client:
        for path, content, of_reader in (
            ("/v1/recall", QUERY, 200),
            ("/v1/items/delete", ITEMS, 403),
            ("/v1/items", {"items": []}, 403),
            ("/v1/releases/activate", {"name": "tiny"}, 403),
        ):
            for headers, expected in (
                ({}, 401),
                (bearer("another-key-0123456"), 401),
                (bearer(""), 401),
                ({"Authorization": READ}, 401),
                ({"Authorization": "Basic %%%"}, 401),
                (bearer(READ), of_reader),
                (browser(READ), of_reader),
                (bearer(ADMIN), 200),
                (browser(ADMIN), 200),
            ):
                answer = client.post(path, json=content, headers=headers)
                assert answer.status_code == expected, (path, headers, answer.text)
                if expected != 200:
                    assert answer.json()["error"]["code"] == {401: "unauthorized", 403: "forbidden"}[expected]
                    assert READ not in answer.text
                    assert ADMIN not in answer.text
        for path, without in (("/metrics", 401), ("/v1/releases", 401), ("/healthz", 200), ("/readyz", 200)):
            assert client.get(path).status_code == without
            assert client.get(path, headers=bearer(READ)).status_code == 200


def test_keys_come_from_the_environment_and_a_file(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(f'read = ["{READ}", "another-read-key-1"]\nadmin = "{ADMIN}"\n')
    keys = load_api_keys({"VECALL_READ_KEY": "from-environment-1"}, file)
    assert [
        keys.authenticate(key) for key in ("from-environment-1", READ, "another-read-key-1", ADMIN, "", READ[:-1])
    ] == [
        *("read", "read", "read", "admin"),
        *(None, None),
    ]
    assert not load_api_keys({}, None)
    assert READ not in repr(keys)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('read = "short"', "at least 16"),
        ('read = "with blanks in it, long"', "without spaces"),
        ("write = 'a-key-of-some-length'", "write"),
        ("read", "TOML"),
        ("read = 5", "at least 16"),
    ],
)
def test_bad_key_files_are_refused_without_showing_a_key(tmp_path, text, told):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        load_api_keys({}, tmp_path / "keys.toml")
    assert "short" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_api_keys({}, tmp_path / "none.toml")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8080", "", "[::2]"])
def test_other_names_are_not_answered_to_on_loopback(client, host):
    for answer in (
        client.post("/v1/recall", json=QUERY, headers={"Host": host}),
        client.get("/metrics", headers={"Host": host}),
        client.post("/v1/items/delete", json=ITEMS, headers={"Host": host}),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["field"] == "Host"
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"])
def test_names_of_loopback_are(client, host):
    assert client.post("/v1/recall", json=QUERY, headers={"Host": host}).status_code == 200


def test_names_may_be_allowed(shop):
    with open_test_client(shop, allowed_hosts=("recall.example",)) as client:
        statuses = [
            client.post("/v1/recall", json=QUERY, headers={"Host": host}).status_code
            for host in ("recall.example", "recall.example:443", "localhost")
        ]
        assert statuses == [200, 200, 403]


def test_no_page_of_someone_else_sends_changes(client):
    for path, content in (("/v1/items/delete", ITEMS), ("/v1/releases/activate", {"name": "tiny"})):
        for headers, expected in (
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": "http://["}, 403),
            ({"Origin": "http://localhost:81"}, 403),
            ({"Content-Type": "text/plain"}, 415),
            ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
            ({"Origin": "http://localhost"}, 200),
            ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ):
            assert client.post(path, json=content, headers=headers).status_code == expected, headers


def test_compressed_bodies_are_not_unpacked(client):
    answer = client.post("/v1/recall", json=QUERY, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_large_changes_come_through(client):
    """No layer beneath has a smaller limit of its own."""
    body = b'{"ids": ["nothing"]' + b" " * (12 * 2**20) + b"}"
    answer = client.post("/v1/items/delete", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text


def test_one_that_only_reads_takes_no_changes(shop):
    with open_test_client(shop, writable=False) as client, open_test_client(shop):
        assert client.post("/v1/items/delete", json=ITEMS).status_code == 403
        assert client.post("/v1/recall", json=QUERY).status_code == 200


def test_answers_have_a_name_and_are_kept_by_nobody(client):
    answer = client.post("/v1/recall", json=QUERY, headers={"X-Request-ID": "mine-1"})
    assert answer.headers["X-Request-ID"] == "mine-1"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert len(client.get("/healthz", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]) == 16
