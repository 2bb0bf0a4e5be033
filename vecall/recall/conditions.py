"""One condition of `where`: validated against its attribute's type, then evaluated on any slice of that column.

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
from vecall.data.request_features import is_number, is_text, to_plain_list
from vecall.data.timestamps import NS_PER_DAY, NS_PER_UNIT, parse_iso8601_ns
from vecall.errors import QueryError

ORDER_OPS = ("gt", "gte", "lt", "lte")
BOOLEAN_OPS = ("eq", "ne", "in", "not_in")
SCALAR_OPS = (*BOOLEAN_OPS, *ORDER_OPS)
TAG_OPS = ("contains_any", "contains_all", "contains_none")
LIST_VALUE_OPS = ("in", "not_in", *TAG_OPS)  # operations whose value is a list
FILTER_OPS = (*SCALAR_OPS, *TAG_OPS)
_CONDITION_KEYS = ("field", "op", "value")

Predicate = Callable[[pl.Series], pl.Series]  # [n] cells -> [n] Boolean; null counts as false


@dataclass(frozen=True)
class ParsedCondition:
    """A validated condition.

    Attributes:
        field: Name of the attribute.
        predicate: Maps cells of the attribute to whether they satisfy the condition. Null satisfies nothing, not
            even `ne`; NaN is treated as null.
    """

    field: str
    predicate: Predicate

    def evaluate(self, attributes: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return [n] whether each row of `attributes` satisfies the condition."""
        return self.predicate(get_unnamed_column(attributes, self.field)).fill_null(value=False).to_numpy()


def parse_condition(location: str, condition: Mapping[str, object], schema: pl.Schema) -> ParsedCondition:
    """Validate a condition.

    Args:
        location: Path of the condition in the request, such as `where[0]`.
        condition: `{"field", "op", "value"}`.
        schema: Types of the attributes.

    Raises:
        QueryError: The attribute does not exist, or the operation or value does not fit its type; `field` is the
            path of the part to blame.
    """
    for key in (*_CONDITION_KEYS, *condition):
        if key not in condition or key not in _CONDITION_KEYS:
            problem = "is missing" if key in _CONDITION_KEYS else "unknown key"
            text = f"{location}.{key}: {problem}; expected the keys field, op and value, got {list(condition)}"
            raise QueryError(text, field=f"{location}.{key}")
    attribute, op, value = condition["field"], condition["op"], condition["value"]
    if not isinstance(attribute, str) or attribute not in schema:
        raise QueryError(
            f"{location}.field: expected one of {list(schema)}, got {attribute!r:.80}", field=f"{location}.field"
        )
    dtype: Any = schema[attribute]
    is_list = isinstance(dtype, (pl.List, pl.Array))
    comparator = _select_comparator(dtype.inner if is_list else dtype)
    if comparator is None:
        raise QueryError(
            f"{location}.field: expected an attribute of numbers, text, booleans, times or lists of these; "
            f"{attribute!r} is {dtype}",
            field=f"{location}.field",
        )
    ops = _select_ops(comparator, is_list=is_list)
    if not isinstance(op, str) or op not in ops:
        raise QueryError(
            f"{location}.op: expected one of {list(ops)} for {attribute!r}, got {op!r:.80}", field=f"{location}.op"
        )
    return ParsedCondition(attribute, _build_predicate(f"{location}.value", op, value, comparator, attribute))


def get_supported_ops(dtype: Any) -> tuple[str, ...]:  # noqa: ANN401 - polars types its inner types loosely
    """Return the operations that a column type supports; none if filters do not support it."""
    is_list = isinstance(dtype, (pl.List, pl.Array))
    comparator = _select_comparator(dtype.inner if is_list else dtype)
    return () if comparator is None else _select_ops(comparator, is_list=is_list)


def _select_ops(comparator: "_Comparator", *, is_list: bool) -> tuple[str, ...]:
    return TAG_OPS if is_list else BOOLEAN_OPS if isinstance(comparator, _BooleanComparator) else SCALAR_OPS


def _build_predicate(location: str, op: str, value: object, comparator: "_Comparator", attribute: str) -> Predicate:
    if op not in LIST_VALUE_OPS:
        return partial(
            _evaluate_comparison, op=op, value=comparator.parse(location, value, attribute), comparator=comparator
        )
    value = to_plain_list(value)
    if not isinstance(value, (list, tuple)):
        raise QueryError(f"{location}: expected a list for {op}, got {value!r:.80}", field=location)
    values = [comparator.parse(location, element, attribute) for element in value]
    if op in TAG_OPS:
        return partial(_evaluate_tags, op=op, values=values, comparator=comparator)
    return partial(_evaluate_membership, values=values, comparator=comparator, is_negated=op == "not_in")


def _evaluate_comparison(cells: pl.Series, *, op: str, value: Any, comparator: "_Comparator") -> pl.Series:  # noqa: ANN401 - parsed
    return comparator.compare(comparator.to_comparable(cells), op, value)


def _evaluate_membership(
    cells: pl.Series, *, values: Collection[Any], comparator: "_Comparator", is_negated: bool
) -> pl.Series:
    comparable = comparator.to_comparable(cells)
    is_member = comparable.is_in(comparator.to_representable(values, comparable.dtype).implode())
    return ~is_member if is_negated else is_member


def _evaluate_tags(cells: pl.Series, *, op: str, values: Collection[Any], comparator: "_Comparator") -> pl.Series:
    """Evaluate a tag operation on the elements of all lists at once.

    The cost is that of the elements plus the values, not of their product.

    Args:
        cells: [n] lists.
        op: One of `TAG_OPS`.
        values: Parsed values.
        comparator: Of the lists' element type.

    Returns:
        [n] Boolean.
    """
    if isinstance(cells.dtype, pl.Array):
        cells = cells.cast(pl.List(cells.dtype.inner))
    lengths = cells.list.len().fill_null(0)
    is_filled = lengths > 0
    elements = comparator.to_comparable(cells.filter(is_filled).explode())  # [n] lists -> [elements]
    owners = np.repeat(is_filled.arg_true().to_numpy(), lengths.filter(is_filled).to_numpy())  # [elements] cell index
    members = comparator.to_representable(values, elements.dtype).unique()
    is_hit = elements.is_in(members.implode()).fill_null(value=False)
    hit_owners = owners[is_hit.to_numpy()]
    matches = np.zeros(len(cells), dtype=np.bool_)
    if op == "contains_all":
        required = len(set(values))  # counts values that no element can equal, so that these never match
        pairs = pl.DataFrame({"owner": hit_owners, "element": elements.filter(is_hit)}).unique()
        counts = np.bincount(pairs["owner"].to_numpy(), minlength=len(cells))
        matches[:] = counts == required
    else:
        matches[hit_owners] = True
    return pl.Series(~matches if op == "contains_none" else matches) & cells.is_not_null()


class _Comparator:
    """Parsing of request values for one type of column, and their comparison with its cells."""

    expected = ""

    def try_parse(self, value: object) -> Any:  # noqa: ANN401 - of the column's type
        """Return the parsed value, or None if it is not of the column's type."""
        raise NotImplementedError

    def parse(self, location: str, value: object, attribute: str) -> Any:  # noqa: ANN401 - as above
        """Return the parsed value; raise a QueryError at `location` if it is not of the column's type."""
        parsed = self.try_parse(value)
        if parsed is None:
            hint = self.suggest_fix(value, attribute)
            raise QueryError(f"{location}: expected {self.expected}, got {value!r:.80}{hint}", field=location)
        return parsed

    def suggest_fix(self, value: object, attribute: str) -> str:
        """Return what to do about a value that cannot be parsed, to append to the error message."""
        del value, attribute
        return ""

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        """Return the cells in the type in which they are compared."""
        return cells

    def compare(self, cells: pl.Series, op: str, value: Any) -> pl.Series:  # noqa: ANN401 - as above
        """Return [n] Boolean `cells op value`, for comparable cells and one of the operations eq, ne, gt, ... lte."""
        return _compare_cells(cells, op, value)

    def to_representable(self, values: Collection[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        """Return those of the parsed values that a cell of type `dtype` can equal."""
        return pl.Series(list(values), dtype=dtype)


def _compare_cells(cells: pl.Series, op: str, value: Any) -> pl.Series:  # noqa: ANN401 - a literal of the cells' type
    cell, literal = pl.col("cell"), pl.lit(value, dtype=cells.dtype)
    comparison = {"eq": cell.eq, "ne": cell.ne, "gt": cell.gt, "gte": cell.ge, "lt": cell.lt, "lte": cell.le}[op]
    return cells.rename("cell").to_frame().select(comparison(literal)).to_series()


def _fill_non_null(cells: pl.Series, *, value: bool) -> pl.Series:
    """Return `value` for every cell that is not null, and false for null."""
    return cells.is_not_null() if value else cells.is_null() & cells.is_not_null()


class _TextComparator(_Comparator):
    expected = "a string"

    def try_parse(self, value: object) -> str | None:
        return value if isinstance(value, str) and is_text(value) else None

    def suggest_fix(self, value: object, attribute: str) -> str:
        if not is_number(value):
            return ""
        return (
            f'; this attribute is text: publish it as a number (attributes = {{ {attribute} = "integer" }} in '
            "schema.items, or a column of numbers for publish_vectors) to compare it as one"
        )

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.cast(pl.String)


class _BooleanComparator(_Comparator):
    expected = "true or false"

    def try_parse(self, value: object) -> bool | None:
        return bool(value) if isinstance(value, (bool, np.bool_)) else None


class _IntegerComparator(_Comparator):
    """Comparison for columns that are stored as integers, such as decimals and times.

    Args:
        scale: Stored integer that stands for 1: 100 for a decimal of two digits.
    """

    expected = "a finite number"

    def __init__(self, scale: Fraction) -> None:
        self._scale = scale

    def try_parse(self, value: object) -> Fraction | None:
        if not is_number(value):
            return None
        number = value.item() if isinstance(value, np.generic) else value
        # In a column of decimals a float means its decimal spelling: 0.1 is a tenth, not the nearest binary fraction.
        return (Fraction(str(number)) if self._scale != 1 else Fraction(number)) * self._scale  # type: ignore[arg-type]

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.to_physical()

    def compare(self, cells: pl.Series, op: str, value: Fraction) -> pl.Series:
        low, high = _get_integer_bounds(cells.dtype)
        if op in ("eq", "ne"):
            is_representable = value.denominator == 1 and low <= value <= high
            return (
                _compare_cells(cells, op, int(value)) if is_representable else _fill_non_null(cells, value=op == "ne")
            )
        is_lower_bound = op in ("gt", "gte")
        # Among integers x > 1.5 is x >= 2, and x < 1.5 is x <= 1.
        bound = math.floor(value) + 1 if op == "gt" else math.ceil(value) if op == "gte" else math.floor(value)
        bound = math.ceil(value) - 1 if op == "lt" else bound
        if bound < low or bound > high:
            return _fill_non_null(cells, value=(bound < low) == is_lower_bound)
        return _compare_cells(cells, "gte" if is_lower_bound else "lte", bound)

    def to_representable(self, values: Collection[Fraction], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        low, high = _get_integer_bounds(dtype)
        integers = [int(value) for value in values if value.denominator == 1 and low <= value <= high]
        return pl.Series(integers, dtype=dtype)


class _TimestampComparator(_IntegerComparator):
    """Comparison for dates and datetimes; `scale` is stored units per nanosecond."""

    expected = "an ISO 8601 time, such as 2018-06-01"

    def try_parse(self, value: object) -> Fraction | None:
        nanoseconds = parse_iso8601_ns(value)
        return None if nanoseconds is None else nanoseconds * self._scale


class _FloatComparator(_Comparator):
    """Comparison for float columns.

    Args:
        dtype: NumPy type of the column.
    """

    expected = "a finite number"

    def __init__(self, dtype: type[np.floating[Any]]) -> None:
        self._dtype = dtype

    def try_parse(self, value: object) -> int | float | None:
        if not is_number(value):
            return None
        number: int | float = value.item() if isinstance(value, np.generic) else value  # type: ignore[assignment]
        if self._dtype == np.float64:
            return number
        with np.errstate(over="ignore"):
            return float(self._dtype(number))

    def to_comparable(self, cells: pl.Series) -> pl.Series:
        return cells.fill_nan(None)

    def compare(self, cells: pl.Series, op: str, value: float) -> pl.Series:
        nearest = float(value)
        if not math.isfinite(nearest) or Fraction(nearest) == Fraction(value):
            return _compare_cells(cells, op, nearest)
        # From here on `value` is an integer that no float equals, and no float lies between it and `nearest`.
        if op in ("eq", "ne"):
            return _fill_non_null(cells, value=op == "ne")
        is_below = Fraction(nearest) < value
        if op in ("gt", "gte"):
            return _compare_cells(cells, "gt" if is_below else "gte", nearest)
        return _compare_cells(cells, "lte" if is_below else "lt", nearest)

    def to_representable(self, values: Collection[float], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
        return pl.Series([float(value) for value in values if float(value) == value], dtype=pl.Float64).cast(dtype)


def _select_comparator(dtype: Any) -> _Comparator | None:  # noqa: ANN401 - polars types its inner types loosely
    """Return the comparator of a column type; None if its cells cannot be compared."""
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
    """Return the smallest and the largest value of an integer type."""
    low, high = pl.select(low=dtype.min(), high=dtype.max()).row(0)
    return int(low), int(high)
