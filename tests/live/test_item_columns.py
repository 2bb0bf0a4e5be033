"""Item columns: which JSON values attributes and features take, and what becomes of them."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest

from vecall.live.column_validation import make_column_validator
from vecall.live.item_columns import ItemColumns
from vecall.schema import CategoryFeature, TagsFeature

DAY = date(2018, 6, 1)
NOON = datetime(2018, 6, 1, 12)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (pl.String(), ["矢", "", None], ["矢", "", None]),
        (pl.Boolean(), [True, None], [True, None]),
        (pl.Int8(), [1, -128, 5.0, None], [1, -128, 5, None]),
        (pl.Int64(), [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        (pl.UInt64(), [2**64 - 1, None], [2**64 - 1, None]),
        (pl.Float32(), [1, 2.5, None], [1, 2.5, None]),
        (pl.Float64(), [1, 2.5, 10**30], [1, 2.5, 1e30]),
        (pl.Decimal(10, 2), [1.5, 3], [Decimal("1.50"), Decimal(3)]),
        (pl.Date(), ["2018-06-01", "2018-06-01T12:00:00", None], [DAY, DAY, None]),
        (pl.Datetime("ms"), ["2018-06-01T14:00:00+02:00", "2018-06-01T12:00"], [NOON, NOON]),
        (pl.Datetime("us", "UTC"), ["2018-06-01T12:00:00"], [NOON.replace(tzinfo=UTC)]),
        (pl.Categorical(), ["a", None], ["a", None]),
        (pl.Enum(["a", "b"]), ["b", None], ["b", None]),
        (pl.List(pl.String()), [["a", "b"], [], None, ("c",)], [["a", "b"], [], None, ["c"]]),
        (pl.List(pl.Date()), [["2018-06-01"], None], [[DAY], None]),
        (pl.List(pl.List(pl.Int16())), [[[1], []], [], None, [[2, 3.0]]], [[[1], []], [], None, [[2, 3]]]),
        (pl.List(pl.Float64()), [None, None], [None, None]),
        (pl.Array(pl.Float32(), 2), [[1, 2.5], None], [[1, 2.5], None]),
        (pl.Null(), [None], [None]),
        (pl.Struct({"a": pl.Int64()}), [None], [None]),
        (pl.Duration("us"), [None], [None]),
    ],
)
def test_valid_values_get_the_type_of_the_releases_column(dtype, values, expected):
    columns = ItemColumns({}, pl.Schema({"x": dtype}))
    assert [columns.describe_error("x", value) for value in values] == [None] * len(values)
    frame = columns.build_attribute_frame([{"x": value} for value in values] + [{}])
    assert frame.schema == {"x": dtype}
    assert frame["x"].to_list() == [*expected, None]
    assert columns.build_attribute_frame([]).schema == {"x": dtype}


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (pl.String(), 3, "a string or null, got 3"),
        (pl.String(), "\ud800", "a string"),
        (pl.Boolean(), 1, "true or false"),
        (pl.Int8(), 128, "an integer from -128 to 127 or null, got 128"),
        (pl.Int8(), True, "an integer"),
        (pl.UInt8(), -1, "an integer from 0 to 255"),
        (pl.Int64(), 1.5, "an integer"),
        (pl.Int64(), float("inf"), "an integer"),
        (pl.Float32(), 1e39, "a finite number"),
        (pl.Float64(), float("nan"), "a finite number"),
        (pl.Float64(), 10**400, "a finite number"),
        (pl.Float64(), "1", "a finite number"),
        (pl.Decimal(5, 2), "1e3", "a number, or its text, of at most 3 digits before the point or null, got '1e3'"),
        (pl.Decimal(5, 2), "999.996", "a number, or its text"),
        (pl.Decimal(5, 2), "NaN", "a number, or its text"),
        (pl.Date(), "June", "an ISO 8601 time"),
        (pl.Datetime("us"), 7, "an ISO 8601 time"),
        (pl.Enum(["a"]), "b", r"one of \['a'\]"),
        (pl.Enum(["a"]), ["a"], r"one of"),
        (pl.List(pl.String()), "a", "a list of String"),
        (pl.List(pl.String()), [1], "a list of String"),
        (pl.List(pl.String()), [None], "a list of String"),
        (pl.Array(pl.Int64(), 2), [1], "a list of 2 Int64"),
        (pl.Struct({"a": pl.Int64()}), {"a": 1}, "nothing"),
    ],
)
def test_invalid_values_are_described(dtype, value, message):
    error = make_column_validator(dtype).describe_error(value)
    assert error is not None
    assert re.search(message, error)


def test_feature_that_is_also_an_attribute_is_read_as_in_a_table():
    columns = ItemColumns(
        {"t": TagsFeature(), "c": CategoryFeature()}, pl.Schema({"t": pl.List(pl.String), "n": pl.Int64})
    )
    rows = [{"t": "a|b", "c": 3, "n": 1}, {"t": ["x"]}, {}]
    assert columns.build_attribute_frame(rows).rows() == [(["a", "b"], 1), (["x"], None), (None, None)]
    assert columns.build_feature_frame(rows).rows() == [(["a", "b"], "3"), (["x"], None), (None, None)]
    assert columns.describe_error("colour", None) == "no such column; expected one of ['t', 'n', 'c']"
    assert columns.select_compatible_fields({"t": "a", "n": "x", "colour": 1, "c": None}) == {"t": "a", "c": None}
