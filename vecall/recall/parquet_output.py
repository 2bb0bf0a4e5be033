"""Parquet tables that are written part by part and appear only when they are complete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from vecall.errors import StoreError


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
