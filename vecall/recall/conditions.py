"""One condition of `where`: checked against its attribute's type, then tested on any part of that column.

Numbers are compared exactly, whatever their types: integers near 2^53 and 2^63 stay integers, decimals and times are
compared as the integers that they are stored as. A float32 column is compared in its own precision, so 0.7 finds 0.7.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl

from vecall.data.casting import to_numpy_float_type
from vecall.data.frames import get_unnamed_column
from vecall.data.request_features import is_number, is_text
from vecall.data.timestamps import NS_PER_DAY, NS_PER_UNIT, parse_iso8601_ns
from vecall.errors import QueryError

ORDER_OPS = ("gt", "gte", "lt", "lte")
BOOLEAN_OPS = ("eq", "ne", "in", "not_in")
SCALAR_OPS = (*BOOLEAN_OPS, *ORDER_OPS)
TAG_OPS = ("contains_any", "contains_all", "contains_none")
LIST_VALUE_OPS = ("in", "not_in", *TAG_OPS)  # whose value is a list
FILTER_OPS = (*SCALAR_OPS, *TAG_OPS)

Predicate = Callable[[pl.Series], pl.Series]  # [n] cells -> [n] Boolean; null is false


@dataclass(frozen=True)
class ParsedCondition:
    """A checked condition.

    Attributes:
        field: name of the attribute.
        predicate: which of some of its cells satisfy it. Null satisfies nothing, not even `ne`; NaN is null.
    """

    field: str
    predicate: Predicate

    def evaluate(self, attributes: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[n] which rows satisfy it."""
        return self.predicate(get_unnamed_column(attributes, self.field)).fill_null(value=False).to_numpy()


def parse_condition(location: str, condition: Mapping[str, object], schema: pl.Schema) -> ParsedCondition:
    """Check a condition.

    Args:
        location: of it in the request, such as `where[0]`.
        condition: `{"field", "op", "value"}`.
        schema: of the attributes.

    Raises:
        QueryError: it names no attribute, or an operation or value that does not go with it.
    """
    if set(condition) != {"field", "op", "value"}:
        raise QueryError(f"{location}: expected the keys field, op and value, got {list(condition)}", field=location)
    name, op, value = condition["field"], condition["op"], condition["value"]
    if not isinstance(name, str) or name not in schema:
        raise QueryError(
            f"{location}.field: expected one of {list(schema)}, got {name!r:.80}", field=f"{location}.field"
        )
    dtype: Any = schema[name]
    is_list = isinstance(dtype, (pl.List, pl.Array))
    kind = _select_comparator(dtype.inner if is_list else dtype)
    if kind is None:
        raise QueryError(
            f"{location}.field: {name!r} holds {dtype}; expected numbers, text, flags, times or lists of them",
            field=f"{location}.field",
        )
    ops = TAG_OPS if is_list else BOOLEAN_OPS if isinstance(kind, _BooleanComparator) else SCALAR_OPS
    if not isinstance(op, str) or op not in ops:
        raise QueryError(f"{location}.op: {name!r} takes one of {list(ops)}, got {op!r:.80}", field=f"{location}.op")
    return ParsedCondition(name, _build_predicate(f"{location}.value", op, value, kind, name))


def _build_predicate(location: str, op: str, value: object, comparator: "_Comparator", attribute: str) -> Predicate:
    if op not in LIST_VALUE_OPS:
        return partial(
            _evaluate_comparison, op=op, value=comparator.parse(location, value, attribute), comparator=comparator
        )
    if not isinstance(value, (list, tuple)):
        raise QueryError(f"{location}: {op} takes a list, got {value!r:.80}", field=location)
    values = [comparator.parse(location, one, attribute) for one in value]
    if op in TAG_OPS:
        return partial(_evaluate_tags, op=op, values=values, comparator=comparator)
    return partial(_evaluate_membership, values=values, comparator=comparator, is_negated=op == "not_in")


def _evaluate_comparison(cells: pl.Series, *, op: str, value: Any, comparator: "_Comparator") -> pl.Series:  # noqa: ANN401 - parsed
    return comparator.compare(comparator.to_comparable(cells), op, value)


def _evaluate_membership(
    cells: pl.Series, *, values: Collection[Any], comparator: "_Comparator", is_negated: bool
) -> pl.Series:
    stored = comparator.to_comparable(cells)
    found = stored.is_in(comparator.to_representable(values, stored.dtype).implode())
    return ~found if is_negated else found


def _evaluate_tags(cells: pl.Series, *, op: str, values: Collection[Any], comparator: "_Comparator") -> pl.Series:
    """All lists' elements at once, so that the cost is that of the elements and values, not of their product."""
    if isinstance(cells.dtype, pl.Array):
        cells = cells.cast(pl.List(cells.dtype.inner))
    lengths = cells.list.len().fill_null(0)
    filled = lengths > 0
    elements = comparator.to_comparable(cells.filter(filled).explode())
    owners = np.repeat(filled.arg_true().to_numpy(), lengths.filter(filled).to_numpy())
    members = comparator.to_representable(values, elements.dtype).unique()
    hit = elements.is_in(members.implode()).fill_null(value=False)
    found = np.zeros(len(cells), dtype=np.bool_)
    if op == "contains_all":
        wanted = len(set(values))  # one that no element can equal is never found
        pairs = pl.DataFrame({"owner": owners[hit.to_numpy()], "element": elements.filter(hit)}).unique()
        counts = np.bincount(pairs["owner"].to_numpy(), minlength=len(cells))
        found[:] = counts == wanted
    else:
        found[owners[hit.to_numpy()]] = True
    told = pl.Series(~found if op == "contains_none" else found)
    return told & cells.is_not_null()


class _Comparator:
    """How values of one type of column are read from a request, and compared with its cells."""

    expected = ""

    def try_parse(self, value: object) -> Any:  # noqa: ANN401 - of this kind; None: it is not
        raise NotImplementedError

    def parse(self, location: str, value: object, attribute: str) -> Any:  # noqa: ANN401 - as above
        parsed = self.try_parse(value)
        if parsed is None:
            hint = self.suggest_fix(value, attribute)
            raise QueryError(f"{location}: expected {self.expected}, got {value!r:.80}{hint}", field=location)
        return parsed

    def suggest_fix(self, value: object, attribute: str) -> str:
        """What to do about a value that is none of these."""
        del value, attribute
        return ""

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        """The cells as they are compared."""
        return cells

    def compare(self, cells: pl.Series, op: str, value: Any) -> pl.Series:  # noqa: ANN401 - as above
        return _compare_cells(cells, op, value)

    def to_representable(self, values: Collection[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        """Those of the values that a cell can equal."""
        return pl.Series(list(values), dtype=dtype)


def _compare_cells(cells: pl.Series, op: str, value: Any) -> pl.Series:  # noqa: ANN401 - a literal of the cells' type
    cell, literal = pl.col("cell"), pl.lit(value, dtype=cells.dtype)
    test = {"eq": cell.eq, "ne": cell.ne, "gt": cell.gt, "gte": cell.ge, "lt": cell.lt, "lte": cell.le}[op](literal)
    return cells.rename("cell").to_frame().select(test).to_series()


def _fill_non_null(cells: pl.Series, *, value: bool) -> pl.Series:
    """The same for all cells that are not null."""
    return cells.is_not_null() if value else cells.is_null() & cells.is_not_null()


class _TextComparator(_Comparator):
    expected = "a string"

    def try_parse(self, value: object) -> str | None:
        return value if isinstance(value, str) and is_text(value) else None

    def suggest_fix(self, value: object, attribute: str) -> str:
        if not is_number(value):
            return ""
        return (
            f'; this attribute is text: attributes = {{ {attribute} = "integer" }} in schema.items makes numbers of it'
        )

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.cast(pl.String)


class _BooleanComparator(_Comparator):
    expected = "true or false"

    def try_parse(self, value: object) -> bool | None:
        return bool(value) if isinstance(value, (bool, np.bool_)) else None


class _IntegerComparator(_Comparator):
    """Columns that are stored as integers; `scale` of them are 1."""

    expected = "a finite number"

    def __init__(self, scale: Fraction) -> None:
        self._scale = scale

    def try_parse(self, value: object) -> Fraction | None:
        if not is_number(value):
            return None
        plain = value.item() if isinstance(value, np.generic) else value
        # A float is meant as it is written: 0.1 is a tenth in a column of decimals.
        return (Fraction(str(plain)) if self._scale != 1 else Fraction(plain)) * self._scale  # type: ignore[arg-type]

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.to_physical()

    def compare(self, cells: pl.Series, op: str, value: Fraction) -> pl.Series:
        low, high = _get_integer_bounds(cells.dtype)
        whole = value.denominator == 1
        if op in ("eq", "ne"):
            possible = whole and low <= value <= high
            return _compare_cells(cells, op, int(value)) if possible else _fill_non_null(cells, value=op == "ne")
        above = op in ("gt", "gte")
        # col > 1.5 is col >= 2, and col < 1.5 is col <= 1.
        edge = math.floor(value) + 1 if op == "gt" else math.ceil(value) if op == "gte" else math.floor(value)
        edge = math.ceil(value) - 1 if op == "lt" else edge
        if edge < low or edge > high:
            return _fill_non_null(cells, value=(edge < low) == above)
        return _compare_cells(cells, "gte" if above else "lte", edge)

    def to_representable(self, values: Collection[Fraction], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        low, high = _get_integer_bounds(dtype)
        return pl.Series([int(one) for one in values if one.denominator == 1 and low <= one <= high], dtype=dtype)


class _TimestampComparator(_IntegerComparator):
    expected = "an ISO 8601 time, such as 2018-06-01"

    def try_parse(self, value: object) -> Fraction | None:
        nanoseconds = parse_iso8601_ns(value)
        return None if nanoseconds is None else nanoseconds * self._scale


class _FloatComparator(_Comparator):
    """Float columns; `dtype` is NumPy's."""

    expected = "a finite number"

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self._dtype = dtype

    def try_parse(self, value: object) -> int | float | None:
        if not is_number(value):
            return None
        plain: int | float = value.item() if isinstance(value, np.generic) else value  # type: ignore[assignment]
        if self._dtype == np.float64:
            return plain
        with np.errstate(over="ignore"):
            return float(self._dtype(plain))

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.fill_nan(None)

    def compare(self, cells: pl.Series, op: str, value: float) -> pl.Series:
        nearest = float(value)
        if not math.isfinite(nearest) or Fraction(nearest) == Fraction(value):
            return _compare_cells(cells, op, nearest)
        if op in ("eq", "ne"):  # an integer that no float is
            return _fill_non_null(cells, value=op == "ne")
        below = Fraction(nearest) < value  # there is no float between the two
        if op in ("gt", "gte"):
            return _compare_cells(cells, "gt" if below else "gte", nearest)
        return _compare_cells(cells, "lte" if below else "lt", nearest)

    def to_representable(self, values: Collection[float], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        return pl.Series([float(one) for one in values if float(one) == one], dtype=pl.Float64).cast(dtype)


def _select_comparator(dtype: Any) -> _Comparator | None:  # noqa: ANN401 - polars types its inner types loosely
    """How cells of a type are compared; None where they cannot be."""
    match dtype:
        case pl.String() | pl.Categorical() | pl.Enum() | pl.Null():
            return _TextComparator()
        case pl.Boolean():
            return _BooleanComparator()
        case pl.Date():
            return _TimestampComparator(Fraction(1, NS_PER_DAY))
        case pl.Datetime():
            return _TimestampComparator(Fraction(1, NS_PER_UNIT[dtype.time_unit]))
        case pl.Decimal():
            return _IntegerComparator(Fraction(10**dtype.scale))
    if dtype.is_integer():
        return _IntegerComparator(Fraction(1))
    if dtype.is_float():
        return _FloatComparator(to_numpy_float_type(dtype))
    return None


@lru_cache
def _get_integer_bounds(dtype: Any) -> tuple[int, int]:  # noqa: ANN401 - as above
    low, high = pl.select(low=dtype.min(), high=dtype.max()).row(0)
    return int(low), int(high)
