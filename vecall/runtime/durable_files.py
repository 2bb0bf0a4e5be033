"""Durable and atomic writes of files."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_and_fsync(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk.

    A new file's name survives a crash only after its directory has been flushed too, see `fsync_path`.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def atomic_write(path: Path, content: bytes) -> None:
    """Replace a small file atomically: readers see the old or the new content, after a crash too."""
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        write_and_fsync(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to be written, which then replaces `path` atomically and durably.

    An interruption leaves the old file and a temporary one, which the next call for the same path overwrites. A file
    that is mapped into memory must be replaced in this way: its mappings keep the old content.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
