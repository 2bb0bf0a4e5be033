"""Malformed requests, by the thousand: each is told what is wrong, and the process is none the worse."""

import json
import random
import socket
from pathlib import Path

import pytest

COUNT, MANY = 600, 10_000

WHOLE = {
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
    "/v1/items": {"items": [{"id": "new", "fields": {"year": 5, "type": "kind 1", "标签": ["红"], "text": "矢量"}}]},
    "/v1/items/delete": {"ids": ["nothing", "new"]},
    "/v1/releases/activate": {"name": "tiny-2"},
}
ODD = (
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


def damaged(rng: random.Random, value):
    """A value with one part of it replaced, removed, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        rest = dict(value)
        match rng.randrange(4):
            case 0:
                del rest[key]
            case 1:
                rest[rng.choice(["", "k", "__class__", "user_id", "\ud800"])] = rest.pop(key)
            case _:
                rest[key] = damaged(rng, value[key])
        return rest
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], damaged(rng, value[place]), *value[place + rng.randrange(2) :]]
    return rng.choice(ODD)


def body_of(rng: random.Random, value) -> bytes:
    """JSON, or what was JSON."""
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
            place = rng.randrange(len(text) + 1)
            return text[:place] + bytes(rng.randrange(256) for _ in range(3)) + text[place:]
        case 5:
            return b"\xef\xbb\xbf" + text
        case 6:
            return text.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
    return text


class Line:
    """One connection, opened again when the other side has closed it."""

    def __init__(self, port: int) -> None:
        self._port, self._socket = port, None

    def ask(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to some bytes; status 0 where the connection was closed without one."""
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
        got = b""
        while b"\r\n\r\n" not in got:
            part = self._socket.recv(65_536)
            if not part:
                self.close()
                return 0, b""
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            body += self._socket.recv(65_536)
        if fields.get(b"connection") == b"close":
            self.close()
        return int(head.split(b" ")[1]), body


def memory_of(pid: int) -> int:
    """Bytes in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def send(served, count: int, seed: int) -> dict[int, int]:
    """How often each status came."""
    rng, line, statuses = random.Random(seed), Line(int(served.url.rpartition(":")[2])), {}
    for _ in range(count):
        path = rng.choice(list(WHOLE))
        body = body_of(rng, damaged(rng, WHOLE[path]))
        kind = b"application/json" if rng.random() < 0.95 else rng.choice([b"text/plain", b"", b"\xff"])
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
        status, answer = line.ask(head % (path.encode(), kind, len(body)) + body)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in (0, 200, 400, 401, 403, 404, 409, 413, 415, 422, 429, 503), (status, path, body[:300], answer)
        if status >= 400:
            told = json.loads(answer)["error"]
            assert told["message"], body
            assert len(answer) < 2_000, answer
    line.close()
    return statuses


def check(served, count: int) -> None:
    send(served, count // 4, 0)  # what is kept of the first ones is no leak
    before = memory_of(served.process.pid)
    statuses = send(served, count, 1)
    grown = memory_of(served.process.pid) - before
    assert statuses[422] > 0.3 * count
    assert statuses[400] > 0.1 * count
    assert statuses.get(0, 0) < 0.05 * count, statuses
    assert statuses.get(503, 0) < 0.002 * count, statuses  # a machine that stalls misses a deadline
    assert grown < 40 * 2**20, f"{grown:,} bytes more after {count} requests"
    assert served.request("/v1/recall", {"user_id": "user-1", "k": 3})[0] == 200
    assert "Traceback" not in served.read_log()


def test_some_malformed_requests(shop, process_of):
    check(process_of(shop), COUNT)


@pytest.mark.slow
def test_ten_thousand_malformed_requests(shop, process_of):
    check(process_of(shop), MANY)


def test_a_body_that_does_not_come_is_not_waited_for(shop, process_of, tmp_path):
    (tmp_path / "settings.toml").write_text("[limits]\nbody_timeout_seconds = 0.5\n")
    served = process_of(shop, "--settings", str(tmp_path / "settings.toml"))
    line = Line(int(served.url.rpartition(":")[2]))
    status, answer = line.ask(b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
    assert status == 408
    assert json.loads(answer)["error"]["code"] == "timeout"
    line.close()


def test_heads_that_are_no_http(shop, process_of):
    served = process_of(shop)
    line = Line(int(served.url.rpartition(":")[2]))
    for head in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        status, _ = line.ask(head)
        line.close()
        assert status in (0, 400, 403, 404, 505), head
    too_long = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    status, _ = line.ask(too_long)
    line.close()
    assert status in (0, 400, 431)
    assert served.request("/healthz")[0] == 200
