"""Forks: what a child process gets of its parent's threads is nothing, so native libraries wait in it for ever."""

import os

from vecall.errors import ForkError

_ADVICE = (
    "start processes by spawn (multiprocessing.get_context('spawn')), or use nothing of vecall before the fork and "
    "open what is needed in each child; with gunicorn that means no --preload"
)


class _Process:
    """What this process knows of itself."""

    watched = False  # whether a fork from now on is noticed
    forked = False  # from a process that had used vecall


def check_not_forked() -> None:
    """See that native threads can be used here, and notice every fork from now on.

    Raises:
        ForkError: this process was forked from one that had used vecall.
    """
    if _Process.forked:
        raise ForkError(
            "this process was forked from one that had used vecall, whose threads (of Polars, faiss, ONNX Runtime) are "
            f"not here, so that it would hang: {_ADVICE}"
        )
    if not _Process.watched:
        _Process.watched = True
        os.register_at_fork(after_in_child=_mark)


def _mark() -> None:
    _Process.forked = True
