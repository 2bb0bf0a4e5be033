"""A session for `fault_injection.disk`: all functions that write files of a release."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vecall.errors import StoreError
from vecall.index.exact import ExactIndex
from vecall.release.file_io import write_array, write_table
from vecall.runtime.durable_files import write_and_fsync

ROW_COUNTS = (10, 3_000)  # less than a stdio buffer holds, and more


def run_session(directory: Path, emit: Any) -> None:
    for row_count in ROW_COUNTS:
        for name, write in _make_writers(row_count).items():
            path = directory / f"{row_count}.{name}"
            try:
                write(path)
            except (OSError, StoreError):
                emit(f"failed {path.name}")
            else:
                emit(f"done {path.name} {path.stat().st_size}")


def _make_writers(row_count: int) -> dict[str, Callable[[Path], None]]:
    """Return functions that write a file, by the file's name."""
    return {
        "array.npy": lambda path: write_array(path, np.arange(row_count)),
        "table.arrow": lambda path: write_table(path, pl.DataFrame({"a": range(row_count)})),
        "index.faiss": lambda path: ExactIndex.build(np.ones((row_count, 2), np.float32)).save(path),
        "bytes": lambda path: write_and_fsync(path, bytes(row_count)),
    }
