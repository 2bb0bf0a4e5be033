"""One column cast to the one type that its meaning has, with a mark on every row that could not be."""

from dataclasses import dataclass
from datetime import UTC, date, datetime

import polars as pl

from vecall.schema import Category, Feature, IdType, Numeric, Tags, Text, Vector


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


def cast_id(column: pl.Series, id_type: IdType) -> Cast:
    """Ids: Int64 or non-empty String, never null."""
    if id_type == "integer":
        values = column.cast(pl.Int64, strict=False)
        good = values.is_not_null()
        if column.dtype.is_float():
            good = good & (values.cast(pl.Float64) == column.cast(pl.Float64)).fill_null(value=False)
        return Cast(values, good, "an integer id")
    values = column.cast(pl.String, strict=False)
    return Cast(values, values.is_not_null() & (values.fill_null("") != ""), "a non-empty id")


def cast_number(column: pl.Series, *, optional: bool) -> Cast:
    """Finite Float64; null is allowed where `optional`."""
    values = column.cast(pl.Float64, strict=False)
    good = values.is_finite().fill_null(value=False)
    if optional:
        good = good | column.is_null()
    return Cast(values, good, "a finite number" + (" or nothing" if optional else ""))


def cast_flag(column: pl.Series) -> Cast:
    """Boolean, from a boolean, 0 and 1, or true and false in words."""
    if column.dtype == pl.Boolean:
        values = column
    else:
        words = column.cast(pl.String, strict=False).str.to_lowercase()
        values = (
            pl.select(pl.when(words.is_in(["true", "1"])).then(True).when(words.is_in(["false", "0"])).then(False))
            .to_series()
            .rename(column.name)
        )
    return Cast(values, values.is_not_null(), "true or false")


def cast_time(column: pl.Series) -> Cast:
    """Numbers as they are (Int64 or Float64); datetimes and ISO 8601 text as Int64 microseconds since 1970."""
    if column.dtype == pl.String:
        return _cast_time_text(column)
    if column.dtype.is_temporal():
        values = column.cast(pl.Datetime("us")).cast(pl.Int64)
    elif column.dtype.is_integer():
        values = column.cast(pl.Int64, strict=False)
    else:
        return cast_number(column, optional=False)
    return Cast(values, values.is_not_null(), "a time")


def _cast_time_text(column: pl.Series) -> Cast:
    whole = column.cast(pl.Int64, strict=False)
    if whole.null_count() == column.null_count():
        return Cast(whole, whole.is_not_null(), "a time as a number")
    number = cast_number(column, optional=False)
    if 2 * number.good.sum() >= len(column):  # a column of numbers with some bad cells, not of dates
        return Cast(number.values, number.good, "a time as a number")
    values = column.map_elements(_microseconds, return_dtype=pl.Int64)
    return Cast(values, values.is_not_null(), "an ISO 8601 time, such as 2018-06-01T12:00:00")


def _microseconds(text: str) -> int | None:
    try:
        return moment_to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        return None


def moment_to_microseconds(moment: date) -> int:
    """Microseconds since 1970 of a date or datetime; one without a zone is taken as UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def cast_feature(column: pl.Series, feature: Feature) -> Cast:
    """A feature's column in the type of its kind; null means missing and is good."""
    match feature:
        case Numeric():
            return cast_number(column, optional=True)
        case Category() | Text():
            values = column.cast(pl.String, strict=False)
            return Cast(values, values.is_not_null() | column.is_null(), "text or nothing")
        case Tags():
            return _cast_tags(column, feature)
        case Vector():
            return _cast_vector(column, feature)


def _cast_tags(column: pl.Series, feature: Tags) -> Cast:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = column.cast(pl.List(pl.String), strict=False)
    else:
        values = column.cast(pl.String, strict=False).str.split(feature.separator)
        values = values.list.eval(pl.element().filter(pl.element() != ""))
    return Cast(values, values.is_not_null() | column.is_null(), "a list of values or nothing")


def _cast_vector(column: pl.Series, feature: Vector) -> Cast:
    if isinstance(column.dtype, (pl.List, pl.Array)):
        values = column.cast(pl.List(pl.Float32), strict=False)
    else:
        parts = column.cast(pl.String, strict=False).str.split(feature.separator)
        values = parts.cast(pl.List(pl.Float32), strict=False)
    finite = values.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    good = (finite & (values.list.len() == feature.size)).fill_null(value=False) | column.is_null()
    return Cast(values, good, f"{feature.size} finite numbers or nothing")
