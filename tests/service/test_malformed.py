"""Thousands of malformed requests: each gets an error that explains it, and the process leaks nothing."""

import json
import random
import socket
from pathlib import Path

import pytest

REQUEST_COUNT, SLOW_REQUEST_COUNT = 600, 10_000

VALID_BODIES = {
    "/v1/recall": {
        "user_id": "user-1",
        "user": {"type": "kind 1", "price.eur": 5.0, "标签": ["红1"], "look": [0.1, 0.2, 0.3]},
        "history": ["item-999-é", "item-998-é"],
        "k": 5,
        "where": [{"field": "year", "op": "in", "value": [1, 2, 3]}],
        "exclude": ["item-997-é"],
        "exclude_seen": True,
        "explain": False,
    },
    "/v1/recommend": {
        "user_id": "user-1",
        "k": 5,
        "candidates": 20,
        "channels": ["vector", "popular"],
        "diversity": {"by": "type", "max": 2},
        "deadline_ms": 1_000,
    },
    "/v1/items": {"items": [{"id": "new", "fields": {"year": 5, "type": "kind 1", "标签": ["红"], "text": "矢量"}}]},
    "/v1/items/delete": {"ids": ["nothing", "new"]},
    "/v1/releases/activate": {"name": "tiny-2"},
}
ODD_VALUES = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        -(2**63) - 1,
        10**400,
        1e308,
        "",
        "a",
        "\x00",
        "\ud800",
        "\u202e",
        "é" * 300,
    ),
    *([], {}, [[]], [None], {"": None}, [1] * 20_000, "x" * 70_000, {"a": {"b": {"c": []}}}, "../../etc/passwd", "1e5"),
)


def mutate(rng: random.Random, value):
    """Replace, remove, repeat or rename one part of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        mutated = dict(value)
        match rng.randrange(4):
            case 0:
                del mutated[key]
            case 1:
                mutated[rng.choice(["", "k", "__class__", "user_id", "\ud800"])] = mutated.pop(key)
            case _:
                mutated[key] = mutate(rng, value[key])
        return mutated
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutate(rng, value[index]), *value[index + rng.randrange(2) :]]
    return rng.choice(ODD_VALUES)


def to_body(rng: random.Random, value) -> bytes:
    """Encode a value as JSON; a good half of the bodies is damaged afterwards."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    match rng.randrange(12):
        case 0:
            return text[: rng.randrange(len(text) + 1)]
        case 1:
            return text.replace(b"5", rng.choice([b"NaN", b"Infinity", b"1e999", b"05", b"+5", b"0x5"]))
        case 2:
            return b'{"user":' * 3_000 + b"1" + b"}" * 3_000
        case 3:
            return b"[" * rng.choice([10, 100_000])
        case 4:
            index = rng.randrange(len(text) + 1)
            return text[:index] + bytes(rng.randrange(256) for _ in range(3)) + text[index:]
        case 5:
            return b"\xef\xbb\xbf" + text
        case 6:
            return text.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
    return text


class RawConnection:
    """A TCP connection, opened again after the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port, self._socket = port, None

    def send(self, content: bytes) -> tuple[int, bytes]:
        """Send bytes; returns status and body of the response, status 0 if the connection was closed without one."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        try:
            self._socket.sendall(content)
            return self._read()
        except (ConnectionError, BrokenPipeError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _read(self) -> tuple[int, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            chunk = self._socket.recv(65_536)
            if not chunk:
                self.close()
                return 0, b""
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        while len(body) < int(headers[b"content-length"]):
            body += self._socket.recv(65_536)
        if headers.get(b"connection") == b"close":
            self.close()
        return int(head.split(b" ")[1]), body


def read_resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def connect(server) -> RawConnection:
    return RawConnection(int(server.url.rpartition(":")[2]))


def send_malformed_requests(server, count: int, seed: int) -> dict[int, int]:
    """Returns the number of responses by status."""
    rng, connection, counts = random.Random(seed), connect(server), {}
    for _ in range(count):
        path = rng.choice(list(VALID_BODIES))
        body = to_body(rng, mutate(rng, VALID_BODIES[path]))
        content_type = b"application/json" if rng.random() < 0.95 else rng.choice([b"text/plain", b"", b"\xff"])
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        status, content = connection.send(head % (path.encode(), content_type, len(body)) + body)
        counts[status] = counts.get(status, 0) + 1
        assert status in (0, 200, 400, 401, 403, 404, 409, 413, 415, 422, 429, 503), (status, path, body[:300], content)
        if status >= 400:
            assert json.loads(content)["error"]["message"], body
            assert len(content) < 2_000, content
    connection.close()
    return counts


def check_malformed_requests(server, count: int) -> None:
    send_malformed_requests(server, count // 4, 0)  # fills caches: not a leak
    bytes_before = read_resident_bytes(server.process.pid)
    counts = send_malformed_requests(server, count, 1)
    growth = read_resident_bytes(server.process.pid) - bytes_before
    assert counts[422] > 0.3 * count
    assert counts[400] > 0.1 * count
    assert counts.get(0, 0) < 0.05 * count, counts
    assert counts.get(503, 0) < 0.002 * count, counts  # a machine that stalls misses a deadline
    assert growth < 40 * 2**20, f"{growth:,} bytes more after {count} requests"
    assert server.request("/v1/recall", {"user_id": "user-1", "k": 3})[0] == 200
    assert "Traceback" not in server.read_log()


def test_malformed_requests_get_explained_errors(shop, start_server):
    check_malformed_requests(start_server(shop), REQUEST_COUNT)


@pytest.mark.slow
def test_ten_thousand_malformed_requests_leak_no_memory(shop, start_server):
    check_malformed_requests(start_server(shop), SLOW_REQUEST_COUNT)


def test_slow_body_times_out(shop, start_server, tmp_path):
    (tmp_path / "settings.toml").write_text("[limits]\nbody_timeout_seconds = 0.5\n")
    connection = connect(start_server(shop, "--settings", str(tmp_path / "settings.toml")))
    status, content = connection.send(b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
    assert status == 408
    assert json.loads(content)["error"]["code"] == "timeout"
    connection.close()


def test_invalid_http_heads_are_rejected(shop, start_server):
    server = start_server(shop)
    connection = connect(server)
    for head in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        status, _ = connection.send(head)
        connection.close()
        assert status in (0, 400, 403, 404, 505), head
    too_long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    status, _ = connection.send(too_long)
    connection.close()
    assert status in (0, 400, 431)
    assert server.request("/healthz")[0] == 200
