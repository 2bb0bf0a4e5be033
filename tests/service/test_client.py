"""The client, against the service and its OpenAPI document."""

import inspect
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import polars as pl
import pytest

from vecall.client import Client, ServiceError, _parse_response
from vecall.errors import ConfigError, QueryError


def test_client_calls_every_endpoint(index_shop, start_server, publish_release):
    publish_release(index_shop, "second", activate=False)
    server = start_server(index_shop)
    with Client(server.url) as client:
        assert client.is_ready()
        recalled = client.recall(user_id="user-1", k=3, explain=True)
        assert (recalled["release"], recalled["plan"]["path"]) == ("tiny", "index")
        assert client.recommend(user_id="user-1", k=3, diversity={"mmr": 1})["ids"] == recalled["ids"]
        assert client.upsert([{"id": "new", "fields": {"year": 3}}])["accepted"] == 1
        assert client.upsert([{"id": "new", "fields": {"title": "New"}}], partial=True)["accepted"] == 1
        assert client.delete(["new"])["deleted"] == 1
        assert client.activate("second") == {"release": "second", "previous": "tiny"}
        assert client.list_releases()["current"] == "second"
        with pytest.raises(ServiceError, match="k: ") as caught:
            client.recall(user_id="user-1", k=0)
        assert (caught.value.status, caught.value.code, caught.value.field) == (422, "invalid", "k")
        assert caught.value.retry_after_seconds is None
        server.stop()
        assert not client.is_ready()
        with pytest.raises(ServiceError) as caught:
            client.recall(user_id="user-1")
        assert caught.value.code == "unreachable"


def test_client_covers_the_openapi_document(client):
    """Every endpoint for machines has a method, and every field can be sent."""
    document = client.get("/openapi.json").json()
    sent_fields = {}

    class RecordingClient(Client):
        def _send_once(self, method, path, payload):
            sent_fields[method.lower(), path] = set(payload or ())
            return {"ready": True}

    recording = RecordingClient("http://localhost")
    fields = document["components"]["schemas"]["RecallRequest"]["properties"]
    recording.recall(**dict.fromkeys(fields))
    recording.recommend(**dict.fromkeys(document["components"]["schemas"]["RecommendRequest"]["properties"]))
    for call in (recording.upsert, recording.delete, recording.activate):
        parameters = inspect.signature(call).parameters.values()
        call(*[[] for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD])
    recording.list_releases()
    recording.is_ready()
    probes = {("get", "/healthz"), ("get", "/metrics")}
    documented = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert set(sent_fields) | probes == documented
    for (method, path), names in sent_fields.items():
        if method == "post":
            reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert names == set(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])


@pytest.fixture
def scripted_server():
    """A server of prepared (status, body) responses: its URL, the responses, and the requests it has received."""
    responses, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            requests.append(
                (self.path, self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"])))
            )
            status, body = responses.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/base/", responses, requests
    server.shutdown()
    server.server_close()


def test_client_retries_when_the_service_is_busy(scripted_server):
    url, responses, requests = scripted_server
    busy = json.dumps({"error": {"code": "overloaded", "message": "busy", "field": None}}).encode()
    responses += [(503, busy), (429, busy), (200, b'{"ids": []}')]
    with Client(url, key="secret") as client:
        assert client.recall(user_id=1) == {"ids": []}
    assert requests == [("/base/v1/recall", "Bearer secret", b'{"user_id": 1}')] * 3
    responses += [(503, busy)] * 3
    with Client(url) as client, pytest.raises(ServiceError, match="busy"):
        client.recall(user_id=1)
    assert not responses


def test_response_of_a_proxy_is_quoted(scripted_server):
    url, responses, _ = scripted_server
    responses += [(502, b"<html>Bad Gateway</html>")]
    with Client(url) as client, pytest.raises(ServiceError, match="Bad Gateway") as caught:
        client.recall(user_id=1)
    assert (caught.value.status, caught.value.code) == (502, "unreadable")


@pytest.mark.parametrize("url", ["localhost:8080", "http://localhost:x", "http://localhost:99999", "http://[::1"])
def test_invalid_url_is_an_error(url):
    with pytest.raises(ConfigError, match="http://127"):
        Client(url)


@pytest.mark.parametrize("key", ["secret\n", "sécret"])
def test_key_that_no_header_can_hold_is_an_error(key):
    with pytest.raises(ConfigError, match="key: expected printable ASCII"):
        Client("http://localhost", key)


def test_numpy_values_are_sent_as_plain_numbers(scripted_server):
    url, responses, requests = scripted_server
    responses += [(200, b"{}")]
    with Client(url) as client:
        client.recall(vector=np.float32([0.5, 1]), k=np.int8(3), exclude_seen=np.bool_(False), exclude=pl.Series([7]))
        assert json.loads(requests[0][2]) == {"vector": [0.5, 1], "k": 3, "exclude_seen": False, "exclude": [7]}
        for value in (float("nan"), {1, 2}, b"x"):
            with pytest.raises(QueryError, match="the request cannot be written as JSON"):
                client.recall(vector=value)


def test_retry_after_may_be_a_date():
    with pytest.raises(ServiceError) as caught:
        _parse_response(503, "Wed, 21 Oct 2026 07:28:00 GMT", b"<html>")
    assert caught.value.retry_after_seconds == 1.0


def test_wait_that_is_longer_than_the_timeout_is_left_to_the_caller(scripted_server):
    url, responses, requests = scripted_server
    responses += [(503, b"{}")]
    with Client(url, timeout_seconds=0.005) as client:
        client._connection.timeout = 10.0
        with pytest.raises(ServiceError) as caught:
            client.recall(user_id=1)
    assert caught.value.retry_after_seconds == 0.01
    assert len(requests) == 1


@pytest.mark.parametrize(
    "url", ["http://my host:80", "http://localhost/ü", "http://.example.com", f"http://{'x' * 64}.example.com"]
)
def test_url_that_no_request_can_name_is_an_error(url):
    with pytest.raises(ConfigError, match="url: expected"):
        Client(url)


def test_connection_that_the_service_closed_is_opened_again(monkeypatch):
    """Without an attempt that counts: the service closes connections that are idle."""
    monkeypatch.setattr("time.sleep", None)

    class ClosingHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = b'{"ready": true, "current": "one", "releases": []}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True  # and says nothing of it

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), ClosingHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", max_attempts=1) as client:
            for _ in range(3):
                assert client.is_ready()
                assert client.list_releases()["current"] == "one"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with Client(f"http://127.0.0.1:{server.server_port}", max_attempts=1) as client:
        assert not client.is_ready()


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://[::1]", "::1", 80),
        ("https://[2001:db8::1]/api", "2001:db8::1", 443),
        ("http://[::1]:8080", "::1", 8080),
        ("https://shop.example", "shop.example", 443),
    ],
)
def test_host_and_port_are_those_of_the_url(url, host, port):
    connection = Client(url)._connection
    assert (connection.host, connection.port) == (host, port)
