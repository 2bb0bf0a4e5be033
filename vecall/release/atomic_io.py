"""Reading and writing the files of a release so that a crash loses nothing that was said to be there."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.errors import InvalidReleaseError, StoreError


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Errors of the system, as ours.

    Raises:
        StoreError: the disk fails or is full, or `path` may not be written.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be changed: {error}. What it held stands; free space on its disk, or see to it that it can "
            "be written, then try again"
        ) from error


def compute_sha256(path: Path) -> str:
    """64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Have the system put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_and_fsync(path: Path, content: bytes) -> None:
    """Write a file and put it on the disk; its name is there once its folder is synced too."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def atomic_write(path: Path, content: bytes) -> None:
    """Change a small file at once: whoever reads it sees the old content or the new, after a crash too."""
    fresh = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        write_and_fsync(fresh, content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table as an uncompressed Arrow file, the quickest to read."""
    table.write_ipc(path, compression="uncompressed")


def read_table(path: Path) -> pl.DataFrame:
    """Read an Arrow file, once its sha256 was checked.

    Raises:
        ReleaseRefused: it is missing, or no Arrow file.
    """
    try:
        with path.open("rb") as file:  # polars would take `[` or `*` in a path for a pattern
            return pl.read_ipc(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidReleaseError(f"{path} cannot be read as an Arrow file: {error}", file=path.name) from error


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, without pickle.

    Raises:
        ValueError: the array holds Python objects.
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:  # numpy, given a file or its name, does not tell when the last bytes are lost
        np.save(cast("BinaryIO", SimpleNamespace(write=file.write)), array, allow_pickle=False)


def read_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file into memory, read-only, once its sha256 was checked.

    Raises:
        ReleaseRefused: it is missing, no `.npy` file, or one that holds pickled objects.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidReleaseError(f"{path} cannot be read as an array: {error}", file=path.name) from error
    array: NDArray[Any] = mapped.view(np.ndarray)  # each look into a `memmap` takes several times as long
    return array
