"""Progress of long tasks, with rate and time left, for a listener such as the CLI's bars, or else for the log."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 30.0


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

    def write_line(self, text: str) -> None:
        """Show a line of text, beside or above the tasks."""


class ProgressLog:
    """Progress listener that writes a line about a running task every 30 seconds, and one with its duration at the end.

    A task that takes less than 30 seconds writes nothing. The rate is that since the previous line.

    Args:
        write: Takes each line.
        clock: Returns the time in seconds.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._running: list[_LoggedTask] = []

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """Start a task of `total` steps."""
        logged_task = _LoggedTask(task, total, self._write, self._clock)
        self._running.append(logged_task)
        return logged_task.advance

    def stop_task(self) -> None:
        """Stop the most recently started task."""
        self._running.pop().stop()

    def write_line(self, text: str) -> None:
        """Write a line."""
        self._write(text)


class _LoggedTask:
    """Task whose progress is written as lines."""

    def __init__(self, name: str, total: int, write: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._name, self._total, self._write, self._clock = name, total, write, clock
        self._done = self._logged_done = 0
        self._start_time = self._logged_time = clock()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps; write a line if the last is 30 seconds old."""
        self._done += steps
        now = self._clock()
        if now - self._logged_time < LOG_INTERVAL_SECONDS:
            return
        rate = (self._done - self._logged_done) / (now - self._logged_time)
        self._logged_done, self._logged_time = self._done, now
        pace = f", {format_pace(rate, self._total - self._done)}" if rate > 0 else ""
        self._write(f"{self._describe()}{pace}{f', {note}' if note else ''}")

    def stop(self) -> None:
        """Write the duration of a task that has written a line before."""
        if self._logged_time > self._start_time:
            self._write(f"{self._describe()} in {format_duration(self._clock() - self._start_time)}")

    def _describe(self) -> str:
        share = f" ({100 * self._done // self._total} %)" if self._total else ""
        return f"{self._name}: {self._done:,} of {self._total:,}{share}"


def _build_log_listener() -> ProgressListener:
    return ProgressLog(logger.info)


# A function, since a log counts the tasks of its own thread alone.
_get_listener: ContextVar[Callable[[], ProgressListener | None]] = ContextVar(
    "vecall_progress", default=_build_log_listener
)


@contextmanager
def report_to(listener: ProgressListener | None) -> Iterator[None]:
    """Send the progress of tasks within this context to `listener`; None: to nobody."""
    token = _get_listener.set(lambda: listener)
    try:
        yield
    finally:
        _get_listener.reset(token)


@contextmanager
def track(name: str, total: int) -> Iterator[ProgressCallback]:
    """Report a task of `total` steps to the current listener; without one, to this module's logger, at level INFO.

    Yields:
        Callback to advance the task.
    """
    listener = _get_listener.get()()
    if listener is None:
        yield _noop
        return
    advance = listener.start_task(name, total)
    try:
        yield advance
    finally:
        listener.stop_task()


def announce(text: str) -> None:
    """Show a line to the current listener, such as what was read; without one, log it at level INFO."""
    listener = _get_listener.get()()
    if listener is not None:
        listener.write_line(text)


def _noop(steps: int = 1, note: str = "") -> None:
    del steps, note


def format_pace(rate: float, remaining: int) -> str:
    """Describe rate and time left, such as "52/s, 12 min left"; without the time left if no steps remain.

    Args:
        rate: Steps per second, above 0.
        remaining: Steps left.
    """
    text = f"{rate:,.{0 if rate >= 10 else 1}f}/s" if rate >= 1 else f"{1 / rate:,.1f} s each"
    return f"{text}, {format_duration(remaining / rate)} left" if remaining > 0 else text


def format_duration(seconds: float) -> str:
    """Return a duration to two digits or so: "45 s", "12 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
