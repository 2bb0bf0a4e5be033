"""Forks: what a child process gets of its parent's threads is nothing, so native libraries wait in it for ever."""

import os

from vecall.errors import ForkError

_ADVICE = (
    "start processes by spawn (multiprocessing.get_context('spawn')), or use nothing of vecall before the fork and "
    "open what is needed in each child; with gunicorn that means no --preload"
)


class _ForkState:
    """What this process knows of itself."""

    is_hook_installed = False  # whether a fork from now on is noticed
    is_forked_child = False  # from a process that had used vecall


def check_not_forked() -> None:
    """See that native threads can be used here, and notice every fork from now on.

    Raises:
        ForkError: this process was forked from one that had used vecall.
    """
    if _ForkState.is_forked_child:
        raise ForkError(
            "this process was forked from one that had used vecall, whose threads (of Polars, faiss, ONNX Runtime) are "
            f"not here, so that it would hang: {_ADVICE}"
        )
    if not _ForkState.is_hook_installed:
        _ForkState.is_hook_installed = True
        os.register_at_fork(after_in_child=_mark_forked)


def _mark_forked() -> None:
    _ForkState.is_forked_child = True
