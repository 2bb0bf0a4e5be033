"""Progress reporting for long tasks. Silent unless a listener, such as the CLI's progress bars, is set."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class ProgressCallback(Protocol):
    """Callback that a task calls as it advances."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Report that `steps` more steps are done; `note` is shown beside the bar."""


class ProgressListener(Protocol):
    """Receiver of progress, such as a set of progress bars."""

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """Start a task of `total` steps."""

    def stop_task(self) -> None:
        """Stop the most recently started task, whether it is complete or was aborted."""


_listener: ContextVar[ProgressListener | None] = ContextVar("vecall_progress", default=None)


@contextmanager
def report_to(listener: ProgressListener | None) -> Iterator[None]:
    """Send the progress of tasks within this context to `listener`; None: to nobody."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def track(name: str, total: int) -> Iterator[ProgressCallback]:
    """Report a task of `total` steps to the current listener; yields the callback to advance it."""
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
