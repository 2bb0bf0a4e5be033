"""Circuit breaker: after several failures calls are refused at once, until a probe in the background succeeds.

Nygard: Release It!, 2nd ed., 2018, chapter 5.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vecall.errors import EngineUnavailableError, VecallError

logger = logging.getLogger(__name__)

_FAILURE_THRESHOLD = 3  # failures in a row
_IMPATIENT_SHARE = 0.9  # of the time that an impatient caller had; a failure before came from the engine
_FIRST_DELAY_SECONDS = 0.1  # from opening to the first probe
_MAX_DELAY_SECONDS = 2.0  # between later probes


class CircuitBreaker:
    """Counts the failures of an engine. A thread exists only while the circuit is open. Thread-safe.

    Args:
        probe: checks whether the engine answers again; raises `VecallError` while it does not. Called by the thread.
        failure_threshold: failures in a row that open the circuit.
        first_delay_seconds: from opening to the first probe; it doubles from one probe to the next.
        max_delay_seconds: largest delay.
    """

    def __init__(
        self,
        probe: Callable[[], object],
        *,
        failure_threshold: int = _FAILURE_THRESHOLD,
        first_delay_seconds: float = _FIRST_DELAY_SECONDS,
        max_delay_seconds: float = _MAX_DELAY_SECONDS,
    ) -> None:
        self._probe, self._failure_threshold = probe, failure_threshold
        self._first_delay, self._max_delay = first_delay_seconds, max_delay_seconds
        self._lock = threading.Lock()
        self._failure_count = 0
        self._reason: str | None = None  # last failure; None while the circuit is closed
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def reason(self) -> str | None:
        """Why calls are refused; None while they are not."""
        return self._reason

    @contextmanager
    def guard(self, impatience: float | None = None) -> Iterator[None]:
        """Run a call of the engine, and count its failure.

        Args:
            impatience: Seconds after which the caller gave up, if that is too early to blame the engine.

        Raises:
            EngineUnavailableError: the circuit is open, so the call was not tried, or the call raised it.
        """
        if (reason := self._reason) is not None:
            raise EngineUnavailableError(
                f"the engine is not asked until it answers again, which is tried every {self._max_delay:g} s: {reason}"
            )
        start = time.monotonic()
        try:
            yield
        except EngineUnavailableError as error:
            if impatience is None or time.monotonic() - start < _IMPATIENT_SHARE * impatience:
                self._count_failure(error)
            raise
        self._failure_count = 0

    def open(self, error: VecallError) -> None:
        """Refuse calls from now on because of an error, until a probe succeeds."""
        with self._lock:
            self._open(error)

    def close(self) -> None:
        """Stop probing, and wait for the end of the thread. Calls may go on; an open circuit stays open."""
        self._closing.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _count_failure(self, error: EngineUnavailableError) -> None:
        with self._lock:
            self._failure_count += 1
            if self._failure_count >= self._failure_threshold:
                self._open(error)

    def _open(self, error: VecallError) -> None:
        if self._reason is not None:
            return
        self._reason = str(error)
        # Not the exception: a log handler would keep its frames alive, and the index with them.
        logger.warning("requests are refused until the engine answers again: %s", self._reason)
        if not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="vecall-engine-probe", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        delay = self._first_delay
        while not self._closing.wait(delay):
            try:
                self._probe()
            except VecallError as error:
                self._reason = str(error)
            except Exception:  # without this thread calls would be refused for ever
                logger.exception("the probe of the engine failed unexpectedly")
            else:
                with self._lock:
                    self._failure_count, self._reason, self._thread = 0, None, None
                logger.warning("the engine answers again")
                return
            delay = min(2 * delay, self._max_delay)
