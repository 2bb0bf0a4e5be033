"""Files of histories: `PREFIXhistory_offsets.npy` and `PREFIXhistory_rows.npy`."""

from pathlib import Path

import numpy as np

from vecall.data.ragged import RaggedArray
from vecall.release.file_io import map_array, write_array


def save_histories(histories: RaggedArray, directory: Path, prefix: str) -> None:
    """Write lists of item rows as two `.npy` files; file names start with `prefix`."""
    write_array(_offsets_path(directory, prefix), histories.offsets)
    write_array(_rows_path(directory, prefix), histories.values.astype(np.int64, copy=False))  # int32 in memory


def load_histories(directory: Path, prefix: str) -> RaggedArray | None:
    """Read histories that `save_histories` wrote; None where the directory has none.

    Raises:
        InvalidReleaseError: a file is missing or is not an array.
    """
    if not _rows_path(directory, prefix).exists():
        return None
    return RaggedArray(map_array(_offsets_path(directory, prefix)), map_array(_rows_path(directory, prefix)))


def _offsets_path(directory: Path, prefix: str) -> Path:
    return directory / f"{prefix}history_offsets.npy"


def _rows_path(directory: Path, prefix: str) -> Path:
    return directory / f"{prefix}history_rows.npy"
