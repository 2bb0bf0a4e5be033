"""Open connections: their number is limited, and those without requests are closed."""

import contextlib
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from support.server import wait_until

from vecall.service import connections
from vecall.service.connections import limit_connections
from vecall.service.server_config import bind_socket, build_uvicorn_config
from vecall.service.settings import ServeSettings

LARGE_SIZE = 20_000_000
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _answer(scope, receive, send):
    if scope["type"] == "http":
        body = b"x" * LARGE_SIZE if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def _serve(max_connections, idle_seconds=60.0):
    listener = bind_socket("127.0.0.1", 0)
    protocol = limit_connections(max_connections, idle_seconds)
    server = uvicorn.Server(uvicorn.Config(_answer, http=protocol, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield lambda: socket.create_connection(listener.getsockname(), timeout=10)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def _request(connection):
    connection.sendall(REQUEST)
    return connection.recv(2_000)


def test_further_connections_are_rejected_and_established_ones_are_answered():
    with _serve(max_connections=2) as connect:
        with connect() as first, connect() as second:
            assert _request(first).startswith(b"HTTP/1.1 200")
            assert _request(second).startswith(b"HTTP/1.1 200")
            with connect() as third:
                answer = _request(third)
                assert answer.startswith(b"HTTP/1.1 503")
                assert b"retry-after: 1" in answer
                assert b'"code":"overloaded"' in answer
                assert third.recv(10) == b""  # closed
            assert _request(first).startswith(b"HTTP/1.1 200")

        def is_answered():
            with connect() as connection:
                return _request(connection).startswith(b"HTTP/1.1 200")

        wait_until(is_answered)  # the closed ones count no more


def test_rejected_connection_without_a_request_is_closed():
    with _serve(max_connections=1) as connect, connect() as first, connect() as second:
        assert _request(first).startswith(b"HTTP/1.1 200")
        assert second.recv(10) == b""


@pytest.mark.parametrize("sent", [b"", REQUEST[:20]])
def test_connection_without_a_whole_request_is_closed(sent):
    with _serve(max_connections=5, idle_seconds=0.2) as connect, connect() as connection:
        connection.sendall(sent)
        assert connection.recv(10) == b""


def test_trickled_header_does_not_keep_a_connection_open():
    with _serve(max_connections=5, idle_seconds=0.2) as connect, connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012 - any of the sends
            for number in range(100):
                connection.sendall(b"x-%d: a\r\n" % number)
                time.sleep(0.02)


def test_connection_that_sends_requests_stays_open():
    with _serve(max_connections=5, idle_seconds=0.5) as connect, connect() as connection:
        for _ in range(10):
            assert _request(connection).startswith(b"HTTP/1.1 200")
            time.sleep(0.15)


def _connect_with_small_buffer(connect):
    connection = connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    return connection


def _send_until_blocked(connection, content):
    """Send the content over and over until nothing was taken for 0.3 s, or until the server has given up."""
    connection.setblocking(False)
    rest, was_blocked, idle_since = content, False, time.monotonic()
    while time.monotonic() - idle_since < 0.3:
        try:
            rest = rest[connection.send(rest) :] or content
            idle_since = time.monotonic()
        except BlockingIOError:
            was_blocked = True
            time.sleep(0.01)
        except ConnectionResetError:
            assert was_blocked, "the server closed a connection that it could read from"
            return


@pytest.mark.parametrize("kind", ["a large answer", "many answers"])
def test_client_that_reads_nothing_does_not_keep_its_connection(kind, monkeypatch):
    monkeypatch.setattr(connections, "_FLUSH_SECONDS", 0.3)
    with _serve(max_connections=2, idle_seconds=0.5) as connect, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(_connect_with_small_buffer(connect))
            if kind == "a large answer":
                client.sendall(REQUEST.replace(b"/ ", b"/large "))
            else:
                _send_until_blocked(client, REQUEST * 200)

        def is_answered():
            with connect() as connection:
                return _request(connection).startswith(b"HTTP/1.1 200")

        wait_until(is_answered)


def test_client_that_reads_slowly_gets_the_whole_answer():
    with _serve(max_connections=2, idle_seconds=1.0) as connect, connect() as client:
        client.sendall(REQUEST.replace(b"/ ", b"/large "))
        size, start = 0, time.monotonic()
        while size < LARGE_SIZE:
            time.sleep(0.01)  # the system takes more to send once a third of its buffer, up to 1.3 MB, is free
            part = client.recv(100_000)
            assert part, f"closed after {size:,} bytes"
            size += len(part)
        assert time.monotonic() - start > 1.5


def test_server_takes_no_upgrade():
    """A protocol that takes over the connection would take it out of the limits."""
    assert build_uvicorn_config(_answer, ServeSettings()).ws == "none"
