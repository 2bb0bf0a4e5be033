"""Limit on concurrent large scans: each of them takes the memory bandwidth that all other requests need."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import BoundedSemaphore

from vecall.errors import TooManyScansError

_LARGE_SCAN_ROWS = 50_000  # a scan of fewer rows takes about as long as an index search


class ScanLimiter:
    """Limit on the number of large scans that run at the same time. Thread-safe.

    Args:
        max_scans: Large scans that may run at once; None for no limit.
        offload: Returns the context in which a large scan runs. Entering it may raise, for example to restart the
            request in a thread other than the event loop's.
    """

    def __init__(
        self, max_scans: int | None, *, offload: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._max_scans, self._offload = max_scans, offload
        self._semaphore = None if max_scans is None else BoundedSemaphore(max_scans)

    def offload_if_large(self, rows: int) -> AbstractContextManager[None]:
        """Return the context for a pass over `rows` rows that does not score vectors, or for work that takes as long.

        It is offloaded when it is large, but not counted against `max_scans`: it leaves memory bandwidth to others.
        """
        return self._offload() if rows >= _LARGE_SCAN_ROWS else nullcontext()

    @contextmanager
    def acquire(self, rows: int) -> Iterator[None]:
        """Hold one of the slots while scanning the vectors of `rows` rows; a small scan needs none.

        Raises:
            TooManyScansError: The scan is large, and `max_scans` large scans are running.
        """
        if self._semaphore is None or rows < _LARGE_SCAN_ROWS:
            yield
            return
        if not self._semaphore.acquire(blocking=False):
            raise TooManyScansError(
                f"this query needs an exact scan of {rows:,} items, and {self._max_scans} such scans are running: "
                "try again later, or avoid what needs scans: a selective `where`, a long `exclude`, an exact index"
            )
        try:
            with self._offload():
                yield
        finally:
            self._semaphore.release()


UNLIMITED_SCANS = ScanLimiter(None)
