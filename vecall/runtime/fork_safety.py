"""Detection of forks: a forked child has none of its parent's threads, so native libraries would deadlock in it."""

import os

from vecall.errors import ForkError

_ADVICE = (
    "start processes with spawn (multiprocessing.get_context('spawn')), or do not use vecall before the fork and "
    "open stores and recallers in each child; with gunicorn, do not use --preload"
)


class _ForkState:
    """Fork state of this process."""

    is_hook_installed = False  # whether forks are noticed; True from the first use of vecall on
    is_forked_child = False  # whether the process was forked from one that had used vecall


def check_not_forked() -> None:
    """Check that native threads can be used in this process, and watch for forks from now on.

    Raises:
        ForkError: This process was forked from one that had used vecall.
    """
    if _ForkState.is_forked_child:
        raise ForkError(
            "this process was forked from one that had used vecall; the threads of Polars, faiss and ONNX Runtime do "
            f"not exist here, so it would deadlock: {_ADVICE}"
        )
    if not _ForkState.is_hook_installed:
        _ForkState.is_hook_installed = True
        os.register_at_fork(after_in_child=_mark_forked)


def _mark_forked() -> None:
    _ForkState.is_forked_child = True
