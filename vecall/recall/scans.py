"""How many large scans may run side by side: each takes the memory's whole bandwidth from all other requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore

from vecall.errors import TooManyScans

_LARGE = 50_000  # rows; fewer are scanned in about the time that a search of the index takes


class ScanLimit:
    """At most so many scans of many rows at once. Safe to use from several threads.

    Args:
        most: how many; None does not limit them.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._free = None if most is None else BoundedSemaphore(most)

    @contextmanager
    def slot(self, rows: int) -> Iterator[None]:
        """Scan so many rows.

        Raises:
            TooManyScans: all slots are taken, and this is a large scan.
        """
        if self._free is None or rows < _LARGE:
            yield
            return
        if not self._free.acquire(blocking=False):
            raise TooManyScans(
                f"`where` or `exclude` make this a scan of {rows:,} items, and {self._most} such scans run: try again"
            )
        try:
            yield
        finally:
            self._free.release()


NO_LIMIT = ScanLimit(None)
