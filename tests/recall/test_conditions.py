"""Comparisons against Python's own exact numbers, near every edge at which floats or types give way."""

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


def passing(column, op, value):
    return evaluate_filter([{"field": "x", "op": op, "value": value}], pl.DataFrame({"x": column})).tolist()


def expected(cells, op, value, exact):
    """What Python's exact numbers say; `exact` reads both a cell and a value."""
    if "in" in op:
        among = {exact(one) for one in value}
        return [cell is not None and (exact(cell) in among) == (op == "in") for cell in cells]
    return [cell is not None and OPS[op](exact(cell), exact(value)) for cell in cells]


def draw_condition(data, values):
    op = data.draw(st.sampled_from([*OPS, "in", "not_in"]))
    return op, data.draw(st.lists(values, max_size=4) if "in" in op else values)


@settings(max_examples=300)
@given(st.sampled_from(sorted(BOUNDS, key=str)), st.lists(st.none() | WHOLE, min_size=1, max_size=6), st.data())
def test_integers_stay_integers(dtype, cells, data):
    low, high = BOUNDS[dtype]
    cells = [None if cell is None else min(max(cell, low), high) for cell in cells]
    op, value = draw_condition(data, NUMBERS)
    assert passing(pl.Series(cells, dtype=dtype), op, value) == expected(cells, op, value, Fraction)


@settings(max_examples=300)
@given(st.lists(st.none() | NUMBERS.map(float), min_size=1, max_size=6), st.data())
def test_a_float_is_no_other_integer(cells, data):
    op, value = draw_condition(data, NUMBERS)
    assert passing(pl.Series(cells, dtype=pl.Float64), op, value) == expected(cells, op, value, Fraction)


@settings(max_examples=200)
@given(st.lists(st.none() | st.integers(-300, 300), min_size=1, max_size=6), st.data())
def test_decimals_mean_what_is_written(hundredths, data):
    cells = [None if one is None else Decimal(one).scaleb(-2) for one in hundredths]
    op, value = draw_condition(data, st.integers(-4, 4) | st.sampled_from([0.1, 0.01, 1.005, -2.99, 1e300]))
    got = passing(pl.Series(cells, dtype=pl.Decimal(10, 2)), op, value)
    assert got == expected(cells, op, value, lambda one: Fraction(str(one)))


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
def test_times_are_compared_as_moments_in_every_year(cells, unit, hours, data):
    cells = [
        None if one is None else one.replace(microsecond=one.microsecond // 1000 * 1000 if unit == "ms" else 0)
        for one in cells
    ]
    column = pl.Series([None if one is None else one.replace(tzinfo=None) for one in cells], dtype=pl.Datetime(unit))
    there = [one for one in cells if one is not None]
    op, value = draw_condition(data, MOMENTS | st.sampled_from(there) if there else MOMENTS)
    shift = timedelta(hours=hours)

    def written(one):
        """The same moment as it is told elsewhere; in the first and last hours of all years that is another year."""
        offset = f"{'+' if hours >= 0 else '-'}{abs(hours):02}:00"
        try:
            return (one.replace(tzinfo=None) + shift).isoformat() + offset
        except OverflowError:
            return one.isoformat()

    asked = [written(one) for one in value] if isinstance(value, list) else written(value)
    assert passing(column, op, asked) == expected(cells, op, value, lambda one: one)


@pytest.mark.parametrize(
    ("column", "op", "value", "rows"),
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
    ],
)
def test_cases_by_hand(column, op, value, rows):
    assert passing(column, op, value) == rows


@pytest.mark.parametrize("name", ["*", "^x$", "^.*$", "", "#", "cell", "literal"])
def test_names_are_just_names(name):
    table = pl.DataFrame({"before": [9, 9], name: [1, 2], "after": [9, 9]})
    assert evaluate_filter([{"field": name, "op": "eq", "value": 2}], table).tolist() == [False, True]


def test_text_that_looks_like_numbers_says_what_to_do():
    with pytest.raises(
        QueryError, match=r"expected a string, got 1999; this attribute is text: .*attributes = \{ x = "
    ):
        passing(pl.Series(["1999"]), "gte", 1999)


def test_many_values_cost_no_more_than_their_number():
    tags = pl.DataFrame({"x": [[f"t{i % 5000}", f"u{i % 7}"] for i in range(60_000)]})

    def seconds(count, op):
        value = [f"t{i}" for i in range(count)]
        began = time.perf_counter()
        found = evaluate_filter([{"field": "x", "op": op, "value": value}], tags)
        assert found.sum() == {"contains_any": 12 * count, "contains_none": 60_000 - 12 * count, "contains_all": 0}[op]
        return time.perf_counter() - began

    for op in ("contains_any", "contains_none", "contains_all"):
        seconds(10, op)
        assert seconds(1_000, op) < 5 * seconds(10, op) + 0.2


def test_evaluation_stops_between_conditions(monkeypatch):
    from vecall.recall import filters

    monkeypatch.setattr(filters, "_CHUNK_ROWS", 10)
    looks = []

    def checkpoint():
        looks.append(None)
        if len(looks) == 3:
            raise OverloadedError("too late")

    where = [{"field": "x", "op": "gte", "value": 0}] * 2
    table = pl.DataFrame({"x": np.arange(25)})
    with pytest.raises(OverloadedError):
        evaluate_filter(where, table, check_cancelled=checkpoint)
    assert evaluate_filter(where, table).all()
