"""Attributes, which `where` names and `candidates` gives back, in the type that the schema or their table gives."""

from datetime import datetime

import polars as pl

from vecall.data.casting import (
    Cast,
    cast_flag,
    cast_integer,
    cast_moment,
    cast_number,
    cast_tags,
    is_blank,
    spelled_text,
)
from vecall.data.timestamps import NS_PER_UNIT, moment_to_microseconds
from vecall.schema import AttributeType

# Python's calendar, in which candidates and pages show times.
MIN_MICROSECONDS = moment_to_microseconds(datetime.min)
MAX_MICROSECONDS = moment_to_microseconds(datetime.max)


def cast_attribute(column: pl.Series, declared: AttributeType | None, *, separator: str, decimal: str = ".") -> Cast:
    """A column of the items table as an attribute; null is good.

    Args:
        column: as the table has it.
        declared: its type; None keeps the table's.
        separator: between the tags of a text cell.
        decimal: what stands before the fraction of a number in text.
    """
    match declared:
        case None:
            return _check_calendar(column)
        case "string":
            values = spelled_text(column)
            return Cast(values, values.is_not_null() | is_blank(column), "text or nothing")
        case "integer" if column.dtype.is_integer():
            return Cast(column, _all_good(column), "an integer")
        case "integer":
            values = cast_integer(column)
            return Cast(values, values.is_not_null() | is_blank(column), "an integer or nothing")
        case "number" if column.dtype.is_integer() or isinstance(column.dtype, pl.Decimal):
            return Cast(column, _all_good(column), "a number")
        case "number":
            return cast_number(column, optional=True, decimal=decimal)
        case "boolean":
            return cast_flag(column, optional=True)
        case "datetime":
            cast = cast_moment(column, optional=True)
            within = _check_calendar(cast.values)
            return Cast(within.values, cast.good & within.good, cast.expected)
        case "tags":
            return cast_tags(column, separator)


def _all_good(column: pl.Series) -> pl.Series:
    return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)


def _check_calendar(column: pl.Series) -> Cast:
    return Cast(column, is_within_calendar(column), "a time in the years 1 to 9999")


def is_within_calendar(column: pl.Series) -> pl.Series:
    """[n] False where a date or datetime, in UTC or in its own zone, is in no year from 1 to 9999."""
    if isinstance(column.dtype, pl.Date):
        days = column.to_physical()
        good = (days >= MIN_MICROSECONDS // 86_400_000_000) & (days <= MAX_MICROSECONDS // 86_400_000_000)
        return good.fill_null(value=True)
    if not isinstance(column.dtype, pl.Datetime):
        return _all_good(column)
    good = _microseconds_within(column)
    if column.dtype.time_zone is not None:
        good = good & _microseconds_within(column.dt.replace_time_zone(None))
    return good


def _microseconds_within(column: pl.Series) -> pl.Series:
    unit = column.dtype.time_unit  # type: ignore[attr-defined]  # a Datetime
    per_second = 10**9 // NS_PER_UNIT[unit]
    low, high = MIN_MICROSECONDS // 10**6, MAX_MICROSECONDS // 10**6  # seconds
    seconds = column.to_physical() // per_second
    return ((seconds >= low) & (seconds <= high)).fill_null(value=True)
