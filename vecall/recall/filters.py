"""`where`: conditions on attributes, checked against the attributes' types and made into masks over the items."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import Any
from weakref import ref

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.columns import MOMENTS
from vecall.data.fields import is_number, is_text
from vecall.errors import QueryError
from vecall.index.bitmaps import Bitmap
from vecall.live.view import Slots, View
from vecall.recall.scans import NO_LIMIT, ScanLimit
from vecall.release.bundle import Release

_MOST_BYTES = 2**28  # of filters and their answers that are kept
_BYTES_EACH = 1_024  # that one takes beside its text and its arrays

_ORDER = ("gt", "gte", "lt", "lte")
_SCALAR = ("eq", "ne", "in", "not_in", *_ORDER)
_FLAG = ("eq", "ne", "in", "not_in")
_TAGS = ("contains_any", "contains_all", "contains_none")
_NOTHING = np.empty(0, dtype=np.bool_)
_WITH_LIST = ("in", "not_in", *_TAGS)


@dataclass(frozen=True)
class Passing:
    """What passes a filter.

    Attributes:
        base: rows of the base, deleted ones among them.
        delta: [length] slots of the delta likewise.
    """

    base: Bitmap
    delta: NDArray[np.bool_]


@dataclass(frozen=True)
class _Kept:
    """A filter's answer, and what it is of: slots only ever grow, or are others. It keeps no release in memory."""

    passing: Passing
    release: ref[Release]
    slots: ref[Slots]
    nbytes: int


class Filters:
    """What passes which filter: evaluated once for a release's items, and for each slot of the delta.

    Safe to call from several threads: a filter may then be evaluated twice, and the last answer is kept.

    Args:
        scans: says where many items are looked at.
    """

    def __init__(self, scans: ScanLimit = NO_LIMIT) -> None:
        self._scans = scans
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one asked for last stands last
        self._nbytes = 0
        self._keeping = Lock()

    def passing(self, where: Sequence[Mapping[str, object]], view: View) -> Passing | None:
        """What of a view passes all conditions; None where there are none.

        Raises:
            QueryError: see `mask_of`.
        """
        if not where:
            return None
        key = repr([sorted(condition.items(), key=repr) for condition in where])
        base, mask = self._known(key, view) or (self._of_base(where, view.release), _NOTHING)
        if len(mask) < len(view.delta):
            mask = np.concatenate([mask, mask_of(where, view.delta.attributes[len(mask) :])])
        self._keep(key, view, Passing(base, mask))
        return Passing(base, mask[: len(view.delta)])

    def _of_base(self, where: Sequence[Mapping[str, object]], release: Release) -> Bitmap:
        with self._scans.aside(release.index.size):
            return Bitmap.of(mask_of(where, release.attributes))

    def _known(self, key: str, view: View) -> tuple[Bitmap, NDArray[np.bool_]] | None:
        kept = self._kept.get(key)
        if kept is None or kept.release() is not view.release:
            return None
        return kept.passing.base, kept.passing.delta if kept.slots() is view.delta.slots else _NOTHING

    def _keep(self, key: str, view: View, passing: Passing) -> None:
        nbytes = _BYTES_EACH + len(key) + passing.base.bits.nbytes + passing.delta.nbytes
        kept = _Kept(passing, ref(view.release), ref(view.delta.slots), nbytes)
        with self._keeping:
            if (before := self._kept.pop(key, None)) is not None:
                self._nbytes -= before.nbytes
            self._kept[key] = kept
            self._nbytes += nbytes
            while self._nbytes > _MOST_BYTES:
                self._nbytes -= self._kept.popitem(last=False)[1].nbytes


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
