"""`where`: conditions on attributes, checked against the attributes' types and made into a mask over the items."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.errors import QueryError

_ORDER = ("gt", "gte", "lt", "lte")
_SCALAR = ("eq", "ne", "in", "not_in", *_ORDER)
_FLAG = ("eq", "ne", "in", "not_in")
_TAGS = ("contains_any", "contains_all", "contains_none")
_WITH_LIST = ("in", "not_in", *_TAGS)


def mask_of(where: Sequence[Mapping[str, object]], attributes: pl.DataFrame) -> NDArray[np.bool_]:
    """[N] which items satisfy all conditions. Null satisfies none, not even `ne`.

    Raises:
        QueryError: a condition names no attribute, or an operation or value that does not go with it; `field`
            is such as `where[0].op`.
    """
    conditions = [_condition(f"where[{place}]", one, attributes) for place, one in enumerate(where)]
    return attributes.select(pl.all_horizontal(conditions).fill_null(value=False).alias("pass"))["pass"].to_numpy()


def _condition(place: str, condition: Mapping[str, object], attributes: pl.DataFrame) -> pl.Expr:
    if set(condition) != {"field", "op", "value"}:
        raise QueryError(f"{place}: expected the keys field, op and value, got {sorted(condition)}", field=place)
    name, op, value = condition["field"], condition["op"], condition["value"]
    if not isinstance(name, str) or name not in attributes.columns:
        raise QueryError(f"{place}.field: expected one of {attributes.columns}, got {name!r}", field=f"{place}.field")
    dtype = attributes.schema[name]
    ops = _TAGS if isinstance(dtype, pl.List) else _FLAG if dtype == pl.Boolean else _SCALAR
    if op not in ops:
        raise QueryError(f"{place}.op: {name!r} takes one of {list(ops)}, got {op!r}", field=f"{place}.op")
    _check_value(f"{place}.value", str(op), value, dtype)
    return _expression(pl.col(name), str(op), value)


def _check_value(place: str, op: str, value: object, dtype: pl.DataType) -> None:
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    if op in _WITH_LIST:
        if not isinstance(value, (list, tuple)):
            raise QueryError(f"{place}: {op} takes a list, got {value!r:.80}", field=place)
        for one in value:
            _check_scalar(place, one, inner)
    else:
        _check_scalar(place, value, inner)


def _check_scalar(place: str, value: object, dtype: Any) -> None:  # noqa: ANN401 - polars types its inner types loosely
    if dtype == pl.Boolean:
        ok, expected = isinstance(value, bool), "true or false"
    elif dtype == pl.String:
        ok, expected = isinstance(value, str), "a string"
    else:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        ok, expected = number and math.isfinite(value), "a finite number"  # type: ignore[arg-type]
    if not ok:
        raise QueryError(f"{place}: expected {expected}, got {value!r:.80}", field=place)


def _expression(column: pl.Expr, op: str, value: Any) -> pl.Expr:  # noqa: ANN401 - checked above
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
            return column.is_in(list(value))
        case "not_in":
            return ~column.is_in(list(value)) & column.is_not_null()
        case "contains_all":
            return pl.all_horizontal([pl.lit(value=True), *(column.list.contains(one) for one in value)]) & (
                column.is_not_null()
            )
    found = pl.any_horizontal([pl.lit(value=False), *(column.list.contains(one) for one in value)])
    return (found if op == "contains_any" else ~found) & column.is_not_null()
