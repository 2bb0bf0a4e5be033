"""Columns of a data frame as numbers."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

_SECONDS_PER_DAY = 86_400
_UNITS_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


def is_numeric(dtype: pl.DataType) -> bool:
    """Return whether `to_numbers` takes a column: numbers, booleans, dates and datetimes."""
    return dtype.is_numeric() or dtype == pl.Boolean or isinstance(dtype, (pl.Date, pl.Datetime))


def to_numbers(column: pl.Series) -> NDArray[np.float64]:
    """Return the [n] values of a numeric column, NaN where null; dates and datetimes become days since 1970 in UTC."""
    # Casts, unlike `dt.epoch`, run no query of Polars, which would take longer than all else here.
    dtype = column.dtype
    if isinstance(dtype, pl.Datetime):
        seconds = np.floor(column.cast(pl.Int64).cast(pl.Float64).to_numpy() / _UNITS_PER_SECOND[dtype.time_unit])
        return seconds / _SECONDS_PER_DAY
    return (column.cast(pl.Int32) if isinstance(dtype, pl.Date) else column).cast(pl.Float64).to_numpy()
