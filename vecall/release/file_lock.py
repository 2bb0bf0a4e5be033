"""Exclusive lock files between processes (`flock`), such as `store.lock` and `writer.lock`."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from vecall.errors import LockedError
from vecall.release.file_io import translate_write_errors

_RETRY_INTERVAL_SECONDS = 0.01

# Descriptors of the locks that this process holds. A forked child closes its copies: the locks are not its own, and
# while a copy is open the lock stays held even after this process has died.
_held_descriptors: set[int] = set()


@contextmanager
def file_lock(path: Path, *, timeout: float, inheritable: bool = False) -> Iterator[int]:
    """Hold an exclusive lock on a file; yields its descriptor.

    While the lock is held, the file contains the holder's process id. The system releases the lock when the process
    dies. A child that is forked meanwhile does not hold the lock.

    The lock is not reentrant, and threads of one process exclude each other too. The file is never removed: otherwise
    two processes could hold the locks of two files with the same name.

    Args:
        path: the lock file, in an existing directory.
        timeout: seconds to wait for another holder; 0 fails at once.
        inheritable: a process that was given a copy of the descriptor keeps holding the lock after this process has
            released it or died.

    Raises:
        LockedError: another process or thread still holds the lock after `timeout`.
        StoreError: the file cannot be written.
    """
    with translate_write_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _register_fork_hook()
    _held_descriptors.add(descriptor)
    try:
        with translate_write_errors(path):
            _acquire(descriptor, path, timeout)
        with suppress(OSError):  # such as a full disk: the process id is for messages alone
            os.ftruncate(descriptor, 0)  # a holder that died left its process id
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        try:
            yield descriptor
        finally:
            _release(descriptor, inheritable=inheritable)
    finally:
        if descriptor in _held_descriptors:  # a forked child has closed its copy already
            _held_descriptors.remove(descriptor)
            os.close(descriptor)


def _release(descriptor: int, *, inheritable: bool) -> None:
    if descriptor not in _held_descriptors:  # in a forked child: the lock is its parent's
        return
    with suppress(OSError):  # the protected work is done, and a stale process id does no harm
        os.ftruncate(descriptor, 0)
    if not inheritable:  # closing would not release the lock while another process has a copy
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@cache
def _register_fork_hook() -> None:
    """Register on first use, since importing vecall must have no effect on the process."""
    os.register_at_fork(after_in_child=_close_held_descriptors)


def _close_held_descriptors() -> None:
    for descriptor in _held_descriptors:
        os.close(descriptor)
    _held_descriptors.clear()


def _acquire(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not try_lock(descriptor):
        if time.monotonic() >= deadline:
            raise _make_locked_error(descriptor, path, timeout)
        time.sleep(_RETRY_INTERVAL_SECONDS)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file or directory if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_locked_error(descriptor: int, path: Path, timeout: float) -> LockedError:
    content = os.pread(descriptor, 32, 0).strip()
    pid = int(content) if content.isdigit() else None
    holder = f"process {pid}" if pid else "another process"
    return LockedError(
        f"{path} is held by {holder} and was not released within {timeout:g} s: wait for that process or stop it, "
        "then try again",
        path=path,
        pid=pid,
    )
