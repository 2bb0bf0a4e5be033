"""Attributes, which `where` names and `candidates` gives back, in the type that the schema or their table gives."""

from datetime import datetime

import polars as pl

from vecall.data.casting import (
    CastResult,
    cast_boolean,
    cast_datetime,
    cast_integer_or_null,
    cast_number,
    cast_tags,
    column_to_text_or_null,
    is_missing,
)
from vecall.data.timestamps import NS_PER_UNIT, to_unix_micros
from vecall.schema import AttributeType

# Python's calendar, in which candidates and pages show times.
MIN_UNIX_MICROS = to_unix_micros(datetime.min)
MAX_UNIX_MICROS = to_unix_micros(datetime.max)


def cast_attribute(
    column: pl.Series, attribute_type: AttributeType | None, *, separator: str, decimal: str = "."
) -> CastResult:
    """A column of the items table as an attribute; null is good.

    Args:
        column: as the table has it.
        attribute_type: its type; None keeps the table's.
        separator: between the tags of a text cell.
        decimal: what stands before the fraction of a number in text.
    """
    match attribute_type:
        case None:
            return _validate_datetime_range(column)
        case "string":
            values = column_to_text_or_null(column)
            return CastResult(values, values.is_not_null() | is_missing(column), "text or nothing")
        case "integer" if column.dtype.is_integer():
            return CastResult(column, _all_true(column), "an integer")
        case "integer":
            values = cast_integer_or_null(column)
            return CastResult(values, values.is_not_null() | is_missing(column), "an integer or nothing")
        case "number" if column.dtype.is_integer() or isinstance(column.dtype, pl.Decimal):
            return CastResult(column, _all_true(column), "a number")
        case "number":
            return cast_number(column, is_optional=True, decimal=decimal)
        case "boolean":
            return cast_boolean(column, is_optional=True)
        case "datetime":
            cast = cast_datetime(column, is_optional=True)
            within = _validate_datetime_range(cast.values)
            return CastResult(within.values, cast.is_valid & within.is_valid, cast.expected)
        case "tags":
            return cast_tags(column, separator)


def _all_true(column: pl.Series) -> pl.Series:
    return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)


def _validate_datetime_range(column: pl.Series) -> CastResult:
    return CastResult(column, is_in_datetime_range(column), "a time in the years 1 to 9999")


def is_in_datetime_range(column: pl.Series) -> pl.Series:
    """[n] False where a date or datetime, in UTC or in its own zone, is in no year from 1 to 9999."""
    if isinstance(column.dtype, pl.Date):
        days = column.to_physical()
        good = (days >= MIN_UNIX_MICROS // 86_400_000_000) & (days <= MAX_UNIX_MICROS // 86_400_000_000)
        return good.fill_null(value=True)
    if not isinstance(column.dtype, pl.Datetime):
        return _all_true(column)
    good = _is_physical_in_range(column)
    if column.dtype.time_zone is not None:
        good = good & _is_physical_in_range(column.dt.replace_time_zone(None))
    return good


def _is_physical_in_range(column: pl.Series) -> pl.Series:
    unit = column.dtype.time_unit  # type: ignore[attr-defined]  # a Datetime
    per_second = 10**9 // NS_PER_UNIT[unit]
    low, high = MIN_UNIX_MICROS // 10**6, MAX_UNIX_MICROS // 10**6  # seconds
    seconds = column.to_physical() // per_second
    return ((seconds >= low) & (seconds <= high)).fill_null(value=True)
