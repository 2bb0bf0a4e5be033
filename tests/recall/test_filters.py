import operator
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.errors import QueryError
from vecall.recall.filters import mask_of

ATTRIBUTES = pl.DataFrame(
    {
        "year": [1999, 2005, None, 2010],
        "price": [1.5, float("nan"), None, 3.0],
        "half": pl.Series([0.1, 2, None, 3], dtype=pl.Float32),
        "small": pl.Series([1, 2, None, 3], dtype=pl.UInt8),
        "name": ["Alien", "", None, "矢量"],
        "kind": pl.Series(["b", "a", None, "c"], dtype=pl.Categorical),
        "fresh": [True, False, None, True],
        "genres": [["war", "drama"], [], None, ["drama", None]],
        "codes": [[1, 2], [], None, [2]],
        "day": [date(2018, 6, 1), date(2019, 1, 1), None, date(2020, 1, 1)],
        "born": pl.Series(
            [datetime(2018, 6, 1), datetime(2019, 1, 1), None, datetime(2020, 1, 1)]
        ).dt.replace_time_zone("UTC"),
        "blob": [{"a": 1}, {"a": 2}, None, {"a": 3}],
        "void": [None, None, None, None],
    }
)


def passing(field, op, value):
    return mask_of([{"field": field, "op": op, "value": value}], ATTRIBUTES).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("field", "op", "value", "rows"),
    [
        ("year", "eq", 2005, [1]),
        ("year", "eq", 2005.0, [1]),
        ("year", "ne", 2005, [0, 3]),
        ("year", "gt", 1999, [1, 3]),
        ("year", "gte", 1999.5, [1, 3]),
        ("year", "lt", 2**80, [0, 1, 3]),
        ("year", "lte", 2005, [0, 1]),
        ("year", "in", [1999, 2010.0, 1.5, 2**80], [0, 3]),
        ("year", "not_in", [1999, 1.5], [1, 3]),
        ("year", "in", [], []),
        ("year", "not_in", [], [0, 1, 3]),
        ("price", "gt", 0, [0, 3]),  # NaN is null, and not above every number
        ("price", "ne", 3, [0]),
        ("price", "in", [3, 1.5], [0, 3]),
        ("price", "not_in", [], [0, 3]),
        ("half", "eq", 0.1, [0]),
        ("half", "in", [0.1, 2], [0, 1]),
        ("small", "lt", 300, [0, 1, 3]),
        ("small", "in", [300, -1, 3], [3]),
        ("small", "not_in", [300, -1, 3], [0, 1]),
        ("name", "eq", "", [1]),
        ("name", "ne", "", [0, 3]),
        ("name", "in", ["矢量", "x"], [3]),
        ("name", "gt", "A", [0, 3]),
        ("kind", "eq", "a", [1]),
        ("kind", "gte", "b", [0, 3]),
        ("kind", "in", ["a", "zz"], [1]),
        ("fresh", "eq", True, [0, 3]),
        ("fresh", "ne", True, [1]),
        ("fresh", "in", [True, False], [0, 1, 3]),
        ("fresh", "not_in", [False], [0, 3]),
        ("genres", "contains_any", ["war", "x"], [0]),
        ("genres", "contains_any", [], []),
        ("genres", "contains_all", ["drama", "war"], [0]),
        ("genres", "contains_all", [], [0, 1, 3]),
        ("genres", "contains_none", ["war"], [1, 3]),
        ("genres", "contains_none", [], [0, 1, 3]),
        ("codes", "contains_any", [2.0, 1.5], [0, 3]),
        ("codes", "contains_all", [2, 1.5], []),
        ("codes", "contains_none", [1.5, 1], [1, 3]),
        ("day", "gte", "2019-01-01", [1, 3]),
        ("day", "in", ["2018-06-01"], [0]),
        ("born", "eq", "2019-01-01T08:00:00+08:00", [1]),
        ("void", "ne", "a", []),
        ("void", "not_in", [], []),
    ],
)
def test_which_items_pass(field, op, value, rows):
    assert passing(field, op, value) == rows


def test_all_conditions_must_hold():
    where = [
        {"field": "year", "op": "gt", "value": 2000},
        {"field": "genres", "op": "contains_any", "value": ["drama"]},
    ]
    assert mask_of(where, ATTRIBUTES).tolist() == [False, False, False, True]
    assert mask_of(where[::-1], ATTRIBUTES).tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        ({"field": "yeer", "op": "eq", "value": 1}, "field"),
        ({"field": 3, "op": "eq", "value": 1}, "field"),
        ({"field": "blob", "op": "eq", "value": 1}, "field"),
        ({"field": "year", "op": "like", "value": 1}, "op"),
        ({"field": "year", "op": "contains_any", "value": [1]}, "op"),
        ({"field": "genres", "op": "eq", "value": "war"}, "op"),
        ({"field": "fresh", "op": "gt", "value": True}, "op"),
        ({"field": "year", "op": ["eq"], "value": 1}, "op"),
        *[({"field": "year", "op": "eq", "value": value}, "value") for value in ("1", None, True, [1], 10**400)],
        *[({"field": "year", "op": "in", "value": value}, "value") for value in (1, "12", [None], [True], {"a": 1})],
        *[({"field": "price", "op": "lt", "value": value}, "value") for value in (float("nan"), float("inf"))],
        *[({"field": "name", "op": "eq", "value": value}, "value") for value in (1, None, "\ud800")],
        *[({"field": "fresh", "op": "eq", "value": value}, "value") for value in (1, "true")],
        *[({"field": "genres", "op": "contains_all", "value": value}, "value") for value in ("war", [1], [None])],
        *[({"field": "day", "op": "gt", "value": value}, "value") for value in (5, "June", None)],
        ({"field": "year", "op": "eq"}, None),
        ({"field": "year", "op": "eq", "value": 1, "and": 2}, None),
    ],
)
def test_what_does_not_go_together_is_told_by_its_place(condition, field):
    good = {"field": "year", "op": "eq", "value": 1}
    with pytest.raises(QueryError, match=r"expected|takes") as caught:
        mask_of([good, condition], ATTRIBUTES)
    assert caught.value.field == ("where[1]" if field is None else f"where[1].{field}")
    assert str(caught.value).startswith(caught.value.field + ":")


NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([-1.5, 0.0, 2.0]))
OPS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


@given(
    st.lists(st.none() | st.integers(-3, 3), min_size=1), st.sampled_from([pl.Int64, pl.Int8, pl.Float64]), st.data()
)
def test_as_a_loop_in_python_would_have_it(cells, dtype, data):
    frame = pl.DataFrame({"x": pl.Series(cells, dtype=dtype)})
    op = data.draw(st.sampled_from([*OPS, "in", "not_in"]))
    value = data.draw(st.lists(NUMBERS) if "in" in op else NUMBERS)
    holds = OPS.get(op) or (lambda one, many: (one in many) == (op == "in"))
    expected = [one is not None and holds(one, value) for one in cells]
    assert mask_of([{"field": "x", "op": op, "value": value}], frame).tolist() == expected


TAGS = st.sampled_from("abc")


@given(st.lists(st.none() | st.lists(TAGS), min_size=1), st.lists(TAGS), st.sampled_from(["any", "all", "none"]))
def test_tags_as_sets_would_have_it(cells, value, op):
    frame = pl.DataFrame({"x": pl.Series(cells, dtype=pl.List(pl.String))})
    holds = {
        "any": lambda tags: bool(tags & set(value)),
        "all": lambda tags: tags >= set(value),
        "none": lambda tags: not tags & set(value),
    }[op]
    expected = [one is not None and holds(set(one)) for one in cells]
    assert mask_of([{"field": "x", "op": f"contains_{op}", "value": value}], frame).tolist() == expected


def test_the_attributes_stay_as_they_are():
    before = ATTRIBUTES.clone()
    passing("price", "gt", 0)
    passing("day", "gt", datetime(2018, 1, 1, tzinfo=UTC).isoformat())
    assert ATTRIBUTES.equals(before)
