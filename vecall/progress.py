"""How long work says how far it is. Silent until somebody who has a screen, such as the CLI, listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class ProgressCallback(Protocol):
    """Called as work goes on."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is shown beside the bar."""


class ProgressListener(Protocol):
    """Whoever shows progress."""

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """A task of `total` steps begins."""

    def stop_task(self) -> None:
        """The task that began last has ended, or was given up."""


_listener: ContextVar[ProgressListener | None] = ContextVar("vecall_progress", default=None)


@contextmanager
def report_to(listener: ProgressListener) -> Iterator[None]:
    """Tasks begun within are shown by `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def track(name: str, total: int) -> Iterator[ProgressCallback]:
    """Announce work of `total` steps, whose `advance` is called as they are done."""
    listener = _listener.get()
    if listener is None:
        yield _noop
        return
    advance = listener.start_task(name, total)
    try:
        yield advance
    finally:
        listener.stop_task()


def _noop(steps: int = 1, note: str = "") -> None:
    del steps, note
