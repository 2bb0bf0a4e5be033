"""One column cast to the one type that its meaning has, with a mark on every row that could not be."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import canonicalize_text, column_to_text
from vecall.data.list_cells import split_numbers, split_tags
from vecall.data.timestamps import to_unix_micros
from vecall.schema import CategoryFeature, Feature, IdType, NumericFeature, TagsFeature, TextFeature, VectorFeature

DATETIME_DTYPE = pl.Datetime("us")  # how times that are no numbers are held, in UTC

_INTEGRAL_FLOAT_PATTERN = r"^([-+]?\d+)\.0+$"
_DECIMAL_COMMA_PATTERN = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?)$"
# Above 2^bits neighbouring integers are one float.
_MANTISSA_BITS = {pl.Float16: 11, pl.Float32: 24, pl.Float64: 53}


@dataclass(frozen=True)
class CastResult:
    """A column after casting.

    Attributes:
        values: the cast column, with the length of the original.
        is_valid: [n] boolean, False where the row holds nothing usable.
        expected: what a good value is, for the error.
    """

    values: pl.Series
    is_valid: pl.Series
    expected: str


def _cast_or_null(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Cast; null where a cell cannot be, and everywhere where the two types have nothing in common."""
    numbered = dtype.is_numeric() and column.dtype.is_temporal()  # Polars would count days or microseconds
    if not numbered and column.dtype != pl.Struct:  # Polars would cast within the struct
        with suppress(pl.exceptions.PolarsError):
            return column.cast(dtype, strict=False)
    return pl.repeat(None, len(column), dtype=dtype, eager=True)


def column_to_text_or_null(column: pl.Series) -> pl.Series:
    """Text of each cell of a column of scalars; null everywhere for one of another kind."""
    if not column.dtype.is_nested():
        with suppress(pl.exceptions.PolarsError):
            return column_to_text(column)
    return pl.repeat(None, len(column), dtype=pl.String, eager=True)


def is_missing(column: pl.Series) -> pl.Series:
    """[n] whether a cell holds nothing: null, NaN or the empty string."""
    blank = column.is_null()
    if column.dtype == pl.String:
        return blank | (column == "").fill_null(value=False)
    return blank | column.is_nan().fill_null(value=False) if column.dtype.is_float() else blank


def to_numpy_float_type(dtype: Any) -> type[np.floating[Any]]:  # noqa: ANN401 - polars types its inner types loosely
    """NumPy's type of a float column."""
    match dtype:
        case pl.Float64():
            return np.float64
        case pl.Float32():
            return np.float32
    return np.float16


def to_id_dtype(id_type: IdType) -> type[pl.Int64 | pl.String]:
    """How ids of a type are held in a column."""
    return pl.Int64 if id_type == "integer" else pl.String


def cast_id(column: pl.Series, id_type: IdType) -> CastResult:
    """Ids: Int64 or non-empty String, never null.

    Whole floats and decimals are integers, and their text has no fraction. Floats so large that neighbouring integers
    are one float are refused.
    """
    exact = _is_exactly_representable(column)
    hint = " (floats tell integers apart up to a limit only: write large ids as integers or text)"
    expected = "" if exact.all() else hint
    if id_type == "integer":
        values = cast_integer_or_null(column)
        return CastResult(values, values.is_not_null() & exact, "an integer id" + expected)
    values = (
        pl.repeat(None, len(column), dtype=pl.String, eager=True)
        if column.dtype == pl.Boolean
        else column_to_text_or_null(column)
    )
    return CastResult(values, values.is_not_null() & (values.fill_null("") != "") & exact, "a non-empty id" + expected)


def _is_exactly_representable(column: pl.Series) -> pl.Series:
    """[n] False where a float stands for several integers."""
    bits = next((bits for dtype, bits in _MANTISSA_BITS.items() if column.dtype == dtype), None)
    if bits is None:
        return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)
    return (column.cast(pl.Float64).abs() < 2.0**bits).fill_null(value=False)


def cast_integer_or_null(column: pl.Series) -> pl.Series:
    """Int64; null where a cell is no whole number within 64 bits."""
    if column.dtype == pl.Boolean:
        return pl.repeat(None, len(column), dtype=pl.Int64, eager=True)
    if column.dtype == pl.String:
        return column.str.replace(_INTEGRAL_FLOAT_PATTERN, "$1").cast(pl.Int64, strict=False)
    values = _cast_or_null(column, pl.Int64())
    if column.dtype.is_float():
        whole = (values.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(value=False)
    elif isinstance(column.dtype, pl.Decimal):
        whole = (values.cast(column.dtype, strict=False) == column).fill_null(value=False)
    else:
        return values
    return values.zip_with(whole, pl.repeat(None, len(column), dtype=pl.Int64, eager=True))


def cast_number(column: pl.Series, *, is_optional: bool, decimal: str = ".") -> CastResult:
    """Finite Float64; null, NaN and the empty string are missing, which is allowed where `is_optional`.

    Args:
        column: numbers, or text of numbers.
        is_optional: whether a number may be missing.
        decimal: what stands before the fraction in text, "." or ",".
    """
    if column.dtype == pl.String and decimal == ",":
        values = _cast_or_null(column.str.replace(_DECIMAL_COMMA_PATTERN, "$1.$2"), pl.Float64())
    else:
        values = _cast_or_null(column, pl.Float64())
    good = values.is_finite().fill_null(value=False)
    expected = (
        "a finite number" + (" or nothing" if is_optional else "") + _suggest_decimal_comma(column, good, decimal)
    )
    if is_optional:
        good = good | is_missing(column)
    return CastResult(values.fill_nan(None), good, expected)


def _suggest_decimal_comma(column: pl.Series, is_valid: pl.Series, decimal: str) -> str:
    if column.dtype != pl.String or decimal == ",":
        return ""
    bad = column.filter(~is_valid)
    return (
        ', with a point (data.csv.decimal = "," reads commas)' if bad.str.contains(_DECIMAL_COMMA_PATTERN).any() else ""
    )


def cast_boolean(column: pl.Series, *, is_optional: bool = False) -> CastResult:
    """Boolean, from a boolean, 0 and 1, or true and false in words."""
    if column.dtype == pl.Boolean:
        values = column
    else:
        words = column_to_text_or_null(column).str.to_lowercase()
        frame = words.rename("word").to_frame()
        values = frame.select(
            pl.when(pl.col("word").is_in(["true", "1"]))
            .then(True)
            .when(pl.col("word").is_in(["false", "0"]))
            .then(False)
        ).to_series()
    good = values.is_not_null()
    return CastResult(values, good | is_missing(column) if is_optional else good, "true or false")


def cast_timestamp(column: pl.Series, *, decimal: str = ".") -> CastResult:
    """Numbers as they are (Int64 or Float64); datetimes, dates and ISO 8601 text as Datetime("us") in UTC."""
    if column.dtype.is_numeric():
        return _cast_numeric_timestamp(column, decimal)
    if column.dtype == pl.String:
        number = _cast_numeric_timestamp(column, decimal)
        if 2 * number.is_valid.sum() >= len(column):  # a column of numbers with some bad cells, not of dates
            return number
    return cast_datetime(column)


def _cast_numeric_timestamp(column: pl.Series, decimal: str) -> CastResult:
    """Int64 where all that are numbers at all are whole, so that large ones keep their last digits."""
    number = cast_number(column, is_optional=False, decimal=decimal)
    whole = cast_integer_or_null(column)
    values = whole if (whole.is_not_null() == number.is_valid).all() else number.values
    return CastResult(values, number.is_valid, "a time as a number")


def cast_datetime(column: pl.Series, *, is_optional: bool = False) -> CastResult:
    """Datetime("us") in UTC, from datetimes, dates and ISO 8601 text."""
    if column.dtype == pl.String:
        values = column.map_elements(_parse_iso8601_micros, return_dtype=pl.Int64).cast(DATETIME_DTYPE)
        expected = "an ISO 8601 time, such as 2018-06-01T12:00:00"
    elif column.dtype.is_temporal():
        values, expected = _cast_or_null(column, DATETIME_DTYPE), "a number, a datetime or an ISO 8601 time"
    else:
        values = pl.repeat(None, len(column), dtype=DATETIME_DTYPE, eager=True)
        expected = "a datetime or an ISO 8601 time"
    good = values.is_not_null()
    return CastResult(values, good | is_missing(column) if is_optional else good, expected)


def _parse_iso8601_micros(text: str) -> int | None:
    try:
        return to_unix_micros(datetime.fromisoformat(text))
    except ValueError:
        return None


def cast_feature(column: pl.Series, feature: Feature, *, decimal: str = ".") -> CastResult:
    """A feature's column in the type of its kind; null, NaN and the empty string are missing, and good.

    Args:
        column: as a table or `vecall.data.request_features` has it.
        feature: what it is.
        decimal: what stands before the fraction in text.
    """
    match feature:
        case NumericFeature():
            return cast_number(column, is_optional=True, decimal=decimal)
        case CategoryFeature():
            text = column_to_text_or_null(column)
            return CastResult(canonicalize_text(text), text.is_not_null() | is_missing(column), "text or nothing")
        case TextFeature():
            text = column_to_text_or_null(column)
            return CastResult(text.replace({"": None}), text.is_not_null() | is_missing(column), "text or nothing")
        case TagsFeature():
            values = cast_tags(column, feature.separator)
            folded = canonicalize_text(values.values).list.drop_nulls()
            return CastResult(folded, values.is_valid, values.expected)
        case VectorFeature():
            return _cast_vector(column, feature)


def cast_tags(column: pl.Series, separator: str) -> CastResult:
    """List(String): the values of a list, or of a text cell cut at the separator; as they are spelled."""
    try:
        values = split_tags(column, separator)
    except pl.exceptions.PolarsError:
        values = pl.repeat(None, len(column), dtype=pl.List(pl.String), eager=True)
    if column.dtype == pl.String:
        values = values.zip_with(~is_missing(column), pl.repeat(None, len(column), dtype=values.dtype, eager=True))
    expected = f"a list, text with {separator!r} between the values, or nothing"
    return CastResult(values, values.is_not_null() | is_missing(column), expected)


def _cast_vector(column: pl.Series, feature: VectorFeature) -> CastResult:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = _cast_or_null(column, pl.List(pl.Float32))
    else:
        values = split_numbers(column_to_text_or_null(column), feature.separator).cast(
            pl.List(pl.Float32), strict=False
        )
    finite = values.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    good = (finite & (values.list.len() == feature.size)).fill_null(value=False)
    values = values.zip_with(good, pl.repeat(None, len(column), dtype=values.dtype, eager=True))
    return CastResult(values, good | is_missing(column), f"{feature.size} finite numbers or nothing")
