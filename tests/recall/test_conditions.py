"""Conditions compare as Python's exact numbers do, near every limit of precision and range of the column types."""

import operator
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.errors import OverloadedError, QueryError
from vecall.recall import filters
from vecall.recall.filters import evaluate_filter

OPS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
EDGES = [0, 2**24, 2**53, 2**62, 2**63, 2**64, 10**18]
WHOLE = st.builds(operator.add, st.sampled_from([*EDGES, *(-edge for edge in EDGES)]), st.integers(-2, 2))
NUMBERS = WHOLE | st.sampled_from([0.5, -0.5, 1.5, 2.0**53, 2.0**63, 9007199254740993.0, 1e300, -1e300, 0.1, 0.7])
BOUNDS = {pl.Int64: (-(2**63), 2**63 - 1), pl.UInt64: (0, 2**64 - 1), pl.Int32: (-(2**31), 2**31 - 1)}


def evaluate(column, op, value):
    return evaluate_filter([{"field": "x", "op": op, "value": value}], pl.DataFrame({"x": column})).tolist()


def evaluate_in_python(cells, op, value, to_exact):
    """The same with Python's exact numbers; `to_exact` converts both cells and values."""
    if "in" in op:
        members = {to_exact(member) for member in value}
        return [cell is not None and (to_exact(cell) in members) == (op == "in") for cell in cells]
    return [cell is not None and OPS[op](to_exact(cell), to_exact(value)) for cell in cells]


def draw_condition(data, values):
    op = data.draw(st.sampled_from([*OPS, "in", "not_in"]))
    return op, data.draw(st.lists(values, max_size=4) if "in" in op else values)


@settings(max_examples=300)
@given(st.sampled_from(sorted(BOUNDS, key=str)), st.lists(st.none() | WHOLE, min_size=1, max_size=6), st.data())
def test_integers_are_compared_exactly(dtype, cells, data):
    low, high = BOUNDS[dtype]
    cells = [None if cell is None else min(max(cell, low), high) for cell in cells]
    op, value = draw_condition(data, NUMBERS)
    assert evaluate(pl.Series(cells, dtype=dtype), op, value) == evaluate_in_python(cells, op, value, Fraction)


@settings(max_examples=300)
@given(st.lists(st.none() | NUMBERS.map(float), min_size=1, max_size=6), st.data())
def test_floats_are_compared_exactly_with_integers(cells, data):
    op, value = draw_condition(data, NUMBERS)
    assert evaluate(pl.Series(cells, dtype=pl.Float64), op, value) == evaluate_in_python(cells, op, value, Fraction)


@settings(max_examples=200)
@given(st.lists(st.none() | st.integers(-300, 300), min_size=1, max_size=6), st.data())
def test_decimals_are_compared_by_their_decimal_spelling(hundredths, data):
    cells = [None if value is None else Decimal(value).scaleb(-2) for value in hundredths]
    op, value = draw_condition(data, st.integers(-4, 4) | st.sampled_from([0.1, 0.01, 1.005, -2.99, 1e300]))
    mask = evaluate(pl.Series(cells, dtype=pl.Decimal(10, 2)), op, value)
    assert mask == evaluate_in_python(cells, op, value, lambda number: Fraction(str(number)))


MOMENTS = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(
    [datetime(2030, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)]
)


@settings(max_examples=200)
@given(
    st.lists(st.none() | MOMENTS, min_size=1, max_size=5),
    st.sampled_from(["ms", "us"]),
    st.integers(-12, 12),
    st.data(),
)
def test_times_are_compared_as_instants_in_every_year_and_time_zone(cells, unit, hours, data):
    cells = [
        None if cell is None else cell.replace(microsecond=cell.microsecond // 1000 * 1000 if unit == "ms" else 0)
        for cell in cells
    ]
    naive_cells = [None if cell is None else cell.replace(tzinfo=None) for cell in cells]
    column = pl.Series(naive_cells, dtype=pl.Datetime(unit))
    present = [cell for cell in cells if cell is not None]
    op, value = draw_condition(data, MOMENTS | st.sampled_from(present) if present else MOMENTS)
    shift = timedelta(hours=hours)

    def format_in_other_zone(moment):
        """The same instant with another offset, unless that would leave the range of years."""
        offset = f"{'+' if hours >= 0 else '-'}{abs(hours):02}:00"
        try:
            return (moment.replace(tzinfo=None) + shift).isoformat() + offset
        except OverflowError:
            return moment.isoformat()

    text = (
        [format_in_other_zone(moment) for moment in value] if isinstance(value, list) else format_in_other_zone(value)
    )
    assert evaluate(column, op, text) == evaluate_in_python(cells, op, value, lambda moment: moment)


@pytest.mark.parametrize(
    ("column", "op", "value", "expected"),
    [
        (pl.Series([0.7, 0.1, 2.5], dtype=pl.Float32), "eq", 0.7, [True, False, False]),
        (pl.Series([0.7, 0.1, 2.5], dtype=pl.Float32), "gte", 0.7, [True, False, True]),
        (pl.Series([0.7, 0.1, 2.5], dtype=pl.Float32), "in", [0.1, 2.5], [False, True, True]),
        (pl.Series([0.7, 0.1, 2.5], dtype=pl.Float32), "lt", 1e300, [True, True, True]),
        (pl.Series([2**70, 1], dtype=pl.Int128), "eq", 2**70, [True, False]),
        (pl.Series([2**70, 1], dtype=pl.Int128), "gt", 2**70 - 1, [True, False]),
        (pl.Series([2**64 - 1, 1], dtype=pl.UInt64), "in", [2**64 - 1, -1], [True, False]),
        (pl.Series([1_000_000_001, 1_000_000_000]).cast(pl.Datetime("ns")), "gt", "1970-01-01T00:00:01", [True, False]),
        (pl.Series([1_000_000_001, 5]).cast(pl.Datetime("ns")), "eq", "1970-01-01T00:00:01.000000001", [True, False]),
        (pl.Series([0, 1]).cast(pl.Int32).cast(pl.Date), "gt", "1970-01-01T12:00", [False, True]),
        (pl.Series([[2**53 + 1], [2**53]]), "contains_any", [2**53 + 1], [True, False]),
        (pl.Series([[2**53 + 1, 1], [2**53, 1]]), "contains_all", [2**53 + 1, 1.0], [True, False]),
        (pl.Series([["a"], ["b"], None], dtype=pl.Array(pl.String, 1)), "contains_none", ["a"], [False, True, False]),
        (pl.Series([["a", "a"], ["a"]]), "contains_all", ["a", "a"], [True, True]),
        (pl.Series([1, 2]), "in", np.array([2, 3], dtype=np.int8), [False, True]),
        (pl.Series(["a", "b"]), "not_in", pl.Series(["a"]), [False, True]),
    ],
)
def test_conditions_give_masks_computed_by_hand(column, op, value, expected):
    assert evaluate(column, op, value) == expected


@pytest.mark.parametrize("name", ["*", "^x$", "^.*$", "", "#", "cell", "literal"])
def test_attribute_names_are_not_patterns(name):
    table = pl.DataFrame({"before": [9, 9], name: [1, 2], "after": [9, 9]})
    assert evaluate_filter([{"field": name, "op": "eq", "value": 2}], table).tolist() == [False, True]


def test_number_for_a_text_attribute_is_refused_with_a_hint():
    with pytest.raises(
        QueryError, match=r"expected a string, got 1999; this attribute is text: .*attributes = \{ x = "
    ):
        evaluate(pl.Series(["1999"]), "gte", 1999)


def test_cost_of_tag_operations_is_not_values_times_rows():
    tags = pl.DataFrame({"x": [[f"t{i % 5000}", f"u{i % 7}"] for i in range(60_000)]})

    def measure_seconds(count, op):
        value = [f"t{i}" for i in range(count)]
        start = time.perf_counter()
        mask = evaluate_filter([{"field": "x", "op": op, "value": value}], tags)
        seconds = time.perf_counter() - start
        assert mask.sum() == {"contains_any": 12 * count, "contains_none": 60_000 - 12 * count, "contains_all": 0}[op]
        return seconds

    for op in ("contains_any", "contains_none", "contains_all"):
        measure_seconds(10, op)
        assert measure_seconds(1_000, op) < 5 * measure_seconds(10, op) + 0.2


def test_cancelled_evaluation_stops_between_conditions(monkeypatch):
    monkeypatch.setattr(filters, "_CHUNK_ROWS", 10)
    checks = []

    def cancel_at_third_check():
        checks.append(None)
        if len(checks) == 3:
            raise OverloadedError("deadline exceeded")

    where = [{"field": "x", "op": "gte", "value": 0}] * 2
    table = pl.DataFrame({"x": np.arange(25)})
    with pytest.raises(OverloadedError):
        evaluate_filter(where, table, check_cancelled=cancel_at_third_check)
    assert evaluate_filter(where, table).all()
