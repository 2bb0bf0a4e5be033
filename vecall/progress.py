"""How long work says how far it is. Silent until somebody who has a screen, such as the CLI, listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Advance(Protocol):
    """Called as work goes on."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` is shown beside the bar."""


class Listener(Protocol):
    """Whoever shows progress."""

    def begin(self, task: str, total: int) -> Advance:
        """A task of `total` steps begins."""

    def end(self) -> None:
        """The task that began last has ended, or was given up."""


_listener: ContextVar[Listener | None] = ContextVar("vecall_progress", default=None)


@contextmanager
def shown_by(listener: Listener) -> Iterator[None]:
    """Tasks begun within are shown by `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def task(name: str, total: int) -> Iterator[Advance]:
    """Announce work of `total` steps, whose `advance` is called as they are done."""
    listener = _listener.get()
    if listener is None:
        yield _unheard
        return
    advance = listener.begin(name, total)
    try:
        yield advance
    finally:
        listener.end()


def _unheard(steps: int = 1, note: str = "") -> None:
    del steps, note
