"""`where`: conditions on attributes, checked against the attributes' types and made into a mask over the items."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.columns import MOMENTS
from vecall.data.fields import is_number, is_text
from vecall.errors import QueryError

_ORDER = ("gt", "gte", "lt", "lte")
_SCALAR = ("eq", "ne", "in", "not_in", *_ORDER)
_FLAG = ("eq", "ne", "in", "not_in")
_TAGS = ("contains_any", "contains_all", "contains_none")
_WITH_LIST = ("in", "not_in", *_TAGS)


def mask_of(where: Sequence[Mapping[str, object]], attributes: pl.DataFrame) -> NDArray[np.bool_]:
    """[N] which items satisfy all conditions. Null satisfies none, not even `ne`; NaN is null.

    Dates and datetimes are compared with ISO 8601 text; without a zone it is UTC.

    Raises:
        QueryError: a condition names no attribute, or an operation or value that does not go with it; `field`
            is such as `where[0].op`.
    """
    conditions = [_condition(f"where[{place}]", one, attributes) for place, one in enumerate(where)]
    return attributes.select(pl.all_horizontal(conditions).fill_null(value=False).alias("pass"))["pass"].to_numpy()


def _condition(place: str, condition: Mapping[str, object], attributes: pl.DataFrame) -> pl.Expr:
    if set(condition) != {"field", "op", "value"}:
        raise QueryError(f"{place}: expected the keys field, op and value, got {list(condition)}", field=place)
    name, op, value = condition["field"], condition["op"], condition["value"]
    if not isinstance(name, str) or name not in attributes.columns:
        raise QueryError(f"{place}.field: expected one of {attributes.columns}, got {name!r}", field=f"{place}.field")
    dtype = _compared_as(attributes.schema[name])
    if dtype is None:
        message = f"{name!r} holds {attributes.schema[name]}; expected numbers, text, flags, times or lists of them"
        raise QueryError(f"{place}.field: {message}", field=f"{place}.field")
    ops = _TAGS if isinstance(dtype, pl.List) else _FLAG if dtype == pl.Boolean else _SCALAR
    if op not in ops:
        raise QueryError(f"{place}.op: {name!r} takes one of {list(ops)}, got {op!r}", field=f"{place}.op")
    checked = _checked(f"{place}.value", str(op), value, dtype)
    column = pl.col(name) if dtype == attributes.schema[name] else pl.col(name).cast(dtype)
    return _expression(column.fill_nan(None) if dtype.is_float() else column, str(op), checked, dtype)


def _compared_as(dtype: Any) -> pl.DataType | None:  # noqa: ANN401 - polars types its inner types loosely
    """The type that a column is cast to before it is compared; None for one that cannot be."""
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = _compared_as(dtype.inner)
        return None if inner is None or isinstance(inner, pl.List) else pl.List(inner)
    if isinstance(dtype, (pl.Categorical, pl.Enum, pl.Null)):
        return pl.String()
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return MOMENTS
    if isinstance(dtype, pl.Decimal):
        return pl.Float64()
    return dtype if isinstance(dtype, (pl.String, pl.Boolean)) or dtype.is_numeric() else None


def _checked(place: str, op: str, value: object, dtype: pl.DataType) -> Any:  # noqa: ANN401 - a value or a list
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if op not in _WITH_LIST:
        return _scalar(place, value, inner)
    if not isinstance(value, (list, tuple)):
        raise QueryError(f"{place}: {op} takes a list, got {value!r:.80}", field=place)
    return [_scalar(place, one, inner) for one in value]


def _scalar(place: str, value: object, dtype: Any) -> object:  # noqa: ANN401 - as above
    """A value as the column's type has it; an integer beyond 64 bits as a float, which compares all the same."""
    if dtype == MOMENTS:
        moment = _moment(value)
        ok, expected, value = moment is not None, "an ISO 8601 time, such as 2018-06-01", moment or value
    elif dtype == pl.Boolean:
        ok, expected = isinstance(value, bool), "true or false"
    elif dtype == pl.String:
        ok, expected = is_text(value), "a string"
    else:
        ok, expected = is_number(value), "a finite number"
    if not ok:
        raise QueryError(f"{place}: expected {expected}, got {value!r:.80}", field=place)
    return float(value) if isinstance(value, int) and abs(value) >= 2**63 else value


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _expression(column: pl.Expr, op: str, value: Any, dtype: pl.DataType) -> pl.Expr:  # noqa: ANN401 - checked above
    match op:
        case "eq":
            return column.eq(value)
        case "ne":
            return column.ne(value)
        case "gt":
            return column.gt(value)
        case "gte":
            return column.ge(value)
        case "lt":
            return column.lt(value)
        case "lte":
            return column.le(value)
        case "in":
            return column.is_in(_holdable(value, dtype).implode())
        case "not_in":
            return ~column.is_in(_holdable(value, dtype).implode())
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    values = _holdable(value, inner)
    contained = [column.list.contains(pl.lit(one, dtype=inner)) for one in values]
    if op == "contains_all":
        return pl.all_horizontal([pl.lit(len(values) == len(value)), *contained, column.is_not_null()])
    found = pl.any_horizontal([pl.lit(value=False), *contained])
    return (found if op == "contains_any" else ~found) & column.is_not_null()


def _holdable(values: Sequence[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
    """Those of the values that a column of this type can hold; it equals none of the others."""
    if not dtype.is_integer():
        return pl.Series(list(values), dtype=dtype, strict=False)
    whole = pl.Series([int(one) for one in values if one == int(one) and abs(one) < 2**63], dtype=pl.Int64)
    return whole.cast(dtype, strict=False).drop_nulls()
