"""Casting of item attributes, which filters and rankings read, to the types that the schema or the table declares."""

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
from vecall.data.datetime_range import is_in_datetime_range
from vecall.schema import AttributeType


def cast_attribute(
    column: pl.Series, attribute_type: AttributeType | None, *, separator: str, decimal: str = "."
) -> CastResult:
    """Cast a column of the items table; null is valid.

    Args:
        column: [n] Cells of the table.
        attribute_type: The type to cast to; None keeps the type of the table.
        separator: Separates the tags of a text cell.
        decimal: Decimal separator in text, "." or ",".
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
            return cast_datetime(column, is_optional=True)
        case "tags":
            return cast_tags(column, separator)


def _all_true(column: pl.Series) -> pl.Series:
    return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)


def _validate_datetime_range(column: pl.Series) -> CastResult:
    return CastResult(column, is_in_datetime_range(column), "a time in the years 1 to 9999")
