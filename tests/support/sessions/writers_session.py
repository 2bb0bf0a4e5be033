"""What writes the files of a release, for `disk_faults` to let it fail."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from vecall.errors import StoreError
from vecall.index import index_io
from vecall.index.exact import ExactIndex
from vecall.release.atomic_io import write_and_fsync, write_array, write_table

ROW_COUNTS = (10, 3_000)  # as much as a buffer holds, and more


def run_session(directory: Path, emit: Any) -> None:
    for size in ROW_COUNTS:
        for name, write in {
            "array.npy": lambda path: write_array(path, np.arange(size)),  # noqa: B023
            "table.arrow": lambda path: write_table(path, pl.DataFrame({"a": range(size)})),  # noqa: B023
            "index.faiss": lambda path: index_io.save_index(ExactIndex.build(np.ones((size, 2), np.float32)), path),  # noqa: B023
            "bytes": lambda path: write_and_fsync(path, bytes(size)),  # noqa: B023
        }.items():
            path = directory / f"{size}.{name}"
            try:
                write(path)
            except (OSError, StoreError):
                emit(f"failed {path.name}")
            else:
                emit(f"done {path.name} {path.stat().st_size}")
