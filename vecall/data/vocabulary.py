"""Rows of an embedding table for the values of a category or of tags."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

# Embedding rows of a categorical feature.
MISSING = 0
OOV = 1  # out of vocabulary: a category that training did not see; unseen tags have no row and are dropped
_FIRST_VALUE_ROW = 2


class Vocabulary:
    """Distinct values with an embedding row each; lookups make no Python object for a value.

    Args:
        values: Distinct texts; the i-th has row i + 2.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self._n_rows = _FIRST_VALUE_ROW + len(values)
        self._dtype = pl.Enum(pl.Series(values, dtype=pl.String))

    @property
    def n_rows(self) -> int:
        """Number of rows of the embedding table."""
        return self._n_rows

    def to_rows(self, values: pl.Series) -> NDArray[np.int32]:
        """Return the rows [n] of a column of texts: `MISSING` for null, `OOV` for a value that is not known."""
        codes = values.cast(self._dtype, strict=False).to_physical().cast(pl.Int32)
        rows = (codes + _FIRST_VALUE_ROW).fill_null(OOV)
        if values.null_count():
            rows = rows.zip_with(values.is_not_null(), pl.Series([MISSING], dtype=pl.Int32))
        return rows.to_numpy()
