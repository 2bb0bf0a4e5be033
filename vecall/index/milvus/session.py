"""A collection in use: connects, searches under a circuit breaker, and comes back by itself after an outage."""

import logging
import math
import threading
import time

import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.errors import EngineUnavailableError
from vecall.index.milvus import collection
from vecall.index.milvus.circuit_breaker import CircuitBreaker
from vecall.index.milvus.client import MilvusConnection, acquire_connection, release_connection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.searching import MAX_EF, MAX_K, count_short_answers, search_collection
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.search_deadline import get_remaining_seconds

logger = logging.getLogger(__name__)

_BATCH_TIMEOUT_SECONDS = 60.0  # of several queries at once, as for tuning and golden queries
_MIN_FAIR_SHARE = 0.5  # of the time limit; a server that misses less is not to blame
_PROBE_TIMEOUT_SECONDS = 2.0  # of each call of the probe, which requests do not wait for
_SHORT_ANSWER_LOG_SECONDS = 60.0


class CollectionSession:
    """Searches of a collection of N vectors [D]: a `vecall.index.remote.RowFinder`. Thread-safe.

    Args:
        name: of the collection.
        shape: N and D.
        settings: of the server.
        timeout: seconds that the search of a single query may take; None: those of the settings.
        connection: to the server, given up at the end; None: none yet.

    Attributes:
        collection: as `name`.
        max_k: largest number of rows that can be asked for.
        max_width: largest width of a search.
        short_answer_count: queries that the server answered with fewer rows than it should have.
    """

    max_k, max_width = MAX_K, MAX_EF

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        settings: MilvusSettings,
        *,
        timeout: float | None = None,
        connection: MilvusConnection | None = None,
    ) -> None:
        self.collection, self._shape, self._settings = name, shape, settings
        self._timeout = settings.timeout_ms / 1e3 if timeout is None else timeout
        self._endpoint = resolve_endpoint(settings) if connection is None else connection.endpoint
        self._connection, self._is_closed, self._is_unloaded = connection, False, False
        self._lock = threading.Lock()
        self._breaker = CircuitBreaker(self._probe)
        self.short_answer_count, self._short_answer_logged = 0, -math.inf

    @property
    def unavailable_reason(self) -> str | None:
        """Why searches are refused at present; None while they are tried."""
        return self._breaker.reason

    def open(self) -> None:
        """Load the collection, see `load`; while the server is down, refuse searches instead, and try again."""
        try:
            self.load()
        except EngineUnavailableError as error:
            self._breaker.open(error)

    def load(self) -> None:
        """Connect, load the collection and wait for it; searches are tried from then on.

        Raises:
            ConfigError: pymilvus is not installed.
            EngineUnavailableError: the server does not answer, has no such collection, or makes no progress.
        """
        with self._lock:
            self._is_closed = self._is_unloaded = False
        connection = self._connect()
        if not collection.is_loaded(connection, self.collection):
            stall_seconds = 60 * self._settings.build_stall_minutes
            collection.load(connection, self.collection, replicas=self._settings.replicas, stall_seconds=stall_seconds)
        old_breaker, self._breaker = self._breaker, CircuitBreaker(self._probe)
        old_breaker.close()

    def point_alias(self) -> None:
        """Let the alias of the settings name the collection, for other tools; a failure is only logged."""
        if self._settings.alias:
            try:
                collection.point_alias(self._connect(), self._settings.alias, self.collection)
            except EngineUnavailableError as error:
                logger.warning("index.milvus.alias: %s", error)

    def unload(self) -> None:
        """Take the collection out of the server's memory.

        Raises:
            EngineUnavailableError: the server does not answer.
        """
        self._is_unloaded = True
        collection.release(self._connect(), self.collection)

    def find_rows(self, queries: Vectors, k: int, width: int) -> Rows:
        """Return about the k best rows of each query. See `RowFinder.find_rows`.

        Raises:
            EngineUnavailableError: the server does not answer within the time, that of `limit_search_time` included,
                or did not answer lately.
        """
        remaining = get_remaining_seconds()
        if remaining <= 0:
            raise EngineUnavailableError(
                f"Milvus at {self._endpoint}: not asked, as the request's deadline has passed: allow it more time"
            )
        limit = min(self._timeout * len(queries), _BATCH_TIMEOUT_SECONDS)
        timeout = min(remaining, limit)
        # A request with little time left says nothing about the server.
        with self._breaker.guard(impatience=timeout if timeout < _MIN_FAIR_SHARE * limit else None):
            connection = self._connection
            if connection is None:
                raise EngineUnavailableError(f"Milvus at {self._endpoint}: the release was closed; load it again")
            hits = search_collection(connection, self.collection, self._shape[0], queries, k, ef=width, timeout=timeout)
        self._report_short_answers(count_short_answers(hits, self._shape[0]))
        return hits.rows

    def close(self) -> None:
        """End the probe's thread and give up the connection; searches are refused afterwards."""
        with self._lock:
            self._is_closed = True
            connection, self._connection = self._connection, None
        self._breaker.close()
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
            other, is_closed = self._connection, self._is_closed
        release_connection(connection)
        if other is None or is_closed:
            raise EngineUnavailableError(f"Milvus at {self._endpoint}: the release was closed; load it again")
        return other  # another thread was faster

    def _probe(self) -> None:
        """Search for a vector of zeros; load the collection if another process released it.

        Raises:
            EngineUnavailableError: the server does not answer yet.
        """
        connection = self._connect()
        if not collection.is_loaded(connection, self.collection, timeout=_PROBE_TIMEOUT_SECONDS):
            if not self._is_unloaded:
                collection.start_loading(
                    connection, self.collection, replicas=self._settings.replicas, timeout=_PROBE_TIMEOUT_SECONDS
                )
            raise EngineUnavailableError(f"Milvus at {self._endpoint}: the collection {self.collection} is not loaded")
        size, dim = self._shape
        zeros = np.zeros((1, dim), np.float32)
        search_collection(connection, self.collection, size, zeros, 1, ef=1, timeout=_PROBE_TIMEOUT_SECONDS)

    def _report_short_answers(self, count: int) -> None:
        if not count:
            return
        self.short_answer_count += count
        now = time.monotonic()
        if now - self._short_answer_logged >= _SHORT_ANSWER_LOG_SECONDS:
            self._short_answer_logged = now
            logger.warning(
                "collection %s answered %d queries with fewer rows than it has, %d so far; missing rows are found by a "
                "scan: look at the server's log, for example for segments that are not loaded",
                self.collection, count, self.short_answer_count,
            )  # fmt: skip
