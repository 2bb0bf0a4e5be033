"""Rows of an embedding table for the values of a category or of tags."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Embedding rows of a categorical feature.
MISSING = 0
OOV = 1  # out of vocabulary: a category that training did not see; unseen tags have no row and are dropped
_FIRST_VALUE_ROW = 2
_MIN_COLUMN_VALUES = 512  # fewer are looked up faster one by one


class Vocabulary:
    """Distinct values with an embedding row each.

    A few values, as of a request, are looked up as Python objects, which is fast for them; many as a column.

    Args:
        values: Distinct texts; the i-th has row i + 2.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self._values = values

    @property
    def n_rows(self) -> int:
        """Number of rows of the embedding table."""
        return _FIRST_VALUE_ROW + len(self._values)

    def to_row(self, value: str) -> int:
        """Return the row of a value, `OOV` if it is not known."""
        return self._row_by_value.get(value, OOV)

    def to_rows(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the rows [n] of a column of texts: `MISSING` for null, `OOV` for a value that is not known."""
        if len(values) < _MIN_COLUMN_VALUES:
            rows_of_few = (MISSING if value is None else self.to_row(value) for value in values)
            return np.fromiter(rows_of_few, dtype=np.int32, count=len(values))
        codes = values.cast(self._dtype, strict=False).to_physical().cast(pl.Int32)
        rows = (codes + _FIRST_VALUE_ROW).fill_null(OOV)
        if values.null_count():
            rows = rows.zip_with(values.is_not_null(), pl.Series([MISSING], dtype=pl.Int32))
        return rows.to_numpy(writable=True)

    @cached_property
    def _row_by_value(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self._values, _FIRST_VALUE_ROW)}

    @cached_property
    def _dtype(self) -> pl.Enum:
        return pl.Enum(pl.Series(self._values, dtype=pl.String))
