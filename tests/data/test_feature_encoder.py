import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.feature_encoder import MISSING, OOV, FeatureEncoder, FeatureEncoderState, FeatureSpec
from vecall.data.request_features import to_feature_frame
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature

FEATURES = {
    "n": NumericFeature(),
    "c": CategoryFeature(),
    "t": TagsFeature(max_tags=3),
    "x": TextFeature(buckets=64),
    "v": VectorFeature(size=2),
}
FITTED = [
    {"n": 1, "c": "b", "t": ["y", "x"], "x": "one two", "v": [1, 2]},
    {"n": 3, "c": "a", "t": ["x"]},
    {"t": []},
]


@pytest.fixture(scope="module")
def encoders():
    return FeatureEncoder.fit(FEATURES, to_feature_frame(FITTED, FEATURES))


def encode(encoders, *rows):
    return encoders.encode(to_feature_frame(rows, FEATURES))


def test_numbers_are_standardised_and_missing_is_not_the_mean(encoders):
    deviation = np.std([1, 3], ddof=1)
    got = encode(encoders, {"n": 3}, {"n": 2}, {}, {"n": -1e300})["n"]
    np.testing.assert_allclose(got, [[1 / deviation, 1], [0, 1], [0, 0], [-10, 1]], rtol=1e-6)
    assert got.dtype == np.float32


def test_values_never_seen_are_counted(encoders):
    def count(**given):
        return encoders.count_unknown(to_feature_frame([given], {name: FEATURES[name] for name in given}))

    assert count() == (0, 0)
    assert count(c="a") == (0, 1)
    assert count(c="never", n=7, x="words") == (1, 1)  # numbers and words have no names
    assert count(t=["x", "never", "nor this"]) == (2, 3)
    assert count(c=None, t=[]) == (0, 0)


def test_unknown_and_missing_have_rows_of_their_own(encoders):
    got = encode(encoders, {"c": "a"}, {"c": "b"}, {"c": "never"}, {}, {"c": ""})["c"]
    assert got.tolist() == [2, 3, OOV, MISSING, MISSING]
    tags = encode(encoders, {"t": ["y", "never", "x", "x"]}, {"t": []}, {})["t"]
    assert tags.tolist() == [[3, 2], [0, 0], [0, 0]]  # cut at max_tags, then what was never seen is left out
    assert encode(encoders, {})["t"].shape == (1, 1)


def test_vectors_and_text(encoders):
    got = encode(encoders, {"v": [1, 2.5], "x": "anything"}, {})
    assert got["v"].tolist() == [[1, 2.5], [0, 0]]
    assert got["v"].dtype == np.float32
    assert (got["x"][0] > 0).all()
    assert not got["x"][1].any()


def test_shapes_tell_what_arrays_look_like(encoders):
    assert encoders.shapes == {
        "n": FeatureSpec("dense", 2),
        "c": FeatureSpec("one", 4),
        "t": FeatureSpec("bag", 4),
        "x": FeatureSpec("bag", 65),
        "v": FeatureSpec("dense", 2),
    }


def test_only_the_given_rows_are_learned_from():
    """What is in the rows not fitted on, however wild, leaves no trace."""
    frame = to_feature_frame([*FITTED, {"n": 1e6, "c": "future", "t": ["future"]}], FEATURES)
    honest, leaky = FeatureEncoder.fit(FEATURES, frame[:3]), FeatureEncoder.fit(FEATURES, frame)
    assert honest.state == FeatureEncoder.fit(FEATURES, to_feature_frame(FITTED, FEATURES)).state
    assert "future" not in honest.state.model_dump_json()
    assert "future" in leaky.state.model_dump_json()  # so a leak would show
    assert honest.encode(frame)["c"].tolist()[-1] == OOV


@pytest.mark.parametrize("numbers", [[], [None, None], [5], [7, 7, 7]])
def test_too_few_numbers_for_a_deviation(numbers):
    features = {"n": NumericFeature()}
    encoders = FeatureEncoder.fit(features, pl.DataFrame({"n": pl.Series(numbers, dtype=pl.Float64)}))
    got = encoders.encode(to_feature_frame([{"n": 5.0}, {}], features))["n"]
    assert np.isfinite(got).all()
    assert got[:, 1].tolist() == [1, 0]


ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "n": st.floats(-1e100, 1e100),
            "c": st.text(),
            "t": st.lists(st.text()),
            "x": st.text(),
            "v": st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2),
        },
    ),
    max_size=6,
)


@given(ROWS, ROWS)
def test_state_survives_json(fitted, asked):
    encoders = FeatureEncoder.fit(FEATURES, to_feature_frame(fitted, FEATURES))
    again = FeatureEncoder(FeatureEncoderState.model_validate_json(encoders.state.model_dump_json()))
    assert again.specs == encoders.specs
    before, after = encode(encoders, *asked), encode(again, *asked)
    for name, shape in encoders.specs.items():
        np.testing.assert_array_equal(before[name], after[name])
        assert len(before[name]) == len(asked)
        assert np.isfinite(before[name]).all()
        if shape.kind != "dense":
            assert before[name].max(initial=0) < shape.size
