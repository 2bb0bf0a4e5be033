"""Connections to Milvus servers: one per process and endpoint, a deadline for every call, errors as vecall's own."""

import logging
import threading
import time
from typing import Any

from vecall.errors import ConfigError, EngineUnavailableError
from vecall.index.milvus.endpoint import MilvusEndpoint
from vecall.index.milvus.error_texts import describe_failure
from vecall.runtime.fork_safety import check_not_forked
from vecall.runtime.missing_modules import explain_missing_module

_CONNECT_TIMEOUT_SECONDS = 5.0
_LOGGER_NAMES = ("pymilvus", "pymilvus.milvus_client")
# Without these, gRPC would wait up to two minutes before it tries a server again that was down, and 20 seconds for one
# that accepts connections but says nothing.
_GRPC_OPTIONS = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 1_000,
    "grpc.max_reconnect_backoff_ms": 1_000,
}


class MilvusConnection:
    """A connection to a server, shared by all its users in this process. Thread-safe.

    Args:
        client: `pymilvus.MilvusClient`, or what has its methods.
        endpoint: the server.
        error_types: exceptions of the client and of gRPC.

    Attributes:
        client: for its methods that send nothing to the server; `call` makes the other calls.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - the package may be missing
        endpoint: MilvusEndpoint,
        error_types: tuple[type[Exception], ...],
    ) -> None:
        self.client, self.endpoint, self._error_types = client, endpoint, error_types

    def call(self, method: str, *arguments: object, timeout: float, action: str, **options: object) -> Any:  # noqa: ANN401
        """Call a method of the client.

        Args:
            method: its name.
            arguments: positional arguments.
            timeout: seconds after which the call fails.
            action: what the call does, for error texts, such as "searching vecall_1".
            options: arguments by name.

        Raises:
            EngineUnavailableError: the server does not answer within the time, or with an error.
        """
        start = time.monotonic()
        try:
            return getattr(self.client, method)(*arguments, timeout=timeout, **options)
        except self._error_types as error:
            seconds = time.monotonic() - start
            text = describe_failure(error, action, self.endpoint, seconds=seconds, timeout=timeout)
            raise EngineUnavailableError(text) from None  # the cause's text may have the token, or a long expression

    def get_index_failure(self, collection: str, index_name: str, *, timeout: float) -> str:
        """Return the server's reason why an index is not built; empty if it states none."""
        handler = self.client._get_connection()  # noqa: SLF001 - the client's own methods leave the reason out
        try:
            _, reason = handler.get_index_state(collection, index_name, timeout=timeout)
        except self._error_types as error:
            return describe_failure(error, "asking for the state of the index", self.endpoint, timeout=timeout)
        return str(reason or "")

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


class _ConnectionPool:
    """The connections of this process, by endpoint, with the number of their users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[MilvusEndpoint, tuple[MilvusConnection, int]] = {}

    def acquire(self, endpoint: MilvusEndpoint) -> MilvusConnection:
        with self._lock:
            connection, users = self._connections.get(endpoint, (None, 0))
            if connection is None:
                connection = _connect(endpoint)
            self._connections[endpoint] = connection, users + 1
            return connection

    def release(self, connection: MilvusConnection) -> None:
        with self._lock:
            held, users = self._connections.get(connection.endpoint, (None, 0))
            if held is not connection:  # not from here, or closed already
                return
            if users > 1:
                self._connections[connection.endpoint] = connection, users - 1
                return
            del self._connections[connection.endpoint]
        connection.close()


_pool = _ConnectionPool()


def acquire_connection(endpoint: MilvusEndpoint) -> MilvusConnection:
    """Return this process's connection to a server; connects if there is none. Call `release_connection` afterwards.

    Raises:
        ConfigError: pymilvus is not installed, or the certificate cannot be read.
        EngineUnavailableError: the server does not answer within 5 seconds, or rejects the token.
        ForkError: this process was forked from one that used vecall.
    """
    check_not_forked()
    return _pool.acquire(endpoint)


def release_connection(connection: MilvusConnection) -> None:
    """Give up a connection; its last user closes it."""
    _pool.release(connection)


def _connect(endpoint: MilvusEndpoint) -> MilvusConnection:
    """Connect with pymilvus, and let the server answer once."""
    try:
        import grpc
        from pymilvus import MilvusClient
        from pymilvus.exceptions import MilvusException
    except ModuleNotFoundError as error:
        raise ConfigError(
            "index.engine: " + explain_missing_module(error, needed_by="engine 'milvus'", extra="milvus")
        ) from error
    for name in _LOGGER_NAMES:  # they write whole expressions and tracebacks; the errors raised here tell what happened
        logging.getLogger(name).setLevel(logging.CRITICAL)
    error_types = (MilvusException, grpc.RpcError, grpc.FutureTimeoutError)
    start = time.monotonic()
    try:
        client = MilvusClient(
            endpoint.uri,
            token=endpoint.token,
            db_name=endpoint.db,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            dedicated=True,  # a shared one would stay open, and its options be those of whoever came first
            grpc_options=_GRPC_OPTIONS,
            **({"server_pem_path": endpoint.ca} if endpoint.ca else {}),
        )
    except OSError as error:
        raise ConfigError(f"index.milvus.ca: {endpoint.ca!r} cannot be read: {error.strerror}") from error
    except error_types as error:
        seconds = time.monotonic() - start
        text = describe_failure(error, "connecting", endpoint, seconds=seconds, timeout=_CONNECT_TIMEOUT_SECONDS)
        raise EngineUnavailableError(text) from None
    _disable_recovery(client, MilvusException)
    return MilvusConnection(client, endpoint, error_types)


def _disable_recovery(client: Any, milvus_error: type[Exception]) -> None:  # noqa: ANN401 - the package may be missing
    """Let calls fail at once while the server cannot be reached.

    pymilvus would connect anew, under a lock that all threads wait for, for as long as the connection's own timeout,
    and then repeat the call, even an insert. gRPC connects again by itself.
    """

    def raise_again(error: Exception) -> bool:
        if isinstance(error, milvus_error):
            return False  # such as a rate limit, which pymilvus handles itself
        raise error

    client._handler._on_rpc_error = raise_again  # noqa: SLF001 - there is no setting for it
