"""Parquet tables that are written part by part and appear only when they are complete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from vecall.errors import StoreError

_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".gz", ".zst")


def check_output_path(output_path: Path, input_path: Path | None = None) -> None:
    """Check the path of a Parquet table before the work for it starts.

    Args:
        output_path: The table that will be written.
        input_path: A file that is read meanwhile; None if there is none.

    Raises:
        StoreError: It is a directory, a pipe, a device or the input, or is named as a file of text.
    """
    problem = None
    if output_path.suffix.lower() in _TEXT_SUFFIXES:
        problem = "the table is written as Parquet: give it a name that ends in .parquet"
    elif output_path.is_dir():
        problem = "is a directory: give the path of a file"
    elif output_path.exists() and not output_path.is_file():
        problem = "is a pipe or a device, which would be replaced: give the path of a file"
    elif input_path is not None and output_path.exists() and input_path.exists() and output_path.samefile(input_path):
        problem = "is the input, which would be replaced: give another path"
    if problem is not None:
        raise StoreError(f"{output_path}: {problem}")


@contextmanager
def stage_parquet(output_path: Path) -> Iterator[Path]:
    """Yield a temporary directory for parts of a table; on exit concatenate them into `output_path`.

    Args:
        output_path: The table. Its parts, at least one, are `*.parquet` files in the order of their names.

    Raises:
        StoreError: The table cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=f"{output_path.name}.") as name:
            directory = Path(name)
            yield directory
            combined = directory / "combined"
            pl.scan_parquet(sorted(directory.glob("*.parquet")), glob=False).sink_parquet(combined)
            combined.replace(output_path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StoreError(
            f"{output_path}: cannot be written: {error}; check that its directory exists and has free space"
        ) from error
