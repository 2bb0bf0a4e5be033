"""A value has the same canonical text in tables, requests and upserts, whatever its type or notation."""

from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.canonical import canonicalize_text, column_to_text, scalar_to_text
from vecall.data.casting import cast_feature, cast_id
from vecall.data.list_cells import split_numbers, split_tags
from vecall.data.request_features import to_feature_frame
from vecall.schema import CategoryFeature, TagsFeature

# Columns that all hold the value 1, and columns that all hold the value true.
INTEGER_COLUMNS = [
    pl.Series([1]),
    pl.Series([1], dtype=pl.UInt8),
    pl.Series([1], dtype=pl.Int128),
    pl.Series([1.0]),
    pl.Series([1.0], dtype=pl.Float32),
    pl.Series([Decimal("1.00")]),
    pl.Series(["1"]),
    pl.Series(["1.0"]),
    pl.Series(["1"], dtype=pl.Categorical),
]
BOOLEAN_COLUMNS = [pl.Series([True]), pl.Series(["true"]), pl.Series(["True"]), pl.Series(["TRUE"])]


@pytest.mark.parametrize(
    ("columns", "values"),
    [(INTEGER_COLUMNS, [1, 1.0, "1", "1.0", np.float32(1)]), (BOOLEAN_COLUMNS, [True, "True"])],
)
def test_value_is_the_same_category_in_any_notation(columns, values):
    tables = {cast_feature(column, CategoryFeature()).values[0] for column in columns}
    requests = {to_feature_frame([{"c": value}], {"c": CategoryFeature()})["c"][0] for value in values}
    assert tables == requests == {canonicalize_text(pl.Series([scalar_to_text(values[0])]))[0]}


@pytest.mark.parametrize("column", INTEGER_COLUMNS[:-1], ids=lambda column: str(column.dtype))
def test_value_is_the_same_tag_in_any_notation(column):
    lists = pl.Series([[column[0]]], dtype=pl.List(column.dtype))
    assert cast_feature(lists, TagsFeature()).values.to_list() == [["1"]]
    assert to_feature_frame([{"t": [1.0, "1.0", 1]}], {"t": TagsFeature()})["t"].to_list() == [["1", "1", "1"]]


@pytest.mark.parametrize(
    "column",
    [column for column in INTEGER_COLUMNS if column.dtype != pl.String],
    ids=lambda column: str(column.dtype),
)
def test_number_is_the_same_string_id_in_any_type(column):
    assert cast_id(column, "string").values.to_list() == ["1"]


def test_string_ids_of_a_text_column_are_unchanged():
    assert cast_id(pl.Series(["1.0", "True", "007"]), "string").values.to_list() == ["1.0", "True", "007"]


@given(st.floats() | st.integers(-(2**70), 2**70) | st.booleans() | st.floats(width=32).map(np.float32))
def test_scalar_has_the_text_of_a_column_of_it(value):
    dtype = pl.Float32 if isinstance(value, np.float32) else None
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        dtype = pl.Int128
    column = column_to_text(pl.Series([value], dtype=dtype, strict=False))
    if value != value:
        assert column.to_list() == [None]
    else:
        assert column.to_list() == [scalar_to_text(value)]


@given(st.lists(st.floats(allow_nan=False) | st.none(), min_size=1))
def test_list_has_the_texts_of_its_elements(values):
    column = pl.Series(values, dtype=pl.Float64)
    assert (
        column_to_text(pl.Series([values], dtype=pl.List(pl.Float64)))[0].to_list() == column_to_text(column).to_list()
    )


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
def test_equal_numbers_have_the_same_text_and_it_reads_back_as_the_number(value):
    if isinstance(value, int) and abs(value) < 2**53:
        assert scalar_to_text(value) == scalar_to_text(float(value))
    assert float(scalar_to_text(value)) == float(value)


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pl.Series([datetime(2020, 1, 1)]), ["2020-01-01T00:00:00"]),
        (pl.Series([datetime(2020, 1, 1, 3, 4, 5, 600)]), ["2020-01-01T03:04:05.0006"]),
        (pl.Series([datetime(2020, 1, 1)]).dt.replace_time_zone("Asia/Shanghai"), ["2020-01-01T00:00:00+08:00"]),
        (pl.Series([date(2020, 1, 1)]), ["2020-01-01"]),
        (pl.Series([Decimal("1.50"), Decimal("100.00"), Decimal("0.00")]), ["1.5", "100", "0"]),
        (pl.Series([Decimal(100), Decimal(-7)]), ["100", "-7"]),
        (pl.Series([-0.0, 1e20, 1e-7, float("inf"), float("nan")]), ["0", "1" + 20 * "0", "1e-7", "inf", None]),
    ],
)
def test_column_to_text_of_known_values(column, texts):
    assert column_to_text(column).to_list() == texts


def test_canonical_texts_of_known_values():
    cells = ["True", "1.00", "-0.0", "007.0", "1.10", "v1.0", "", None, "FALSE", "truer"]
    expected = ["true", "1", "0", "007", "1.10", "v1.0", None, None, "false", "truer"]
    assert canonicalize_text(pl.Series(cells)).to_list() == expected
    assert canonicalize_text(pl.Series([cells])).to_list() == [expected]


def test_text_in_brackets_is_a_list_or_null():
    cells = [
        "a|b",
        "['a', 'b']",
        '["a", 1.0, true, null]',
        None,
        "['a' 'b']",
        "[x]",
        "[]",
        "[[1]]",
        '{"a": 1}',
        "[nan]",
        r'["\ud800"]',
        100_000 * "[" + 100_000 * "]",
    ]
    lists = [["a", "b"], ["a", "b"], ["a", "1", "true"], None, None, None, [], None, ['{"a": 1}'], None, None, None]
    assert split_tags(pl.Series(cells), "|").to_list() == lists
    assert split_tags(pl.Series(["a, b"]), ", ").to_list() == [["a", "b"]]
    assert split_numbers(pl.Series(["1 2", "[1, 2]", " [1.5  2]\n", None]), " ").to_list() == [
        ["1", "2"],
        ["1", "2"],
        ["1.5", "2"],
        None,
    ]
