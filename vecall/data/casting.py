"""Casting of table columns to the types that ids, times, labels and features need, with a mask of the valid rows."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import canonicalize_text, column_to_text
from vecall.data.datetime_range import nullify_beyond_datetime_range
from vecall.data.frames import null_column
from vecall.data.list_cells import split_numbers, split_tags
from vecall.data.timestamps import MAX_UNIX_MICROS, MIN_UNIX_MICROS, to_unix_micros
from vecall.schema import CategoryFeature, Feature, IdType, NumericFeature, TagsFeature, TextFeature, VectorFeature

DATETIME_DTYPE = pl.Datetime("us")  # of times that are not numbers, in UTC

_INTEGRAL_FLOAT_PATTERN = r"^([-+]?\d+)\.0+$"
_DECIMAL_COMMA_PATTERN = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?)$"
# From 2^bits on, neighbouring integers are the same float.
_MANTISSA_BITS = {pl.Float16: 11, pl.Float32: 24, pl.Float64: 53}
_MAX_EXACT_FLOAT64 = 2.0**53


@dataclass(frozen=True)
class CastResult:
    """A column after casting.

    Attributes:
        values: [n] The cast column.
        is_valid: [n] Boolean, false where the input is not what was expected.
        expected: What was expected, for the error text.
    """

    values: pl.Series
    is_valid: pl.Series
    expected: str


def _cast_or_null(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Cast a column; null where a cell cannot be cast, and in every cell if the types are incompatible."""
    # Polars would cast times to a count of days or microseconds, and the fields of structs.
    is_lossy = dtype.is_numeric() and column.dtype.is_temporal()
    if not is_lossy and column.dtype != pl.Struct:
        with suppress(pl.exceptions.PolarsError):
            return column.cast(dtype, strict=False)
    return null_column(len(column), dtype)


def categorical_to_text(column: pl.Series) -> pl.Series:
    """Return the texts of a categorical column, which Polars would cast to codes or not at all; others unchanged."""
    return column.cast(pl.String) if isinstance(column.dtype, (pl.Categorical, pl.Enum)) else column


def column_to_text_or_null(column: pl.Series) -> pl.Series:
    """Convert a column of scalars to text, see `column_to_text`; null in every cell of a column of another type."""
    if not column.dtype.is_nested():
        with suppress(pl.exceptions.PolarsError):
            return column_to_text(nullify_beyond_datetime_range(column))
    return null_column(len(column), pl.String)


def is_missing(column: pl.Series) -> pl.Series:
    """Return a mask [n] of the cells that are null, NaN or the empty string."""
    is_null = column.is_null()
    if isinstance(column.dtype, (pl.String, pl.Categorical, pl.Enum)):
        return is_null | (categorical_to_text(column) == "").fill_null(value=False)
    return is_null | column.is_nan().fill_null(value=False) if column.dtype.is_float() else is_null


def to_numpy_float_type(dtype: Any) -> type[np.floating[Any]]:  # noqa: ANN401 - polars types its inner types loosely
    """Return the NumPy type that a Polars float type corresponds to."""
    match dtype:
        case pl.Float64():
            return np.float64
        case pl.Float32():
            return np.float32
    return np.float16


def to_id_dtype(id_type: IdType) -> type[pl.Int64 | pl.String]:
    """Return the Polars type of a column of ids."""
    return pl.Int64 if id_type == "integer" else pl.String


def cast_id(column: pl.Series, id_type: IdType) -> CastResult:
    """Cast ids to Int64 or non-empty String; null is invalid.

    Integral floats and decimals are valid integers, and their text has no fraction. Floats beyond the integers that
    their type represents exactly are invalid.
    """
    is_exact = _is_exactly_representable(column)
    hint = (
        ""
        if (is_exact | is_missing(column)).all()
        else " (large integers are not exact as floats: write large ids as integers or text)"
    )
    if id_type == "integer":
        values = cast_integer_or_null(column)
        return CastResult(values, values.is_not_null() & is_exact, "an integer id" + hint)
    values = null_column(len(column), pl.String) if column.dtype == pl.Boolean else column_to_text_or_null(column)
    return CastResult(values, (values.fill_null("") != "") & is_exact, "a non-empty id" + hint)


def _is_exactly_representable(column: pl.Series) -> pl.Series:
    """Return a mask [n] that is false where several integers round to the same float."""
    bits = next((bits for dtype, bits in _MANTISSA_BITS.items() if column.dtype == dtype), None)
    if bits is None:
        return pl.repeat(value=True, n=len(column), dtype=pl.Boolean, eager=True)
    return (column.cast(pl.Float64).abs() < 2.0**bits).fill_null(value=False)


def cast_integer_or_null(column: pl.Series) -> pl.Series:
    """Cast to Int64; null where a cell is not an integral number within 64 bits."""
    column = categorical_to_text(column)
    if column.dtype == pl.Boolean:
        return null_column(len(column), pl.Int64)
    if column.dtype == pl.String:
        return column.str.replace(_INTEGRAL_FLOAT_PATTERN, "$1").cast(pl.Int64, strict=False)
    values = _cast_or_null(column, pl.Int64())
    if column.dtype.is_float():
        is_integral = (values.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(value=False)
    elif isinstance(column.dtype, pl.Decimal):
        is_integral = (values.cast(column.dtype, strict=False) == column).fill_null(value=False)
    else:
        return values
    return values.zip_with(is_integral, null_column(len(column), pl.Int64))


def cast_number(column: pl.Series, *, is_optional: bool, decimal: str = ".") -> CastResult:
    """Cast to finite Float64.

    Args:
        column: Numbers, or text of numbers.
        is_optional: Whether null, NaN and the empty string are valid; they become null.
        decimal: Decimal separator in text, "." or ",".
    """
    column = categorical_to_text(column)
    if column.dtype == pl.String and decimal == ",":
        values = _cast_or_null(column.str.replace(_DECIMAL_COMMA_PATTERN, "$1.$2"), pl.Float64())
    else:
        values = _cast_or_null(column, pl.Float64())
    is_valid = values.is_finite().fill_null(value=False)
    hint = _suggest_decimal_comma(column, is_valid, decimal)
    expected = "a finite number" + (" or nothing" if is_optional else "") + hint
    if is_optional:
        is_valid = is_valid | is_missing(column)
    return CastResult(values.fill_nan(None), is_valid, expected)


def _suggest_decimal_comma(column: pl.Series, is_valid: pl.Series, decimal: str) -> str:
    if column.dtype != pl.String or decimal == ",":
        return ""
    if column.filter(~is_valid).str.contains(_DECIMAL_COMMA_PATTERN).any():
        return ', with a decimal point (data.csv.decimal = "," reads commas)'
    return ""


def cast_boolean(column: pl.Series, *, is_optional: bool = False) -> CastResult:
    """Cast to Boolean from booleans, 0 and 1, also as floats or their text, or "true" and "false" in any case.

    Args:
        column: The cells.
        is_optional: Whether null, NaN and the empty string are valid; they become null.
    """
    if column.dtype == pl.Boolean:
        values = column
    else:
        words = canonicalize_text(column_to_text_or_null(column))
        frame = words.rename("word").to_frame()
        values = frame.select(
            pl.when(pl.col("word").is_in(["true", "1"]))
            .then(True)
            .when(pl.col("word").is_in(["false", "0"]))
            .then(False)
        ).to_series()
    is_valid = values.is_not_null()
    return CastResult(values, is_valid | is_missing(column) if is_optional else is_valid, "true or false")


class TimestampCaster:
    """Cast of a column of times that comes in batches.

    Numbers become Int64 or Float64; datetimes, dates and ISO 8601 text become Datetime("us") in UTC. Text is read as
    numbers if that is valid for at least half of the column, which then has some invalid cells. Only the whole column
    tells: the kind of the first batch is kept, and if it turns out to be wrong, the batches must be cast again.

    Args:
        decimal: Decimal separator in text, "." or ",".
        is_number: Whether text is read as numbers; None to decide by the first batch.
    """

    def __init__(self, decimal: str = ".", *, is_number: bool | None = None) -> None:
        self._decimal, self._is_number = decimal, is_number
        self._n_texts = self._n_numbers = 0

    @property
    def has_more_numbers(self) -> bool:
        """Whether at least half of the text so far can be read as numbers."""
        return 2 * self._n_numbers >= self._n_texts

    @property
    def is_consistent(self) -> bool:
        """Whether the kind that the batches were cast to is that of the whole column."""
        return self._is_number in (None, self.has_more_numbers)

    def cast(self, column: pl.Series) -> CastResult:
        """Cast a batch of cells."""
        column = categorical_to_text(column)
        if column.dtype.is_numeric():
            return _cast_numeric_timestamp(column, self._decimal)
        if column.dtype != pl.String or column.is_empty():
            return cast_datetime(column)
        number = _cast_numeric_timestamp(column, self._decimal)
        self._n_texts += len(column)
        self._n_numbers += int(number.values.is_finite().sum())  # with those that are too large to be exact
        if self._is_number is None:
            self._is_number = self.has_more_numbers
        return number if self._is_number else cast_datetime(column)


def _cast_numeric_timestamp(column: pl.Series, decimal: str) -> CastResult:
    """Cast to Int64 if all numbers are integral, which keeps the last digits of large ones; else to Float64.

    As floats, times from 2^53 on are invalid unless the column holds floats: different ones would become equal.
    """
    number = cast_number(column, is_optional=False, decimal=decimal)
    integers = cast_integer_or_null(column)
    if (integers.is_not_null() == number.is_valid).all():
        return CastResult(integers, number.is_valid, "a time as a number")
    is_exact = (number.values.abs() < _MAX_EXACT_FLOAT64).fill_null(value=False)
    if column.dtype.is_float() or (is_exact == number.is_valid).all():
        return CastResult(number.values, number.is_valid, "a time as a number")
    expected = "a time as a number (large ones are exact only as integers of 64 bits, in all rows)"
    return CastResult(number.values, number.is_valid & is_exact, expected)


def cast_datetime(column: pl.Series, *, is_optional: bool = False) -> CastResult:
    """Cast datetimes, dates and ISO 8601 text to Datetime("us") in UTC; years beyond 1 to 9999 are invalid.

    Args:
        column: The cells.
        is_optional: Whether null and the empty string are valid; they become null.
    """
    column = categorical_to_text(column)
    if column.dtype == pl.String:
        values = column.map_elements(_parse_iso8601_micros, return_dtype=pl.Int64).cast(DATETIME_DTYPE)
        expected = "an ISO 8601 time, such as 2018-06-01T12:00:00"
    elif column.dtype.is_temporal():
        values, expected = _cast_or_null(column, DATETIME_DTYPE), "a number, a datetime or an ISO 8601 time"
    else:
        values, expected = null_column(len(column), DATETIME_DTYPE), "a datetime or an ISO 8601 time"
    values = values.set(~values.to_physical().is_between(MIN_UNIX_MICROS, MAX_UNIX_MICROS), None)
    is_valid = values.is_not_null()
    expected += ", of the years 1 to 9999"
    return CastResult(values, is_valid | is_missing(column) if is_optional else is_valid, expected)


def _parse_iso8601_micros(text: str) -> int | None:
    try:
        return to_unix_micros(datetime.fromisoformat(text))
    except ValueError:
        return None


def to_feature_dtype(feature: NumericFeature | CategoryFeature) -> type[pl.Float64 | pl.String]:
    """Return the Polars type that `cast_feature` casts a feature of one number or value to."""
    return pl.Float64 if isinstance(feature, NumericFeature) else pl.String


def cast_feature(column: pl.Series, feature: Feature, *, decimal: str = ".") -> CastResult:
    """Cast a feature's column to the type of its kind; null, NaN and the empty string are valid and become null.

    Args:
        column: Cells of a table, or built by `vecall.data.request_features`.
        feature: The feature.
        decimal: Decimal separator in text, "." or ",".

    Returns:
        Float64 for numbers, String for categories and text, List(String) for tags, List(Float32) for vectors.
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
            tags = cast_tags(column, feature.separator)
            return CastResult(canonicalize_text(tags.values).list.drop_nulls(), tags.is_valid, tags.expected)
        case VectorFeature():
            return _cast_vector(column, feature)


def cast_tags(column: pl.Series, separator: str) -> CastResult:
    """Cast to List(String): the values of a list, or of text that is split; not canonicalized.

    Args:
        column: Lists of scalars, or scalars; see `split_tags`.
        separator: Separates the values of a text cell.
    """
    values = null_column(len(column), pl.List(pl.String))
    if not _is_nested_twice(column):
        with suppress(pl.exceptions.PolarsError):
            values = split_tags(column, separator)
    if column.dtype == pl.String:
        values = values.zip_with(~is_missing(column), null_column(len(column), values.dtype))
    expected = f"a list, text with {separator!r} between the values, or nothing"
    return CastResult(values, values.is_not_null() | is_missing(column), expected)


def _is_nested_twice(column: pl.Series) -> bool:
    return isinstance(column.dtype, (pl.List, pl.Array)) and column.dtype.inner.is_nested()


def _holds_numbers(column: pl.Series) -> bool:
    inner = column.dtype.inner  # type: ignore[attr-defined]  # of a list
    return bool(inner.is_numeric()) or isinstance(inner, (pl.String, pl.Null))


def _cast_vector(column: pl.Series, feature: VectorFeature) -> CastResult:
    dtype = pl.List(pl.Float32)
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = _cast_or_null(column, dtype) if _holds_numbers(column) else null_column(len(column), dtype)
    else:
        values = split_numbers(column_to_text_or_null(column), feature.separator).cast(dtype, strict=False)
    is_finite = values.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    is_valid = (is_finite & (values.list.len() == feature.size)).fill_null(value=False)
    values = values.zip_with(is_valid, null_column(len(column), dtype))
    return CastResult(values, is_valid | is_missing(column), f"{feature.size} finite numbers or nothing")
