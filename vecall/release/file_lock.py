"""Locks between processes: `store.lock` and `writer.lock`."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vecall.errors import LockedError
from vecall.release.atomic_io import translate_os_errors

_RETRY_INTERVAL_SECONDS = 0.01  # seconds between attempts


_fork_hook_registered: list[bool] = []
_held_descriptors: set[int] = set()  # descriptors, which a forked child has to close: it holds the locks of none


@contextmanager
def file_lock(path: Path, *, timeout: float, inheritable: bool = False) -> Iterator[int]:
    """Hold a lock file, which then says the holder's process id. It is freed even if the process dies.

    Gives its descriptor. A child that is forked meanwhile does not hold the lock.

    The file stays: were it removed, two processes could hold two files of one name. Within a process too
    it is held once: by one thread, and not again by the same.

    Args:
        path: the lock file, in a folder that exists.
        timeout: seconds to wait for another holder; 0 does not wait.
        inheritable: a process that was given a copy of the descriptor holds the lock as well, when this one has let go of
            it, or has died.

    Raises:
        Locked: another still holds it.
        StoreError: it cannot be written.
    """
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _close_in_children(descriptor)
    try:
        with translate_os_errors(path):
            _acquire(descriptor, path, timeout)
            os.ftruncate(descriptor, 0)  # a holder that died left its own
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        try:
            yield descriptor
        finally:
            _unlock(descriptor, inheritable=inheritable)
    finally:
        if descriptor in _held_descriptors:  # else this is a forked child, where it was closed
            _held_descriptors.remove(descriptor)
            os.close(descriptor)


def _unlock(descriptor: int, *, inheritable: bool) -> None:
    if descriptor not in _held_descriptors:
        return
    with suppress(OSError):  # what was to be done is done, and the lock is what counts
        os.ftruncate(descriptor, 0)
    if not inheritable:  # closing is not enough while anybody has a copy
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _close_in_children(descriptor: int) -> None:
    if not _fork_hook_registered:
        _fork_hook_registered.append(True)
        os.register_at_fork(after_in_child=_close_held_descriptors)
    _held_descriptors.add(descriptor)


def _close_held_descriptors() -> None:
    for descriptor in _held_descriptors:
        os.close(descriptor)
    _held_descriptors.clear()


def _acquire(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_RETRY_INTERVAL_SECONDS)
                continue
            said = os.pread(descriptor, 32, 0).strip()
            pid = int(said) if said.isdigit() else None
            holder = f"process {pid}" if pid else "another process"
            raise LockedError(
                f"{path} is held by {holder}, and was not free within {timeout:g} s: wait for it or end it, "
                "then try again",
                path=path,
                pid=pid,
            ) from None
        return
