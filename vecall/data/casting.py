"""One column cast to the one type that its meaning has, with a mark on every row that could not be."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import fold, spell
from vecall.data.list_cells import split_numbers, split_tags
from vecall.data.timestamps import moment_to_microseconds
from vecall.schema import Category, Feature, IdType, Numeric, Tags, Text, Vector

MOMENTS = pl.Datetime("us")  # how times that are no numbers are held, in UTC

_WHOLE_TEXT = r"^([-+]?\d+)\.0+$"
_DECIMAL_COMMA = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?)$"
# Above 2^bits neighbouring integers are one float.
_EXACT_BITS = {pl.Float16: 11, pl.Float32: 24, pl.Float64: 53}


@dataclass(frozen=True)
class Cast:
    """A column after casting.

    Attributes:
        values: the cast column, with the length of the original.
        good: [n] boolean, False where the row holds nothing usable.
        expected: what a good value is, for the error.
    """

    values: pl.Series
    good: pl.Series
    expected: str


def _to(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Cast; null where a cell cannot be, and everywhere where the two types have nothing in common."""
    numbered = dtype.is_numeric() and column.dtype.is_temporal()  # Polars would count days or microseconds
    if not numbered and column.dtype != pl.Struct:  # Polars would cast within the struct
        with suppress(pl.exceptions.PolarsError):
            return column.cast(dtype, strict=False)
    return pl.repeat(None, len(column), dtype=dtype, eager=True)


def spelled_text(column: pl.Series) -> pl.Series:
    """Text of each cell of a column of scalars; null everywhere for one of another kind."""
    if not column.dtype.is_nested():
        with suppress(pl.exceptions.PolarsError):
            return spell(column)
    return pl.repeat(None, len(column), dtype=pl.String, eager=True)


def is_blank(column: pl.Series) -> pl.Series:
    """[n] whether a cell holds nothing: null, NaN or the empty string."""
    blank = column.is_null()
    if column.dtype == pl.String:
        return blank | (column == "").fill_null(value=False)
    return blank | column.is_nan().fill_null(value=False) if column.dtype.is_float() else blank


def numpy_float(dtype: Any) -> type[np.floating[Any]]:  # noqa: ANN401 - polars types its inner types loosely
    """NumPy's type of a float column."""
    match dtype:
        case pl.Float64():
            return np.float64
        case pl.Float32():
            return np.float32
    return np.float16


def id_dtype(id_type: IdType) -> type[pl.Int64 | pl.String]:
    """How ids of a type are held in a column."""
    return pl.Int64 if id_type == "integer" else pl.String


def cast_id(column: pl.Series, id_type: IdType) -> Cast:
    """Ids: Int64 or non-empty String, never null.

    Whole floats and decimals are integers, and their text has no fraction. Floats so large that neighbouring integers
    are one float are refused.
    """
    exact = _is_exact(column)
    hint = " (floats tell integers apart up to a limit only: write large ids as integers or text)"
    expected = "" if exact.all() else hint
    if id_type == "integer":
        values = cast_integer(column)
        return Cast(values, values.is_not_null() & exact, "an integer id" + expected)
    values = (
        pl.repeat(None, len(column), dtype=pl.String, eager=True)
        if column.dtype == pl.Boolean
        else spelled_text(column)
    )
    return Cast(values, values.is_not_null() & (values.fill_null("") != "") & exact, "a non-empty id" + expected)


def _is_exact(column: pl.Series) -> pl.Series:
    """[n] False where a float stands for several integers."""
    bits = next((bits for dtype, bits in _EXACT_BITS.items() if column.dtype == dtype), None)
    if bits is None:
        return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)
    return (column.cast(pl.Float64).abs() < 2.0**bits).fill_null(value=False)


def cast_integer(column: pl.Series) -> pl.Series:
    """Int64; null where a cell is no whole number within 64 bits."""
    if column.dtype == pl.Boolean:
        return pl.repeat(None, len(column), dtype=pl.Int64, eager=True)
    if column.dtype == pl.String:
        return column.str.replace(_WHOLE_TEXT, "$1").cast(pl.Int64, strict=False)
    values = _to(column, pl.Int64())
    if column.dtype.is_float():
        whole = (values.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(value=False)
    elif isinstance(column.dtype, pl.Decimal):
        whole = (values.cast(column.dtype, strict=False) == column).fill_null(value=False)
    else:
        return values
    return values.zip_with(whole, pl.repeat(None, len(column), dtype=pl.Int64, eager=True))


def cast_number(column: pl.Series, *, optional: bool, decimal: str = ".") -> Cast:
    """Finite Float64; null, NaN and the empty string are missing, which is allowed where `optional`.

    Args:
        column: numbers, or text of numbers.
        optional: whether a number may be missing.
        decimal: what stands before the fraction in text, "." or ",".
    """
    if column.dtype == pl.String and decimal == ",":
        values = _to(column.str.replace(_DECIMAL_COMMA, "$1.$2"), pl.Float64())
    else:
        values = _to(column, pl.Float64())
    good = values.is_finite().fill_null(value=False)
    expected = "a finite number" + (" or nothing" if optional else "") + _comma_hint(column, good, decimal)
    if optional:
        good = good | is_blank(column)
    return Cast(values.fill_nan(None), good, expected)


def _comma_hint(column: pl.Series, good: pl.Series, decimal: str) -> str:
    if column.dtype != pl.String or decimal == ",":
        return ""
    bad = column.filter(~good)
    return ', with a point (data.csv.decimal = "," reads commas)' if bad.str.contains(_DECIMAL_COMMA).any() else ""


def cast_flag(column: pl.Series, *, optional: bool = False) -> Cast:
    """Boolean, from a boolean, 0 and 1, or true and false in words."""
    if column.dtype == pl.Boolean:
        values = column
    else:
        words = spelled_text(column).str.to_lowercase()
        frame = words.rename("word").to_frame()
        values = frame.select(
            pl.when(pl.col("word").is_in(["true", "1"]))
            .then(True)
            .when(pl.col("word").is_in(["false", "0"]))
            .then(False)
        ).to_series()
    good = values.is_not_null()
    return Cast(values, good | is_blank(column) if optional else good, "true or false")


def cast_time(column: pl.Series, *, decimal: str = ".") -> Cast:
    """Numbers as they are (Int64 or Float64); datetimes, dates and ISO 8601 text as Datetime("us") in UTC."""
    if column.dtype.is_numeric():
        return _cast_time_number(column, decimal)
    if column.dtype == pl.String:
        number = _cast_time_number(column, decimal)
        if 2 * number.good.sum() >= len(column):  # a column of numbers with some bad cells, not of dates
            return number
    return cast_moment(column)


def _cast_time_number(column: pl.Series, decimal: str) -> Cast:
    """Int64 where all that are numbers at all are whole, so that large ones keep their last digits."""
    number = cast_number(column, optional=False, decimal=decimal)
    whole = cast_integer(column)
    values = whole if (whole.is_not_null() == number.good).all() else number.values
    return Cast(values, number.good, "a time as a number")


def cast_moment(column: pl.Series, *, optional: bool = False) -> Cast:
    """Datetime("us") in UTC, from datetimes, dates and ISO 8601 text."""
    if column.dtype == pl.String:
        values = column.map_elements(_microseconds, return_dtype=pl.Int64).cast(MOMENTS)
        expected = "an ISO 8601 time, such as 2018-06-01T12:00:00"
    elif column.dtype.is_temporal():
        values, expected = _to(column, MOMENTS), "a number, a datetime or an ISO 8601 time"
    else:
        values = pl.repeat(None, len(column), dtype=MOMENTS, eager=True)
        expected = "a datetime or an ISO 8601 time"
    good = values.is_not_null()
    return Cast(values, good | is_blank(column) if optional else good, expected)


def _microseconds(text: str) -> int | None:
    try:
        return moment_to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        return None


def cast_feature(column: pl.Series, feature: Feature, *, decimal: str = ".") -> Cast:
    """A feature's column in the type of its kind; null, NaN and the empty string are missing, and good.

    Args:
        column: as a table or `vecall.data.request_features` has it.
        feature: what it is.
        decimal: what stands before the fraction in text.
    """
    match feature:
        case Numeric():
            return cast_number(column, optional=True, decimal=decimal)
        case Category():
            text = spelled_text(column)
            return Cast(fold(text), text.is_not_null() | is_blank(column), "text or nothing")
        case Text():
            text = spelled_text(column)
            return Cast(text.replace({"": None}), text.is_not_null() | is_blank(column), "text or nothing")
        case Tags():
            values = cast_tags(column, feature.separator)
            folded = fold(values.values).list.drop_nulls()
            return Cast(folded, values.good, values.expected)
        case Vector():
            return _cast_vector(column, feature)


def cast_tags(column: pl.Series, separator: str) -> Cast:
    """List(String): the values of a list, or of a text cell cut at the separator; as they are spelled."""
    try:
        values = split_tags(column, separator)
    except pl.exceptions.PolarsError:
        values = pl.repeat(None, len(column), dtype=pl.List(pl.String), eager=True)
    if column.dtype == pl.String:
        values = values.zip_with(~is_blank(column), pl.repeat(None, len(column), dtype=values.dtype, eager=True))
    expected = f"a list, text with {separator!r} between the values, or nothing"
    return Cast(values, values.is_not_null() | is_blank(column), expected)


def _cast_vector(column: pl.Series, feature: Vector) -> Cast:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = _to(column, pl.List(pl.Float32))
    else:
        values = split_numbers(spelled_text(column), feature.separator).cast(pl.List(pl.Float32), strict=False)
    finite = values.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    good = (finite & (values.list.len() == feature.size)).fill_null(value=False)
    values = values.zip_with(good, pl.repeat(None, len(column), dtype=values.dtype, eager=True))
    return Cast(values, good | is_blank(column), f"{feature.size} finite numbers or nothing")
