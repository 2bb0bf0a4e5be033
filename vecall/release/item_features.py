"""Item features as a release keeps them: what an item is encoded from again when a part of it changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.arrays import Rows
from vecall.data.frames import select_columns
from vecall.errors import StoreError
from vecall.release.atomic_io import write_table
from vecall.schema import Features

FEATURES_FILE = "features.arrow"


def list_stored_features(features: Features, attributes: Iterable[str]) -> list[str]:
    """The features that are kept by themselves; the others are attributes too."""
    taken = set(attributes)
    return [name for name in features if name not in taken]


@dataclass(frozen=True)
class ItemFeatureFile:
    """The file of a release. It is read when it is asked for, a few rows at a time.

    Attributes:
        path: of the file, once its sha256 was checked.
    """

    path: Path

    def take(self, rows: Rows) -> pl.DataFrame:
        """[len(rows)] rows of the features, in this order.

        Raises:
            StoreError: the file cannot be read; the release was deleted, for one.
        """
        try:
            return pl.scan_ipc(self.path, glob=False).select(pl.all().gather(rows)).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StoreError(f"{self.path}: the items' features cannot be read: {error}") from error


def write_features(directory: Path, features: pl.DataFrame, attributes: Iterable[str]) -> None:
    """Keep the features that are no attributes; without any there is no file."""
    taken = set(attributes)
    kept = select_columns(features, [name for name in features.columns if name not in taken])
    if kept.width:
        write_table(directory / FEATURES_FILE, kept)
