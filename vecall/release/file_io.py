"""File I/O of a release: checksums, Arrow tables and `.npy` arrays.

Tables and arrays are not flushed to disk when they are written: `digest_files` flushes all files of a draft at once.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.errors import InvalidReleaseError, StoreError


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Raise a StoreError that `path` could not be written in place of an OSError; wrap no reading of other files.

    Raises:
        StoreError: the disk fails or is full, or permissions forbid writing.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} could not be written: {error}; free disk space or fix the permissions, then try again"
        ) from error


def compute_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file in chunks, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table as an Arrow IPC file, neither atomically nor flushed.

    Uncompressed, because that is the fastest to read.
    """
    table.write_ipc(path, compression="uncompressed")


def read_table(path: Path) -> pl.DataFrame:
    """Read an Arrow IPC file whose SHA-256 has been verified.

    Raises:
        InvalidReleaseError: the file is missing or is not an Arrow file.
    """
    try:
        with path.open("rb") as file:  # given a path, Polars would expand `[` and `*` in it as a pattern
            return pl.read_ipc(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidReleaseError(f"{path} cannot be read as an Arrow file: {error}", file=path.name) from error


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `.npy`, without pickle, neither atomically nor flushed.

    Raises:
        ValueError: the array holds Python objects.
        OSError: the file cannot be written.
    """
    # Given a file or its name, NumPy does not report when the last bytes are lost; a bare `write` method raises.
    with path.open("wb") as file:
        np.save(cast("BinaryIO", SimpleNamespace(write=file.write)), array, allow_pickle=False)


def write_array_blocks(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[NDArray[Any]]
) -> None:
    """Write an array that comes in blocks of rows: the file that `write_array` writes of their concatenation.

    Args:
        path: the file.
        shape: of the array.
        dtype: of the array, without Python objects.
        blocks: arrays of the dtype and of `shape[1:]` per row, `shape[0]` rows in total.

    Raises:
        ValueError: the blocks have another number of rows.
        OSError: the file cannot be written.
    """
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    row_count = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(cast("BinaryIO", SimpleNamespace(write=file.write)), header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype).data)
            row_count += len(block)
    if row_count != shape[0]:
        raise ValueError(f"{path.name}: blocks of {row_count} rows were written, expected {shape[0]}")


def map_array(path: Path) -> NDArray[Any]:
    """Map a `.npy` file whose SHA-256 has been verified into memory, read-only.

    Raises:
        InvalidReleaseError: the file is missing, is not a `.npy` file, or holds pickled objects.
    """
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidReleaseError(f"{path} cannot be read as an array: {error}", file=path.name) from error
    array: NDArray[Any] = mapped.view(np.ndarray)  # indexing an `np.memmap` takes several times as long
    return array
