"""Signals that end the process."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, so that it removes its temporary files; exit code 143 as without.

    In other threads than the main one nothing changes: Python handles signals there alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_process(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, exit_process)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def treat_sighup_as_sigterm() -> None:
    """End on SIGHUP, as of a closed terminal, as on SIGTERM; where it is ignored, as under nohup, it stays so."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
