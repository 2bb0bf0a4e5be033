"""The client, against the service and its document."""

import inspect
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vecall.client import Client, ServiceError
from vecall.errors import ConfigError


def test_it_asks_for_all_that_the_service_does(index_shop, process_of, publish_more):
    publish_more(index_shop, "second", activate=False)
    served = process_of(index_shop)
    with Client(served.url) as client:
        assert client.is_ready()
        recalled = client.recall(user_id="user-1", k=3, explain=True)
        assert (recalled["release"], recalled["plan"]["path"]) == ("tiny", "index")
        assert client.upsert([{"id": "new", "fields": {"year": 3}}])["accepted"] == 1
        assert client.upsert([{"id": "new", "fields": {"title": "New"}}], partial=True)["accepted"] == 1
        assert client.delete(["new"])["deleted"] == 1
        assert client.activate("second") == {"release": "second", "previous": "tiny"}
        assert client.list_releases()["current"] == "second"
        with pytest.raises(ServiceError, match="k: ") as refused:
            client.recall(user_id="user-1", k=0)
        assert (refused.value.status, refused.value.code, refused.value.field) == (422, "invalid", "k")
        assert refused.value.retry_after_seconds is None
        served.stop()
        assert not client.is_ready()
        with pytest.raises(ServiceError) as refused:
            client.recall(user_id="user-1")
        assert refused.value.code == "unreachable"


def test_its_requests_are_those_of_the_document(client):
    """Every endpoint for machines has a method, and every field can be sent."""
    document = client.get("/openapi.json").json()
    sent = set()

    class Listening(Client):
        def _once(self, method, path, content):
            sent.add((method.lower(), path, tuple(content or ())))
            return {"ready": True}

    listening = Listening("http://localhost")
    fields = document["components"]["schemas"]["RecallRequest"]["properties"]
    listening.recall(**dict.fromkeys(fields))
    for call in (listening.upsert, listening.delete, listening.activate):
        parameters = inspect.signature(call).parameters.values()
        call(*[[] for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD])
    listening.list_releases()
    listening.is_ready()
    asked = {(method, path): names for method, path, names in sent}
    probes = {("get", "/healthz"), ("get", "/metrics")}
    assert set(asked) | probes == {(method, path) for path, told in document["paths"].items() for method in told}
    for (method, path), names in asked.items():
        if method == "post":
            reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert set(names) == set(document["components"]["schemas"][reference.rpartition("/")[2]]["properties"])


@pytest.fixture
def scripted():
    """A server that gives prepared answers; gives its url and what it was asked."""
    answers, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked.append(
                (self.path, self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"])))
            )
            status, body = answers.pop(0)
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
    yield f"http://127.0.0.1:{server.server_port}/base/", answers, asked
    server.shutdown()
    server.server_close()


def test_it_comes_again_when_the_service_is_busy(scripted):
    url, answers, asked = scripted
    busy = json.dumps({"error": {"code": "overloaded", "message": "busy", "field": None}}).encode()
    answers += [(503, busy), (429, busy), (200, b'{"ids": []}')]
    with Client(url, key="secret") as client:
        assert client.recall(user_id=1) == {"ids": []}
    assert asked == [("/base/v1/recall", "Bearer secret", b'{"user_id": 1}')] * 3
    answers += [(503, busy)] * 3
    with Client(url) as client, pytest.raises(ServiceError, match="busy"):
        client.recall(user_id=1)
    assert not answers


def test_answers_of_others_are_told(scripted):
    url, answers, _ = scripted
    answers += [(502, b"<html>Bad Gateway</html>")]
    with Client(url) as client, pytest.raises(ServiceError, match="Bad Gateway") as refused:
        client.recall(user_id=1)
    assert (refused.value.status, refused.value.code) == (502, "unreadable")


def test_a_url_is_needed():
    with pytest.raises(ConfigError, match="http://127"):
        Client("localhost:8080")
