"""Access control: API keys, host names, origins and content types."""

import base64

import pytest
from support.server import open_test_client, wait_until

from vecall.errors import ConfigError
from vecall.service.auth import ApiKeys, load_api_keys
from vecall.service.host_names import format_url
from vecall.service.middleware import TrustedHosts
from vecall.service.settings import load_settings

READ, ADMIN = "read-key-0123456789", "admin-key-0123456789"
KEYS = ApiKeys((READ.encode(),), (ADMIN.encode(),))
QUERY = {"user_id": "user-1", "k": 1}
ITEMS = {"ids": ["nothing"]}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def basic(key):
    """As a browser sends it: the key is the password."""
    return {"Authorization": "Basic " + base64.b64encode(f"anyone:{key}".encode()).decode()}


def test_reads_need_a_key_and_writes_an_admin_key(shop):
    with open_test_client(shop, KEYS) as client:
        for path, content, status_of_reader in (
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
                ({"Authorization": "Basic é".encode("latin-1")}, 401),
                (bearer(READ), status_of_reader),
                (basic(READ), status_of_reader),
                (bearer(ADMIN), 200),
                (basic(ADMIN), 200),
            ):
                response = client.post(path, json=content, headers=headers)
                assert response.status_code == expected, (path, headers, response.text)
                if expected != 200:
                    assert response.json()["error"]["code"] == {401: "unauthorized", 403: "forbidden"}[expected]
                    assert READ not in response.text
                    assert ADMIN not in response.text
        for path, status_without_key in (("/metrics", 401), ("/v1/releases", 401), ("/healthz", 200), ("/readyz", 200)):
            assert client.get(path).status_code == status_without_key
            assert client.get(path, headers=bearer(READ)).status_code == 200


def test_reasons_are_for_holders_of_a_key(shop):
    """They may have paths, and parts of files."""
    with open_test_client(shop, KEYS, poll_seconds=0.05) as client:
        assert client.get("/readyz").json()["reason"] is None
        (shop / "CURRENT").write_text("secret text")
        wait_until(lambda: client.get("/readyz").json()["reason"] is not None)
        assert "holders of a key" in client.get("/readyz").json()["reason"]
        assert "secret text" in client.get("/readyz", headers=bearer(READ)).json()["reason"]
        client.service.not_ready_reason = f"{shop} is damaged"
        for headers, is_told in (({}, False), (bearer(READ), True)):
            response = client.get("/readyz", headers=headers)
            assert (response.status_code, str(shop) in response.text) == (503, is_told)


def test_keys_are_loaded_from_the_environment_and_a_file(tmp_path):
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
    ("text", "message"),
    [
        ('read = "short"', "at least 16"),
        ('read = "with blanks in it, long"', "without spaces"),
        ("write = 'a-key-of-some-length'", "write"),
        ("read", "TOML"),
        ("read = 5", "at least 16"),
        ("", "has no key"),
        ("admin = []", "has no key"),
    ],
)
def test_invalid_key_file_is_an_error_that_shows_no_key(tmp_path, text, message):
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_api_keys({}, tmp_path / "keys.toml")
    assert "short" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_api_keys({}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("allowed", "host"),
    [("Recs.Example.com", "recs.example.COM:8080"), ("recs.example.com:80", "recs.example.com"), ("::1", "[::1]:8080")],
)
def test_allowed_host_may_have_any_case_and_a_port(allowed, host):
    TrustedHosts([allowed]).check_host(host)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8080", "", "[::2]"])
def test_unknown_host_name_is_forbidden_without_keys(readonly_client, host):
    for response in (
        readonly_client.post("/v1/recall", json=QUERY, headers={"Host": host}),
        readonly_client.get("/metrics", headers={"Host": host}),
        readonly_client.post("/v1/items/delete", json=ITEMS, headers={"Host": host}),
    ):
        assert response.status_code == 403
        assert response.json()["error"]["field"] == "Host"
    assert readonly_client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"])
def test_loopback_host_names_are_allowed(readonly_client, host):
    assert readonly_client.post("/v1/recall", json=QUERY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["http://recall.example", "recall.example/path", "", "[", "user@host"])
def test_allowed_host_that_no_request_can_have_is_refused(host):
    with pytest.raises(ConfigError, match=r"allowed_hosts: expected names of hosts, such as .* got"):
        load_settings(None, {"allowed_hosts": [host]})


@pytest.mark.parametrize("host", ["recall.example", "recall.example:8080", "10.0.0.1", "::1", "[::1]:80", "LOCALHOST"])
def test_names_and_addresses_are_allowed_hosts(host):
    assert load_settings(None, {"allowed_hosts": [host]}).allowed_hosts == (host,)


def test_url_of_an_address_has_brackets_for_ipv6():
    assert format_url("::1", 80) == "http://[::1]:80"
    assert format_url("127.0.0.1", 80) == "http://127.0.0.1:80"


def test_allowed_hosts_replace_the_default(shop):
    with open_test_client(shop, allowed_hosts=("recall.example",)) as client:
        statuses = [
            client.post("/v1/recall", json=QUERY, headers={"Host": host}).status_code
            for host in ("recall.example", "recall.example:443", "localhost")
        ]
        assert statuses == [200, 200, 403]


def test_cross_site_writes_are_rejected(client):
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


def test_compressed_bodies_are_rejected(client):
    response = client.post("/v1/recall", json=QUERY, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415


def test_large_writes_are_accepted(client):
    """No layer below has a smaller limit of its own."""
    body = b'{"ids": ["nothing"]' + b" " * (12 * 2**20) + b"}"
    response = client.post("/v1/items/delete", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text


def test_read_only_service_rejects_writes(shop):
    with open_test_client(shop, writable=False) as client, open_test_client(shop):
        assert client.post("/v1/items/delete", json=ITEMS).status_code == 403
        assert client.post("/v1/releases/activate", json={"name": "tiny"}).status_code == 403
        assert client.post("/v1/recall", json=QUERY).status_code == 200


def test_responses_have_a_request_id_and_are_not_cached(client):
    response = client.post("/v1/recall", json=QUERY, headers={"X-Request-ID": "mine-1"})
    assert response.headers["X-Request-ID"] == "mine-1"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert len(client.get("/healthz", headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]) == 16
