"""Scans that complete a result of an index: whoever limits scans limits these, too."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Acquire = Callable[[int], AbstractContextManager[None]]


def _acquire_freely(_rows: int) -> AbstractContextManager[None]:
    return nullcontext()


_acquire: ContextVar[Acquire] = ContextVar("limit of scans", default=_acquire_freely)


@contextmanager
def limit_completion_scans(acquire: Acquire) -> Iterator[None]:
    """Let searches within the context, in this thread, ask before they complete a result by a scan.

    A context variable rather than an argument: an index has no other use for the limits of a service.

    Args:
        acquire: Returns the context in which so many rows may be scanned; entering it raises if they may not.
    """
    token = _acquire.set(acquire)
    try:
        yield
    finally:
        _acquire.reset(token)


def acquire_completion_scan(rows: int) -> AbstractContextManager[None]:
    """Return the context in which a scan of `rows` rows may complete a result."""
    return _acquire.get()(rows)
