import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import encoding_oracle

from vecall.data import feature_encoder, padding, text, vocabulary
from vecall.data.feature_encoder import FeatureEncoder, FeatureEncoderState, FeatureSpec
from vecall.data.request_features import to_feature_frame
from vecall.data.vocabulary import MISSING, OOV
from vecall.schema import CategoryFeature, NumericFeature, TagsFeature, TextFeature, VectorFeature

FEATURES = {
    "n": NumericFeature(),
    "c": CategoryFeature(),
    "t": TagsFeature(max_tags=3),
    "x": TextFeature(buckets=64),
    "v": VectorFeature(size=2),
}
TRAINING_ROWS = [
    {"n": 1, "c": "b", "t": ["y", "x"], "x": "one two", "v": [1, 2]},
    {"n": 3, "c": "a", "t": ["x"]},
    {"t": []},
]


@pytest.fixture(scope="module")
def encoder():
    return FeatureEncoder.fit(FEATURES, to_feature_frame(TRAINING_ROWS, FEATURES))


def encode(encoder, *rows):
    return encoder.encode(to_feature_frame(rows, FEATURES))


def test_numbers_are_standardized_and_missing_differs_from_the_mean(encoder):
    std = np.std([1, 3], ddof=1)
    encoded = encode(encoder, {"n": 3}, {"n": 2}, {}, {"n": -1e300})["n"]
    np.testing.assert_allclose(encoded, [[1 / std, 1], [0, 1], [0, 0], [-10, 1]], rtol=1e-6)
    assert encoded.dtype == np.float32


def test_count_unseen_values_counts_categories_and_tags(encoder):
    def count(**fields):
        return encoder.count_unseen_values(to_feature_frame([fields], {name: FEATURES[name] for name in fields}))

    assert count() == (0, 0)
    assert count(c="a") == (0, 1)
    assert count(c="never", n=7, x="words") == (1, 1)  # numbers and text have no vocabulary
    assert count(t=["x", "never", "nor this"]) == (2, 3)
    assert count(c=None, t=[]) == (0, 0)


def test_oov_and_missing_categories_have_rows_of_their_own(encoder):
    categories = encode(encoder, {"c": "a"}, {"c": "b"}, {"c": "never"}, {}, {"c": ""})["c"]
    assert categories.tolist() == [2, 3, OOV, MISSING, MISSING]
    tags = encode(encoder, {"t": ["y", "never", "x", "x"]}, {"t": []}, {})["t"]
    assert tags.tolist() == [[3, 2], [0, 0], [0, 0]]  # truncated to max_tags, then unseen tags are dropped
    assert encode(encoder, {})["t"].shape == (1, 1)


def test_missing_vectors_and_text_are_zeros(encoder):
    encoded = encode(encoder, {"v": [1, 2.5], "x": "anything"}, {})
    assert encoded["v"].tolist() == [[1, 2.5], [0, 0]]
    assert encoded["v"].dtype == np.float32
    assert (encoded["x"][0] > 0).all()
    assert not encoded["x"][1].any()


def test_specs_describe_the_encoded_arrays(encoder):
    assert encoder.specs == {
        "n": FeatureSpec("dense", 2),
        "c": FeatureSpec("categorical", 4),
        "t": FeatureSpec("multi_value", 4),
        "x": FeatureSpec("multi_value", 65),
        "v": FeatureSpec("dense", 2),
    }


def test_encoder_is_fitted_on_the_training_rows_only():
    """Outliers and values in other rows have no influence."""
    frame = to_feature_frame([*TRAINING_ROWS, {"n": 1e6, "c": "future", "t": ["future"]}], FEATURES)
    honest, leaky = FeatureEncoder.fit(FEATURES, frame[:3]), FeatureEncoder.fit(FEATURES, frame)
    assert honest.state == FeatureEncoder.fit(FEATURES, to_feature_frame(TRAINING_ROWS, FEATURES)).state
    assert "future" not in honest.state.model_dump_json()
    assert "future" in leaky.state.model_dump_json()  # so the test would detect a leak
    assert honest.encode(frame)["c"].tolist()[-1] == OOV


@pytest.mark.parametrize("numbers", [[], [None, None], [5], [7, 7, 7]])
def test_numbers_without_a_standard_deviation_are_encoded_as_finite(numbers):
    features = {"n": NumericFeature()}
    encoder = FeatureEncoder.fit(features, pl.DataFrame({"n": pl.Series(numbers, dtype=pl.Float64)}))
    encoded = encoder.encode(to_feature_frame([{"n": 5.0}, {}], features))["n"]
    assert np.isfinite(encoded).all()
    assert encoded[:, 1].tolist() == [1, 0]


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


@settings(max_examples=40)
@given(ROWS, ROWS)
def test_encoder_restored_from_json_encodes_equally(training_rows, rows):
    encoder = FeatureEncoder.fit(FEATURES, to_feature_frame(training_rows, FEATURES))
    restored = FeatureEncoder(FeatureEncoderState.model_validate_json(encoder.state.model_dump_json()))
    assert restored.specs == encoder.specs
    before, after = encode(encoder, *rows), encode(restored, *rows)
    for name, spec in encoder.specs.items():
        np.testing.assert_array_equal(before[name], after[name])
        assert len(before[name]) == len(rows)
        assert np.isfinite(before[name]).all()
        if spec.kind != "dense":
            assert before[name].max(initial=0) < spec.size


@settings(max_examples=40)
@given(ROWS, ROWS, st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_chunks_encode_as_the_oracle(training_rows, rows, chunk_rows, block_rows, are_columns):
    encoder = FeatureEncoder.fit(FEATURES, to_feature_frame(training_rows, FEATURES))
    frame = to_feature_frame([*rows, *training_rows], FEATURES)
    expected = encoding_oracle.encode(encoder, frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_encoder, "_CHUNK_ROWS", chunk_rows)
        patch.setattr(padding, "_CHUNK_ROWS", chunk_rows)
        patch.setattr(padding, "_BLOCK_ROWS", block_rows)
        if are_columns:  # as if there were many rows
            patch.setattr(feature_encoder, "_MIN_COLUMN_LISTS", 0)
            patch.setattr(vocabulary, "_MIN_COLUMN_VALUES", 0)
            patch.setattr(text, "_MIN_COLUMN_TEXTS", 0)
        encoded = encoder.encode(frame)
    assert list(encoded) == list(expected)
    for name, values in encoded.items():
        np.testing.assert_array_equal(values, expected[name])
        assert values.dtype == ("float32" if encoder.specs[name].kind == "dense" else "int32")
