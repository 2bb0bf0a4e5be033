"""Attributes and vectors of some items, each read when it is first needed."""

from functools import cached_property

import numpy as np
import polars as pl

from vecall.arrays import Rows, Vectors
from vecall.data.frames import get_unnamed_column
from vecall.live.snapshot import Snapshot


class SnapshotItems:
    """What a snapshot knows of the items at some rows. Not thread-safe.

    Args:
        snapshot: Where they are.
        rows: [n] rows.
    """

    def __init__(self, snapshot: Snapshot, rows: Rows) -> None:
        self._snapshot, self._rows = snapshot, rows
        self._values: dict[str, pl.Series] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def vectors(self) -> Vectors:
        """Vectors [n, D]."""
        return self._snapshot.get_vectors(self._rows)

    def get_values(self, name: str) -> pl.Series:
        """Return the n values of an attribute, without its name."""
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = self._read(name)
        return values

    def _read(self, name: str) -> pl.Series:
        in_base, in_delta, order = self._indices
        # Indexing by a column, unlike `gather`, runs no query of Polars, which would start its thread pool.
        values = get_unnamed_column(self._snapshot.release.attributes, name)[in_base]
        if order is None:
            return values
        return values.append(get_unnamed_column(self._snapshot.delta.attributes, name)[in_delta])[order]

    @cached_property
    def _indices(self) -> tuple[pl.Series, pl.Series, pl.Series | None]:
        """Rows of the base, slots of the delta, and positions of all items among both; None for those of the base."""
        slots = self._rows - self._snapshot.release.vectors.size
        is_new = slots >= 0
        parts = self._rows[~is_new], slots[is_new], np.argsort(np.argsort(is_new, kind="stable"), kind="stable")
        in_base, in_delta, order = (pl.Series(part.astype(np.uint32)) for part in parts)
        return in_base, in_delta, order if is_new.any() else None
