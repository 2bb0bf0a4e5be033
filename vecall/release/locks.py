"""Locks between processes: `store.lock` and `writer.lock`."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vecall.errors import Locked
from vecall.release.files import explained

_PAUSE = 0.01  # seconds between attempts


@contextmanager
def hold(path: Path, *, timeout: float) -> Iterator[int]:
    """Hold a lock file, which then says the holder's process id. It is freed even if the process dies.

    Gives its descriptor: a process that has a copy of it holds the lock as well, after this one has died too.

    The file stays: were it removed, two processes could hold two files of one name. Within a process too
    it is held once: by one thread, and not again by the same.

    Args:
        path: the lock file, in a folder that exists.
        timeout: seconds to wait for another holder; 0 does not wait.

    Raises:
        Locked: another still holds it.
        StoreError: it cannot be written.
    """
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with explained(path):
            _acquire(descriptor, path, timeout)
            os.ftruncate(descriptor, 0)  # a holder that died left its own
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        try:
            yield descriptor
        finally:
            with suppress(OSError):  # what was to be done is done, and the lock is what counts
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(_PAUSE)
                continue
            said = os.pread(descriptor, 32, 0).strip()
            pid = int(said) if said.isdigit() else None
            holder = f"process {pid}" if pid else "another process"
            raise Locked(
                f"{path} is held by {holder}, and was not free within {timeout:g} s: wait for it or end it, "
                "then try again",
                path=path,
                pid=pid,
            ) from None
        return
