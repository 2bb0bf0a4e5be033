"""How many large scans may run side by side: each takes the memory's whole bandwidth from all other requests."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import BoundedSemaphore

from vecall.errors import TooManyScans

_LARGE = 50_000  # rows; fewer are scanned in about the time that a search of the index takes


class ScanLimit:
    """At most so many scans of many rows at once. Safe to use from several threads.

    Args:
        most: how many; None does not limit them.
        aside: each of them is done within this.
    """

    def __init__(self, most: int | None, *, aside: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._most, self._aside = most, aside
        self._free = None if most is None else BoundedSemaphore(most)

    def aside(self, rows: int) -> AbstractContextManager[None]:
        """Look at so many rows in another way than by scanning their vectors: however many do so, it is short."""
        return self._aside() if rows >= _LARGE else nullcontext()

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
            with self._aside():
                yield
        finally:
            self._free.release()


NO_LIMIT = ScanLimit(None)
