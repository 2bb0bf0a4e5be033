"""The range of Python's datetime, the years 1 to 9999: dates and datetimes beyond it cannot be read as values."""

import polars as pl

from vecall.data.frames import null_column
from vecall.data.timestamps import MAX_UNIX_MICROS, MIN_UNIX_MICROS, NS_PER_UNIT

_SECONDS_PER_DAY = 86_400
_MIN_UNIX_SECONDS, _MAX_UNIX_SECONDS = MIN_UNIX_MICROS // 10**6, MAX_UNIX_MICROS // 10**6


def is_in_datetime_range(column: pl.Series) -> pl.Series:
    """Return a mask [n] that is false for dates and datetimes outside the years 1 to 9999.

    A datetime with a time zone must lie within the range in UTC and in its own zone. Nulls and other types are true.
    """
    if isinstance(column.dtype, pl.Date):
        days = column.to_physical()
        is_in_range = (days >= _MIN_UNIX_SECONDS // _SECONDS_PER_DAY) & (days <= _MAX_UNIX_SECONDS // _SECONDS_PER_DAY)
        return is_in_range.fill_null(value=True)
    if not isinstance(column.dtype, pl.Datetime):
        return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)
    is_in_range = _is_physical_in_range(column)
    if column.dtype.time_zone is not None:
        readable = column.zip_with(is_in_range, null_column(len(column), column.dtype))
        is_in_range = is_in_range & _is_physical_in_range(readable.dt.replace_time_zone(None))
    return is_in_range


def nullify_beyond_datetime_range(column: pl.Series) -> pl.Series:
    """Return the column with null in place of dates and datetimes outside the years 1 to 9999.

    Polars ends the process's thread with a panic when it converts some of them.
    """
    if not isinstance(column.dtype, (pl.Date, pl.Datetime)):
        return column
    return column.zip_with(is_in_datetime_range(column), null_column(len(column), column.dtype))


def _is_physical_in_range(column: pl.Series) -> pl.Series:
    unit = column.dtype.time_unit  # type: ignore[attr-defined]  # a Datetime
    seconds = column.to_physical() // (10**9 // NS_PER_UNIT[unit])
    return ((seconds >= _MIN_UNIX_SECONDS) & (seconds <= _MAX_UNIX_SECONDS)).fill_null(value=True)
