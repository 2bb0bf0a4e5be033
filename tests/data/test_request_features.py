import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.casting import cast_feature
from vecall.data.request_features import describe_feature_error, is_number, is_text, to_feature_frame
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature

FEATURES = {
    "n": NumericFeature(),
    "c": CategoryFeature(),
    "t": TagsFeature(),
    "x": TextFeature(),
    "v": VectorFeature(size=2),
}
SURROGATE = "\ud800"  # unpaired, as JSON can contain it
NESTED_LISTS = 100_000 * "[" + 100_000 * "]"  # deeper than the recursion limit


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        (NumericFeature(), 1),
        (NumericFeature(), -1.5e300),
        (CategoryFeature(), "a"),
        (CategoryFeature(), 3),
        (CategoryFeature(), True),
        (TagsFeature(), "a|b"),
        (TagsFeature(), ["a", 3]),
        (TagsFeature(), []),
        (TextFeature(), ""),
        (VectorFeature(size=2), [1, 2.5]),
        *[(feature, None) for feature in FEATURES.values()],
    ],
)
def test_valid_feature_value_has_no_error(feature, value):
    assert describe_feature_error(value, feature) is None


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        *[(NumericFeature(), value) for value in ("1", True, float("nan"), float("inf"), 10**400, [1])],
        *[(CategoryFeature(), value) for value in (["a"], float("nan"), SURROGATE, {})],
        *[(TagsFeature(), value) for value in (3, [["a"]], [None], [SURROGATE], SURROGATE)],
        *[(TagsFeature(), value) for value in (r'["\ud800"]', r"['\ud800']", NESTED_LISTS)],
        *[(TextFeature(), value) for value in (3, ["a"], SURROGATE)],
        *[
            (VectorFeature(size=2), value)
            for value in ([1], [1, "2"], [1, None], [1, 1e39], [True, 1], "1 2", [[1, 2]])
        ],
    ],
)
def test_invalid_feature_value_is_described(feature, value):
    error = describe_feature_error(value, feature)
    assert error.startswith("expected ")
    assert "or null, got " in error
    assert len(error) < 200


def test_is_number_and_is_text_accept_finite_numbers_and_valid_unicode():
    assert all(map(is_number, (0, -3, 1.5, np.float32(2), np.int64(3))))
    assert not any(map(is_number, (True, np.bool_(True), 1j, "1", None, float("nan"), -float("inf"), 10**400)))
    assert is_text("\U0001f600")
    assert not is_text(SURROGATE + "a")


def test_fields_of_requests_become_the_same_frame_as_a_table():
    rows = [{"n": 1, "c": "a", "t": ["x", 3], "x": "y", "v": [1, 2.5]}, {"t": "x|z"}, {"other": 1}]
    frame = to_feature_frame(rows, FEATURES)
    dtypes = {"n": pl.Float64, "c": pl.String, "t": pl.List(pl.String), "x": pl.String, "v": pl.List(pl.Float32)}
    assert dict(frame.schema) == dtypes == dict(to_feature_frame([{}], FEATURES).schema)
    assert frame.to_dicts() == [
        {"n": 1.0, "c": "a", "t": ["x", "3"], "x": "y", "v": [1.0, 2.5]},
        {"n": None, "c": None, "t": ["x", "z"], "x": None, "v": None},
        dict.fromkeys(FEATURES),
    ]
    assert len(to_feature_frame([{}, {}], {})) == 2


@given(st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)))
def test_category_of_a_request_has_the_same_text_as_in_a_table(value):
    """Otherwise 1e-07 or true in a request would be out of the vocabulary."""
    table = cast_feature(pl.Series("c", [value]), CategoryFeature()).values
    assert to_feature_frame([{"c": value}], {"c": CategoryFeature()})["c"].to_list() == table.to_list()
