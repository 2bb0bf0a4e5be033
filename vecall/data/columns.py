"""One column cast to the one type that its meaning has, with a mark on every row that could not be."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from vecall.schema import Category, Feature, IdType, Numeric, Tags, Text, Vector

MOMENTS = pl.Datetime("us")  # how times that are no numbers are held, in UTC


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
    return pl.repeat(None, len(column), dtype=dtype, eager=True).alias(column.name)


def id_dtype(id_type: IdType) -> type[pl.Int64 | pl.String]:
    """How ids of a type are held in a column."""
    return pl.Int64 if id_type == "integer" else pl.String


def cast_id(column: pl.Series, id_type: IdType) -> Cast:
    """Ids: Int64 or non-empty String, never null."""
    if id_type == "integer":
        values = _to(column, pl.Int64())
        good = values.is_not_null() & (column.dtype != pl.Boolean)
        if column.dtype.is_float():
            good = good & (values.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(value=False)
        return Cast(values, good, "an integer id")
    values = _to(column, pl.String())
    return Cast(values, values.is_not_null() & (values.fill_null("") != ""), "a non-empty id")


def cast_number(column: pl.Series, *, optional: bool) -> Cast:
    """Finite Float64; null is allowed where `optional`."""
    values = _to(column, pl.Float64())
    good = values.is_finite().fill_null(value=False)
    if optional:
        good = good | column.is_null()
    return Cast(values, good, "a finite number" + (" or nothing" if optional else ""))


def cast_flag(column: pl.Series) -> Cast:
    """Boolean, from a boolean, 0 and 1, or true and false in words."""
    if column.dtype == pl.Boolean:
        values = column
    else:
        words = _to(column, pl.String()).str.to_lowercase()
        values = (
            pl.select(pl.when(words.is_in(["true", "1"])).then(True).when(words.is_in(["false", "0"])).then(False))
            .to_series()
            .rename(column.name)
        )
    return Cast(values, values.is_not_null(), "true or false")


def cast_time(column: pl.Series) -> Cast:
    """Numbers as they are (Int64 or Float64); datetimes, dates and ISO 8601 text as Datetime("us") in UTC."""
    if column.dtype.is_numeric():
        return _cast_time_number(column)
    if column.dtype == pl.String:
        return _cast_time_text(column)
    values = _to(column, MOMENTS)
    good = values.is_not_null() & (column.dtype != pl.Boolean)
    return Cast(values, good, "a number, a datetime or an ISO 8601 time")


def _cast_time_number(column: pl.Series) -> Cast:
    """Int64 where all that are numbers at all are whole, so that large ones keep their last digits."""
    number = cast_number(column, optional=False)
    whole = cast_id(column, "integer")
    values = whole.values if (whole.good == number.good).all() else number.values
    return Cast(values, number.good, "a time as a number")


def _cast_time_text(column: pl.Series) -> Cast:
    number = _cast_time_number(column)
    if 2 * number.good.sum() >= len(column):  # a column of numbers with some bad cells, not of dates
        return number
    values = column.map_elements(_microseconds, return_dtype=pl.Int64).cast(MOMENTS)
    return Cast(values, values.is_not_null(), "an ISO 8601 time, such as 2018-06-01T12:00:00")


def _microseconds(text: str) -> int | None:
    try:
        return moment_to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        return None


def moment_to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def cast_feature(column: pl.Series, feature: Feature) -> Cast:
    """A feature's column in the type of its kind; null means missing and is good."""
    match feature:
        case Numeric():
            return cast_number(column, optional=True)
        case Category() | Text():
            values = _to(column, pl.String())
            return Cast(values, values.is_not_null() | column.is_null(), "text or nothing")
        case Tags():
            return _cast_tags(column, feature)
        case Vector():
            return _cast_vector(column, feature)


def _cast_tags(column: pl.Series, feature: Tags) -> Cast:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = _to(column, pl.List(pl.String))
    else:
        values = _to(column, pl.String()).str.split(feature.separator)
    values = values.list.eval(pl.element().filter(pl.element() != ""))  # drops nulls too
    return Cast(values, values.is_not_null() | column.is_null(), "a list of values or nothing")


def _cast_vector(column: pl.Series, feature: Vector) -> Cast:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = _to(column, pl.List(pl.Float32))
    else:
        parts = _to(column, pl.String()).str.split(feature.separator)
        values = parts.cast(pl.List(pl.Float32), strict=False)
    finite = values.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    good = (finite & (values.list.len() == feature.size)).fill_null(value=False) | column.is_null()
    return Cast(values, good, f"{feature.size} finite numbers or nothing")
