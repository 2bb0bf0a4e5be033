"""Connections of the HTTP server: a limited number; those that send no request, or read no answer, are closed."""

import asyncio
from collections.abc import Callable, Mapping
from typing import cast

import orjson
from uvicorn.protocols.http.auto import AutoHTTPProtocol

IDLE_SECONDS = 75.0  # a connection without a new request for so long is closed, after at most twice the time
_FLUSH_SECONDS = 5.0  # within which a connection that is closed must take what was written to it
_REJECTED_SECONDS = 1.0  # within which a rejected connection may send the request that its 503 answers
_REJECTED_BODY = orjson.dumps(
    {"error": {"code": "overloaded", "message": "too many open connections; try again later", "field": None}}
)
_REJECTED_RESPONSE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_REJECTED_BODY), _REJECTED_BODY)
)


def limit_connections(max_connections: int, idle_seconds: float = IDLE_SECONDS) -> type[asyncio.Protocol]:
    """The protocol class of a server with at most so many open connections.

    Uvicorn's own `limit_concurrency` also rejects the requests of connections that are established, and it never closes
    a connection whose first request does not arrive or stays incomplete.

    Args:
        max_connections: further connections are answered 503 `overloaded` and closed.
        idle_seconds: a connection without a new request for so long is closed, and so is one whose client
            takes nothing of an answer for so long.
    """
    open_connections: set[asyncio.Protocol] = set()

    class LimitedProtocol(_LimitedProtocol):
        def __init__(self, **arguments: object) -> None:
            super().__init__(open_connections, max_connections, idle_seconds, arguments)

    return LimitedProtocol


class _LimitedProtocol(asyncio.Protocol):
    """A connection: uvicorn's protocol behind the limits, or a rejection."""

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle
    _write_timer: asyncio.TimerHandle | None = None  # while the client does not take what was written

    def __init__(
        self,
        open_connections: set[asyncio.Protocol],
        max_connections: int,
        idle_seconds: float,
        arguments: Mapping[str, object],
    ) -> None:
        self._open_connections, self._max_connections = open_connections, max_connections
        self._idle_seconds = idle_seconds
        self._http = cast("Callable[..., asyncio.Protocol]", AutoHTTPProtocol)(**arguments)
        self._is_rejected = False
        self._last_request: object = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._is_rejected = len(self._open_connections) >= self._max_connections
        if self._is_rejected:
            self._timer = asyncio.get_running_loop().call_later(_REJECTED_SECONDS, self._transport.abort)
            return
        self._open_connections.add(self)
        self._http.connection_made(transport)
        self._check_later()

    def data_received(self, data: bytes) -> None:
        if not self._is_rejected:
            self._http.data_received(data)
        elif not self._transport.is_closing():
            self._transport.write(_REJECTED_RESPONSE)
            self._transport.close()

    def eof_received(self) -> bool | None:
        return None if self._is_rejected else self._http.eof_received()

    def pause_writing(self) -> None:
        if not self._is_rejected:
            self._check_written_later()
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if not self._is_rejected:
            self._cancel_write_timer()
            self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._cancel_write_timer()
        if not self._is_rejected:
            self._open_connections.discard(self)
            self._http.connection_lost(exc)

    def _check_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        request = getattr(self._http, "cycle", None)  # uvicorn's name for the request that was read last
        is_running = request is not None and not request.response_complete
        if request is self._last_request and not is_running:
            self._transport.close()  # once the client has taken what was written
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._transport.abort)
            return
        self._last_request = request
        self._check_later()

    def _check_written_later(self) -> None:
        size = self._transport.get_write_buffer_size()
        self._write_timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._abort_if_not_read, size)

    def _abort_if_not_read(self, size_before: int) -> None:
        if self._transport.get_write_buffer_size() >= size_before:
            self._transport.abort()
        else:
            self._check_written_later()

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
