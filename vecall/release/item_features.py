"""Stored item features: what a partial upsert completes an item from before it is encoded again."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.arrays import Rows
from vecall.data.frames import select_columns
from vecall.errors import StoreError
from vecall.release.file_io import write_table

FEATURES_FILE = "features.arrow"


def list_stored_features(features: Iterable[str], attributes: Iterable[str]) -> list[str]:
    """List the features that `features.arrow` holds: those that are not attributes as well."""
    attribute_names = set(attributes)
    return [name for name in features if name not in attribute_names]


@dataclass(frozen=True)
class ItemFeatureFile:
    """Feature file of a release, of which only the requested rows are read.

    Attributes:
        path: the file, whose SHA-256 has been verified.
    """

    path: Path

    def take(self, rows: Rows) -> pl.DataFrame:
        """Read the features of `rows`, in this order, with a column per stored feature.

        Raises:
            StoreError: the file cannot be read, for example because the release was deleted.
        """
        try:
            return pl.scan_ipc(self.path, glob=False).select(pl.all().gather(rows)).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StoreError(f"{self.path}: the item features cannot be read: {error}") from error


def write_features(directory: Path, features: pl.DataFrame, attributes: Iterable[str]) -> None:
    """Write the features that are not attributes; no file where there are none."""
    stored = select_columns(features, list_stored_features(features.columns, attributes))
    if stored.width:
        write_table(directory / FEATURES_FILE, stored)
