import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.casting import cast_feature
from vecall.data.request_features import frame_of, is_number, is_text, problem
from vecall.schema import Category, Numeric, Tags, Text, Vector

FEATURES = {"n": Numeric(), "c": Category(), "t": Tags(), "x": Text(), "v": Vector(size=2)}
HALF = "\ud800"  # half of a surrogate pair, as JSON can bring it


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (Numeric(), 1),
        (Numeric(), -1.5e300),
        (Category(), "a"),
        (Category(), 3),
        (Category(), True),
        (Tags(), "a|b"),
        (Tags(), ["a", 3]),
        (Tags(), []),
        (Text(), ""),
        (Vector(size=2), [1, 2.5]),
        *[(feature, None) for feature in FEATURES.values()],
    ],
)
def test_right_values_have_no_problem(feature, value):
    assert problem(value, feature) is None


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        *[(Numeric(), value) for value in ("1", True, float("nan"), float("inf"), 10**400, [1])],
        *[(Category(), value) for value in (["a"], float("nan"), HALF, {})],
        *[(Tags(), value) for value in (3, [["a"]], [None], [HALF], HALF)],
        *[(Text(), value) for value in (3, ["a"], HALF)],
        *[(Vector(size=2), value) for value in ([1], [1, "2"], [1, None], [1, 1e39], [True, 1], "1 2", [[1, 2]])],
    ],
)
def test_wrong_values_are_told(feature, value):
    wrong = problem(value, feature)
    assert wrong.startswith("expected ")
    assert "or null, got " in wrong
    assert len(wrong) < 200


def test_numbers_and_text():
    assert all(map(is_number, (0, -3, 1.5, np.float32(2), np.int64(3))))
    assert not any(map(is_number, (True, np.bool_(True), 1j, "1", None, float("nan"), -float("inf"), 10**400)))
    assert is_text("\U0001f600")
    assert not is_text(HALF + "a")


def test_rows_become_the_frame_that_a_table_would_have_given():
    rows = [{"n": 1, "c": "a", "t": ["x", 3], "x": "y", "v": [1, 2.5]}, {"t": "x|z"}, {"other": 1}]
    frame = frame_of(rows, FEATURES)
    dtypes = {"n": pl.Float64, "c": pl.String, "t": pl.List(pl.String), "x": pl.String, "v": pl.List(pl.Float32)}
    assert dict(frame.schema) == dtypes == dict(frame_of([{}], FEATURES).schema)
    assert frame.to_dicts() == [
        {"n": 1.0, "c": "a", "t": ["x", "3"], "x": "y", "v": [1.0, 2.5]},
        {"n": None, "c": None, "t": ["x", "z"], "x": None, "v": None},
        dict.fromkeys(FEATURES),
    ]
    assert len(frame_of([{}, {}], {})) == 2


@given(st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)))
def test_a_category_is_spelled_as_out_of_a_table(value):
    """Else an online 1e-07 or true would be a value that training never saw."""
    table = cast_feature(pl.Series("c", [value]), Category()).values
    assert frame_of([{"c": value}], {"c": Category()})["c"].to_list() == table.to_list()
