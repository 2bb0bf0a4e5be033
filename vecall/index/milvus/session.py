"""A collection in use: connects, searches under a circuit breaker, and comes back by itself after an outage."""

import logging
import threading

import numpy as np

from vecall.arrays import Vectors
from vecall.errors import EngineUnavailableError
from vecall.index.hits import Hits
from vecall.index.milvus import collection
from vecall.index.milvus.circuit_breaker import CircuitBreaker
from vecall.index.milvus.client import MilvusConnection, acquire_connection, release_connection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.searching import search_collection
from vecall.index.milvus.settings import MilvusSettings

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_SECONDS = 2.0  # of each call of the probe, which requests do not wait for


class CollectionSession:
    """Searches of a collection of N vectors [D]. Thread-safe.

    Args:
        name: of the collection.
        shape: N and D.
        settings: of the server.
        connection: to the server, given up at the end; None: none yet.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], settings: MilvusSettings, connection: MilvusConnection | None = None
    ) -> None:
        self.name, self._shape, self._settings = name, shape, settings
        self._endpoint = resolve_endpoint(settings) if connection is None else connection.endpoint
        self._connection, self._is_closed = connection, False
        self._lock = threading.Lock()
        self._breaker = CircuitBreaker(self._probe)

    @property
    def unavailable_reason(self) -> str | None:
        """Why searches are refused at present; None while they are not."""
        return self._breaker.reason

    def open(self) -> None:
        """Connect, load the collection and wait for it. While the server is down, searches are refused instead.

        Raises:
            ConfigError: pymilvus is not installed.
            StoreError: loading makes no progress.
        """
        try:
            connection = self._connect()
            if not collection.is_loaded(connection, self.name):
                stall_seconds = 60 * self._settings.build_stall_minutes
                collection.load(connection, self.name, replicas=self._settings.replicas, stall_seconds=stall_seconds)
        except EngineUnavailableError as error:
            self._breaker.open(error)

    def search(self, queries: Vectors, k: int, *, ef: int, timeout: float) -> Hits:
        """Search the collection. See `search_collection`.

        Raises:
            EngineUnavailableError: the server does not answer within the time, or did not answer lately.
        """
        with self._breaker.guard():
            connection = self._connection
            if connection is None:
                raise EngineUnavailableError(f"Milvus at {self._endpoint}: the release was closed; open it again")
            return search_collection(connection, self.name, self._shape[0], queries, k, ef=ef, timeout=timeout)

    def close(self) -> None:
        """End the probe's thread and give up the connection."""
        self._breaker.close()
        with self._lock:
            self._is_closed = True
            connection, self._connection = self._connection, None
        if connection is not None:
            release_connection(connection)

    def _connect(self) -> MilvusConnection:
        connection = self._connection
        if connection is not None:
            return connection
        connection = acquire_connection(self._endpoint)
        with self._lock:
            if self._connection is None and not self._is_closed:
                self._connection = connection
                return connection
        release_connection(connection)  # another thread was faster, or closed the session
        raise EngineUnavailableError(f"Milvus at {self._endpoint}: the release was closed meanwhile")

    def _probe(self) -> None:
        """Search for a vector of zeros; load the collection if somebody released it.

        Raises:
            EngineUnavailableError: the server does not answer yet.
        """
        connection = self._connect()
        if not collection.is_loaded(connection, self.name, timeout=_PROBE_TIMEOUT_SECONDS):
            collection.start_loading(
                connection, self.name, replicas=self._settings.replicas, timeout=_PROBE_TIMEOUT_SECONDS
            )
            raise EngineUnavailableError(f"Milvus at {self._endpoint} loads the collection {self.name}: wait")
        size, dim = self._shape
        search_collection(
            connection, self.name, size, np.zeros((1, dim), np.float32), 1, ef=1, timeout=_PROBE_TIMEOUT_SECONDS
        )
