"""How many large scans may run side by side: each takes the memory's whole bandwidth from all other requests."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import BoundedSemaphore

from vecall.errors import TooManyScansError

_LARGE_SCAN_ROWS = 50_000  # rows; fewer are scanned in about the time that a search of the index takes


class ScanLimiter:
    """At most so many scans of many rows at once. Safe to use from several threads.

    Args:
        max_scans: how many; None does not limit them.
        offload_if_large: each of them is done within this.
    """

    def __init__(
        self, max_scans: int | None, *, offload: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._max_scans, self._offload = max_scans, offload
        self._semaphore = None if max_scans is None else BoundedSemaphore(max_scans)

    def offload_if_large(self, rows: int) -> AbstractContextManager[None]:
        """Look at so many rows in another way than by scanning their vectors: however many do so, it is short."""
        return self._offload() if rows >= _LARGE_SCAN_ROWS else nullcontext()

    @contextmanager
    def acquire(self, rows: int) -> Iterator[None]:
        """Scan so many rows.

        Raises:
            TooManyScans: all slots are taken, and this is a large scan.
        """
        if self._semaphore is None or rows < _LARGE_SCAN_ROWS:
            yield
            return
        if not self._semaphore.acquire(blocking=False):
            raise TooManyScansError(
                f"`where` or `exclude` make this a scan of {rows:,} items, and {self._max_scans} such scans run: try again"
            )
        try:
            with self._offload():
                yield
        finally:
            self._semaphore.release()


UNLIMITED_SCANS = ScanLimiter(None)
