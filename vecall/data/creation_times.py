"""Casting of the time that an item came: a datetime, ISO 8601 text, or a number in the unit of interaction times."""

import polars as pl

from vecall.data.casting import (
    DATETIME_DTYPE,
    CastResult,
    cast_datetime,
    cast_number,
    categorical_to_text,
    is_missing,
)
from vecall.data.datetime_range import is_in_datetime_range
from vecall.data.frames import null_column
from vecall.data.timestamps import NS_PER_UNIT
from vecall.schema import TimeUnit


def cast_creation_time(column: pl.Series, *, time_unit: TimeUnit | None, decimal: str = ".") -> CastResult:
    """Cast to Datetime("us") in UTC; null, NaN and the empty string are valid and become null.

    Args:
        column: [n] Cells of a table.
        time_unit: Unit of cells that are numbers, since 1970; None to refuse numbers.
        decimal: Decimal separator in text, "." or ",".
    """
    column = categorical_to_text(column)
    if time_unit is None or column.dtype.is_temporal():
        times = cast_datetime(column, is_optional=True).values
        expected = "a datetime, an ISO 8601 time or nothing (numbers need schema.interactions.time_unit)"
    else:
        expected = f"a datetime, an ISO 8601 time, a number in {time_unit} since 1970 or nothing"
        numbers = cast_number(column, is_optional=True, decimal=decimal).values
        micros = (numbers * (NS_PER_UNIT[time_unit] / NS_PER_UNIT["us"])).round().cast(pl.Int64, strict=False)
        is_text = numbers.is_null()
        others = column.zip_with(is_text, null_column(len(column), column.dtype))
        times = cast_datetime(others).values.zip_with(is_text, micros.cast(DATETIME_DTYPE))
    is_valid = (times.is_not_null() | is_missing(column)) & is_in_datetime_range(times)
    return CastResult(times, is_valid, expected)
