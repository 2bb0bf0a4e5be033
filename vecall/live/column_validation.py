"""Attribute columns of a release: check JSON values against a column's type, and build a column from checked values."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import numpy as np
import polars as pl

from vecall.data.casting import to_numpy_float_type
from vecall.data.request_features import is_number, is_text
from vecall.data.timestamps import MAX_UNIX_MICROS, MIN_UNIX_MICROS, NS_PER_DAY, NS_PER_UNIT, parse_iso8601_ns

_MICROSECONDS_PER_DAY = 86_400 * 10**6
_DECIMAL_CONTEXT = Context(prec=100)  # a column has 38 digits, Python's default context 28
_DECIMAL_PATTERN = re.compile(r"[-+]?[0-9]{1,50}(\.[0-9]{0,50})?")
_EPOCH = datetime(1970, 1, 1)  # UTC, as the times of columns


@dataclass(frozen=True)
class ColumnValidator:
    """Validator of the values of one column.

    Attributes:
        accepts: returns whether the column takes a value that is not None.
        expected: description of the accepted values, for the error text.
    """

    accepts: Callable[[Any], bool]
    expected: str

    def describe_error(self, value: object) -> str | None:
        """Return what is wrong with a value, as "expected ..., got ..."; None if it is accepted. Null always is."""
        if value is None or self.accepts(value):
            return None
        return f"expected {self.expected} or null, got {value!r:.80}"


def make_column_validator(dtype: Any) -> ColumnValidator:  # noqa: ANN401 - Polars does not type inner types
    """Return the validator of an attribute of this Polars type. Times are ISO 8601 text."""
    if isinstance(dtype, (pl.List, pl.Array)):
        return _make_list_validator(dtype)
    if isinstance(dtype, pl.Enum):
        names = set(dtype.categories)
        return ColumnValidator(lambda value: isinstance(value, str) and value in names, f"one of {sorted(names)}")
    if isinstance(dtype, (pl.String, pl.Categorical)):
        return ColumnValidator(is_text, "a string")
    if isinstance(dtype, pl.Boolean):
        return ColumnValidator(lambda value: isinstance(value, (bool, np.bool_)), "true or false")
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return _make_time_validator(dtype)
    if isinstance(dtype, pl.Decimal):
        return ColumnValidator(
            lambda value: _to_decimal(value, dtype) is not None,
            f"a number, or its text, of at most {dtype.precision - dtype.scale} digits before the point",
        )
    if dtype.is_integer():
        low, high = _compute_integer_bounds(dtype)
        return ColumnValidator(
            lambda value: is_number(value) and value == int(value) and low <= int(value) <= high,
            f"an integer from {low} to {high}",
        )
    if dtype.is_float():
        largest = float(np.finfo(to_numpy_float_type(dtype)).max)
        return ColumnValidator(lambda value: is_number(value, max_magnitude=largest), "a finite number")
    return ColumnValidator(lambda _: False, f"nothing (this column holds {dtype})")


def _make_list_validator(dtype: pl.List | pl.Array) -> ColumnValidator:
    accepts = make_column_validator(dtype.inner).accepts
    size = dtype.size if isinstance(dtype, pl.Array) else None

    def is_valid_list(value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and (size is None or len(value) == size)
            and all(element is not None and accepts(element) for element in value)
        )

    return ColumnValidator(is_valid_list, f"a list of {'' if size is None else f'{size} '}{dtype.inner}")


def _make_time_validator(dtype: pl.Date | pl.Datetime) -> ColumnValidator:
    years = " to ".join(str((_EPOCH + timedelta(microseconds=edge)).year) for edge in _compute_time_bounds(dtype))
    return ColumnValidator(
        lambda value: _to_physical_time(value, dtype) is not None,
        f"an ISO 8601 time, such as 2018-06-01, of the years {years}",
    )


def _compute_time_bounds(dtype: pl.Date | pl.Datetime) -> tuple[int, int]:
    """Return the first and the last time that a column holds and Python can show, in microseconds since 1970."""
    low, high = MIN_UNIX_MICROS, MAX_UNIX_MICROS
    if isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns":
        low, high = max(low, -(2**63) // 1000 + 1), min(high, 2**63 // 1000 - 1)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone not in (None, "UTC"):
        # Python shows it in that zone, where it must still be within the years 1 to 9999.
        return low + _MICROSECONDS_PER_DAY, high - _MICROSECONDS_PER_DAY
    return low, high


def _to_physical_time(value: object, dtype: pl.Date | pl.Datetime) -> int | None:
    """Convert ISO 8601 text to the column's physical integer; None if it is not a time or out of the column's range."""
    nanoseconds = parse_iso8601_ns(value)
    low, high = _compute_time_bounds(dtype)
    if nanoseconds is None or not low <= nanoseconds // NS_PER_UNIT["us"] <= high:
        return None
    return nanoseconds // (NS_PER_DAY if isinstance(dtype, pl.Date) else NS_PER_UNIT[dtype.time_unit])


def _compute_integer_bounds(dtype: Any) -> tuple[int, int]:  # noqa: ANN401 - as above
    low, high = pl.select(low=dtype.min(), high=dtype.max()).row(0)
    return int(low), int(high)


def _to_decimal(value: object, dtype: pl.Decimal) -> Decimal | None:
    """Round a number, or the text of a decimal, to the column's scale; None for others, or with too many digits."""
    if not (is_number(value) or (isinstance(value, str) and _DECIMAL_PATTERN.fullmatch(value))):
        return None
    decimal = Decimal(str(value.item() if isinstance(value, np.generic) else value))
    try:
        rounded = decimal.quantize(Decimal(1).scaleb(-dtype.scale), context=_DECIMAL_CONTEXT)
    except InvalidOperation:
        return None
    return rounded if abs(rounded) < Decimal(10) ** (dtype.precision - dtype.scale) else None


def build_column(values: Sequence[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
    """Build a column of a type from values that its validator accepted.

    Raises:
        pl.exceptions.PolarsError: the type does not take an accepted value, such as one category more than fit into it.
    """
    if isinstance(dtype, (pl.List, pl.Array)):
        return _build_list_column(values, dtype)
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        physical = pl.Int32 if isinstance(dtype, pl.Date) else pl.Int64
        return pl.Series([_to_physical_time(value, dtype) for value in values], dtype=physical).cast(dtype)
    if isinstance(dtype, pl.Decimal):
        return pl.Series([_to_decimal(value, dtype) for value in values], dtype=dtype)
    if dtype.is_integer():
        return pl.Series([None if value is None else int(value) for value in values], dtype=dtype)
    if dtype.is_float():
        floats = [None if value is None else float(value) for value in values]
        return pl.Series(floats, dtype=pl.Float64).cast(dtype)
    if isinstance(dtype, pl.Boolean):
        return pl.Series([None if value is None else bool(value) for value in values], dtype=dtype)
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.Series(values, dtype=pl.String).cast(dtype)
    return pl.Series(values, dtype=dtype)


def _build_list_column(values: Sequence[Any], dtype: pl.List | pl.Array) -> pl.Series:
    """Build one column of all elements, then split it into lists: list by list, Polars takes ten times as long."""
    rows = np.repeat(np.arange(len(values)), [1 + len(value or ()) for value in values])
    # Each list starts with a None, which is cut off below, so that empty lists form a group too.
    elements = [element for value in values for element in (None, *(value or ()))]
    flat = build_column(elements, dtype.inner)
    grouped = pl.DataFrame({"row": rows, "element": flat}).group_by("row", maintain_order=True).agg("element")
    lists = grouped["element"].list.slice(1)
    is_present = pl.Series([value is not None for value in values], dtype=pl.Boolean)
    return lists.zip_with(is_present, pl.repeat(None, len(values), dtype=lists.dtype, eager=True)).cast(dtype)


def to_json_value(value: Any, dtype: Any) -> Any:  # noqa: ANN401 - a cell, and as above
    """Convert a cell of a column to the JSON value that an upsert would give.

    Raises:
        ValueError: the column's type or the value has no JSON form.
    """
    if value is None:
        return None
    if isinstance(dtype, (pl.List, pl.Array)):
        elements = [to_json_value(element, dtype.inner) for element in value]
        if None in elements:  # an upsert takes no such lists, and without these elements it would be another list
            raise ValueError("a list with missing elements cannot be written as JSON")
        return elements
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return value.isoformat()
    if isinstance(dtype, pl.Decimal):
        number = int(value) if value == value.to_integral_value(context=_DECIMAL_CONTEXT) else float(value)
        return number if _to_decimal(number, dtype) == value else str(value)  # a float holds 15 digits
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("an infinite number cannot be written as JSON")
    if isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"a column of type {dtype} cannot be written as JSON")
