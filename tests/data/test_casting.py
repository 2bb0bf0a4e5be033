from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial

import polars as pl
import pytest

from vecall.data.casting import TimestampCaster, cast_boolean, cast_feature, cast_id, cast_number
from vecall.data.timestamps import to_unix_micros
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature

NOON = datetime(2018, 6, 1, 12)
# Columns that cannot be cast to any feature but a vector, nor to ids or times.
INCOMPATIBLE_COLUMNS = [
    pl.Series("x", [[1], [2]]),
    pl.Series("x", [{"a": 1}, {"a": 2}]),
    pl.Series("x", [time(1), time(2)]),
    pl.Series("x", [timedelta(1), timedelta(2)]),
    pl.Series("x", [b"\xff", b"\xfe"]),
]


def to_values(cast):
    """Values of a cast, with "bad" for the invalid ones."""
    values, is_valid = cast.values.to_list(), cast.is_valid.to_list()
    return [value if valid else "bad" for value, valid in zip(values, is_valid, strict=True)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([1, -(2**63), None], [1, -(2**63), "bad"]),
        (pl.Series([2**63], dtype=pl.UInt64), ["bad"]),
        ([1.0, 2.5, float("nan"), 1e30, None], [1, "bad", "bad", "bad", "bad"]),
        ([2.0**53 - 1, 2.0**53, -(2.0**60)], [2**53 - 1, "bad", "bad"]),  # 2**53 and 2**53 + 1 are the same float
        (pl.Series([2.0**24 - 1, 2.0**24], dtype=pl.Float32), [2**24 - 1, "bad"]),
        ([Decimal(7), Decimal("7.50"), None], [7, "bad", "bad"]),
        (["007", "x", "", "1.0", "2.5", str(2**63)], [7, "bad", "bad", 1, "bad", "bad"]),
        ([True, False], ["bad", "bad"]),
        ([date(2018, 6, 1)], ["bad"]),
        (pl.Series(["7", "1.0", "x", ""], dtype=pl.Categorical), [7, 1, "bad", "bad"]),  # as pandas writes categories
    ],
)
def test_column_is_cast_to_integer_ids(cells, expected):
    cast = cast_id(pl.Series("x", cells), "integer")
    assert (to_values(cast), cast.values.dtype) == (expected, pl.Int64)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["007", " a", "", None, "1e3"], ["007", " a", "bad", "bad", "1e3"]),
        ([7, None], ["7", "bad"]),
        ([7.0, 7.5, float("nan"), 2.0**53], ["7", "7.5", "bad", "bad"]),
        ([Decimal("7.00"), Decimal("7.50")], ["7", "7.5"]),
        ([True], ["bad"]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), [str(2**64 - 1)]),
        (pl.Series(["b", "a"], dtype=pl.Categorical), ["b", "a"]),
    ],
)
def test_column_is_cast_to_string_ids(cells, expected):
    cast = cast_id(pl.Series("x", cells), "string")
    assert (to_values(cast), cast.values.dtype) == (expected, pl.String)


def test_numbers_that_are_not_finite_are_invalid():
    cells = ["1", "-2.5e3", "nan", "inf", "1,5", "", None]
    assert to_values(cast_number(pl.Series("x", cells), is_optional=False)) == [1, -2500, *["bad"] * 5]
    assert to_values(cast_number(pl.Series("x", [1, None]), is_optional=True)) == [1, None]
    assert to_values(cast_number(pl.Series("x", [float("inf"), float("nan")]), is_optional=True)) == ["bad", None]
    assert to_values(cast_number(pl.Series("x", ["1", "", None]), is_optional=True)) == [1, None, None]


def test_decimal_commas_are_read_only_if_configured():
    cells = pl.Series("x", ["1,5", "-2", ",5", "1,5e3", "1.000,5", "1,2,3"])
    assert to_values(cast_number(cells, is_optional=False, decimal=",")) == [1.5, -2, 0.5, 1500, "bad", "bad"]
    assert "data.csv.decimal" in cast_number(cells, is_optional=False).expected


def test_column_is_cast_to_booleans():
    assert to_values(cast_boolean(pl.Series("x", ["True", "false", "1", "0", "yes", None]))) == [
        *[True, False] * 2,
        "bad",
        "bad",
    ]
    assert to_values(cast_boolean(pl.Series("x", [1, 0, 2]))) == [True, False, "bad"]
    assert to_values(cast_boolean(pl.Series("x", [True, None]))) == [True, "bad"]
    # As pandas writes flags with gaps.
    assert to_values(cast_boolean(pl.Series("x", ["1.0", "0.0", ""]), is_optional=True)) == [True, False, None]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([3, None], [3, "bad"]),
        ([1.5, float("nan")], [1.5, "bad"]),
        (["1527854400", "3"], [1527854400, 3]),
        (["1.5", "3", "x"], [1.5, 3, "bad"]),  # numbers with an invalid cell, not dates
        ([str(2**60 + 1), str(2**60 + 3), "x"], [2**60 + 1, 2**60 + 3, "bad"]),  # a float would lose the last digit
        ([NOON, None], [NOON, "bad"]),
        ([date(2018, 6, 1)], [datetime(2018, 6, 1)]),
        (pl.Series([NOON]).dt.replace_time_zone("Asia/Shanghai"), [NOON - timedelta(hours=8)]),
        (pl.Series([NOON]).cast(pl.Datetime("ns")), [NOON]),
        (
            ["2018-06-01", "2018-06-01T12:00:00", "2018-06-01 12:00:00Z", "2018-06-01T20:00:00.5+08:00", "June", None],
            [datetime(2018, 6, 1), NOON, NOON, NOON + timedelta(seconds=0.5), "bad", "bad"],
        ),
        ([True], ["bad"]),
        (pl.Series(["2018-06-01", "x", None], dtype=pl.Categorical), [datetime(2018, 6, 1), "bad", "bad"]),
        (pl.Series(["5", "6"], dtype=pl.Enum(["6", "5"])), [5, 6]),
        (pl.Series([2**64 - 1, 2**64 - 2], dtype=pl.UInt64), ["bad", "bad"]),  # as floats they would be equal
        ([str(2**53 + 1), "1.5"], ["bad", 1.5]),
        ([1e17], [10**17]),
        ([1e17, 0.5], [1e17, 0.5]),
        (pl.Series([2932896, 2932897, -719163], dtype=pl.Int32).cast(pl.Date), [datetime(9999, 12, 31), "bad", "bad"]),
        (pl.Series([2**62]).cast(pl.Datetime("ms")), ["bad"]),
    ],
)
def test_column_is_cast_to_timestamps(cells, expected):
    assert to_values(TimestampCaster().cast(pl.Series("x", cells))) == expected


def test_times_that_are_not_exact_as_floats_are_told_as_such():
    cast = TimestampCaster().cast(pl.Series(["1.6e+18", "1.7e+18"]))  # nanoseconds, as pandas writes floats
    assert to_values(cast) == ["bad", "bad"]
    assert "large ones are exact only as integers of 64 bits" in cast.expected


def test_batches_of_text_times_are_consistent_if_all_of_them_together_are_of_the_kind_of_the_first():
    caster = TimestampCaster()
    assert to_values(caster.cast(pl.Series(["1", "x"]))) == [1, "bad"]
    assert to_values(caster.cast(pl.Series(["2018-06-01T12:00:00", "2"]))) == ["bad", 2]
    assert caster.is_consistent
    assert to_values(caster.cast(pl.Series(["y"]))) == ["bad"]
    assert not caster.is_consistent
    again = TimestampCaster(is_number=caster.has_more_numbers)
    assert to_values(again.cast(pl.Series(["1", "x"]))) == ["bad", "bad"]
    assert to_values(again.cast(pl.Series(["2018-06-01T12:00:00", "2"]))) == [NOON, "bad"]


def test_datetime_without_time_zone_is_in_utc():
    assert to_unix_micros(datetime(1970, 1, 2)) == 86_400_000_000
    assert to_unix_micros(datetime(1970, 1, 2, tzinfo=UTC)) == 86_400_000_000
    assert to_unix_micros(datetime(1969, 12, 31, 23, 59, 59, 999_999)) == -1


@pytest.mark.parametrize(
    ("feature", "cells", "expected"),
    [
        (NumericFeature(), ["1", None, "x"], [1.0, None, "bad"]),
        (NumericFeature(), pl.Series(["1", None, "x", ""], dtype=pl.Categorical), [1.0, None, "bad", None]),
        (NumericFeature(), pl.Series(["5", "7"], dtype=pl.Enum(["7", "5"])), [5.0, 7.0]),  # not their codes
        (CategoryFeature(), [1, None], ["1", None]),
        (CategoryFeature(), [True, False], ["true", "false"]),
        (CategoryFeature(), ["True", "1.0", "1.50", "007", ""], ["true", "1", "1.50", "007", None]),
        (CategoryFeature(), [1.0, 1.5, float("nan")], ["1", "1.5", None]),
        (CategoryFeature(), [Decimal("1.00"), Decimal("1.50")], ["1", "1.5"]),
        (CategoryFeature(), [date(2018, 6, 1)], ["2018-06-01"]),
        (TextFeature(), ["a b", "", None], ["a b", None, None]),
        (TagsFeature(), ["a|b||a", "|", "", None], [["a", "b", "a"], [], None, None]),
        (
            TagsFeature(),
            ['["a", 1.0]', "['b', 'c']", "[a]", "['b' 'c']", "[[1]]"],
            [["a", "1"], ["b", "c"], *["bad"] * 3],
        ),
        (TagsFeature(), [[1.0, 2.5, float("nan")], []], [["1", "2.5"], []]),
        (TagsFeature(), [[True, False]], [["true", "false"]]),
        (TagsFeature(separator=", "), ["a, b"], [["a", "b"]]),
        (TagsFeature(), [["a", None, ""], [], None], [["a"], [], None]),
        (TagsFeature(), pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)), [["1", "2"]]),
        (
            VectorFeature(size=2),
            ["1 -2e3", "1", "1 2 3", "1 x", "1 nan", "1e39 1", None],
            [[1, -2000], *["bad"] * 5, None],
        ),
        (VectorFeature(size=2), ["[1, 2]", "[1. 2.]", "[1 x]", ""], [[1, 2], [1, 2], "bad", None]),
        (VectorFeature(size=2), [[1.0, 2.0], [1.0, None], [1.0], None], [[1, 2], "bad", "bad", None]),
    ],
)
def test_column_is_cast_to_a_feature(feature, cells, expected):
    assert to_values(cast_feature(pl.Series("x", cells), feature)) == expected


@pytest.mark.parametrize("column", INCOMPATIBLE_COLUMNS, ids=lambda column: str(column.dtype))
def test_incompatible_column_is_invalid_without_an_exception(column):
    casters = [
        partial(cast_id, id_type="integer"),
        TimestampCaster().cast,
        cast_boolean,
        partial(cast_feature, feature=NumericFeature()),
    ]
    if column.dtype != pl.List(pl.Int64):
        casters.append(partial(cast_feature, feature=VectorFeature(size=1)))
    for caster in casters:
        assert to_values(caster(column)) == ["bad", "bad"]


@pytest.mark.parametrize(
    ("column", "feature"),
    [
        (pl.Series([[{"a": 1}]]), TagsFeature()),
        (pl.Series([[{"a": 1}]]), VectorFeature(size=1)),
        (pl.Series([[datetime(2024, 1, 1)]]), VectorFeature(size=1)),
        (pl.Series(["[0x" + "f" * 4_000 + "]"]), TagsFeature()),
    ],
    ids=["tags of structs", "vector of structs", "vector of times", "endless integer"],
)
def test_lists_of_other_things_are_invalid(column, feature):
    result = cast_feature(column, feature)
    assert result.is_valid.to_list() == [False]
    assert result.values.to_list() == [None]
