"""Columns of a data frame as numbers."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

_SECONDS_PER_DAY = 86_400


def is_numeric(dtype: pl.DataType) -> bool:
    """Return whether `to_numbers` takes a column: numbers, booleans, dates and datetimes."""
    return dtype.is_numeric() or dtype == pl.Boolean or isinstance(dtype, (pl.Date, pl.Datetime))


def to_numbers(column: pl.Series) -> NDArray[np.float64]:
    """Return the [n] values of a numeric column, NaN where null; dates and datetimes become days since 1970 in UTC."""
    if isinstance(column.dtype, (pl.Date, pl.Datetime)):
        return column.dt.epoch("s").cast(pl.Float64).to_numpy() / _SECONDS_PER_DAY
    return column.cast(pl.Float64).to_numpy()
