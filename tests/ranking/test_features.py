"""Features of the ranker: which ones the data have, and their values, against a computation value by value."""

import time
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from vecall.ranking.features import RankerFeature, RankerFeatures, select_features


def compute(column, transform, values=(), name="x"):
    features = RankerFeatures(features=(RankerFeature(column=name, transform=transform, values=values),))
    return features.build_matrix(pl.DataFrame({name: column}))[:, 0]


@pytest.mark.parametrize(
    ("column", "transform", "expected"),
    [
        ([1, None, 3], "number", [1, np.nan, 3]),
        ([True, None, False], "number", [1, np.nan, 0]),
        ([datetime(1970, 1, 2, 12, tzinfo=UTC), None], "number", [1.5, np.nan]),
        ([0.0, None, 9.0], "log", [0, np.nan, np.log(10)]),
        ([1.0, None, 4.0, 3.0], "gap", [-3, np.nan, 0, -1]),
        (pl.Series([None, None], dtype=pl.Float32), "gap", [np.nan, np.nan]),
        ([5.0, None, 7.0, 5.0, 1.0], "position", [1, np.nan, 0, 1, 3]),
        ([["a"], [], None, ["a", "b"]], "length", [1, 0, np.nan, 2]),
        (pl.Series([1e300, 2.0]), "number", [np.inf, 2]),
    ],
)
def test_value_of_each_transform(column, transform, expected):
    np.testing.assert_array_equal(compute(column, transform), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["a", "b", "new"])])
def test_category_has_a_code_for_each_known_value_and_another_for_all_others(dtype):
    column = pl.Series(["b", "new", None, "a"], dtype=dtype)
    np.testing.assert_array_equal(compute(column, "category", ("a", "b")), [2, 0, np.nan, 1])


def test_feature_of_a_user_is_that_of_the_first_row_and_a_missing_column_is_nan():
    features = RankerFeatures(
        features=(
            RankerFeature(column="user.age", transform="number"),
            RankerFeature(column="user.group", transform="category", values=("b",)),
            RankerFeature(column="similar.rank", transform="number"),
        )
    )
    matrix = features.build_matrix(pl.DataFrame({"user.age": [3.0, 3.0], "user.group": ["b", "b"]}))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, [[3, 1, np.nan], [3, 1, np.nan]])


def test_features_are_selected_by_the_types_of_columns():
    candidates = pl.DataFrame(
        {
            "id": [1],
            "score": [0.1],
            "rank": [1],
            "channels": [["vector"]],
            "popular.score": [0.1],
            "popular.rank": [1],
            "user.group": ["a"],
            "user.taste": [[0.5]],
            "item.popularity": [2.0],
            "item.age_days": [2.0],
            "history.length": [1.0],
            "title": ["unique"],
            "brand": ["b"],
            "price": [1.0],
            "tags": [["x"]],
        }
    )
    attributes = pl.DataFrame({"title": list("0123456789"), "brand": ["b"] * 6 + ["rare"] * 4})
    attributes = attributes.with_columns(price=pl.lit(1.0), tags=pl.Series([["x"]] * 10))
    users = pl.DataFrame({"group": ["a"] * 5 + ["c"] * 5, "taste": [[0.5]] * 10})
    features = select_features(candidates, ("vector",), attributes, users)
    assert features.names == [
        *("rank", "vector.score", "vector.score:gap", "user.group:category", "item.popularity:log"),
        *("item.popularity:position", "item.age_days", "history.length", "brand:category", "price", "tags:length"),
    ]
    assert {feature.column: feature.values for feature in features.features if feature.values} == {
        "user.group": ("a", "c"),
        "brand": ("b",),
    }
    assert [features.names[i] for i in features.category_positions] == ["user.group:category", "brand:category"]
    merged = select_features(candidates, ("vector", "similar"), attributes, users).names
    assert merged[:10] == [
        *("rank", "score", "score:gap", "channels:length", "vector.rank", "similar.rank"),
        *("vector.score", "vector.score:gap", "similar.score", "similar.score:gap"),
    ]


def test_values_of_context_are_those_of_interactions():
    """Users have none."""
    candidates = pl.DataFrame({"rank": [1], "user.hour": ["night"], "user.group": ["a"]})
    users = pl.DataFrame({"group": ["a"] * 5, "hour": pl.Series([None] * 5, dtype=pl.String)})
    context = pl.DataFrame({"hour": ["night", "day"] * 5})
    features = select_features(candidates, ("vector",), pl.DataFrame(), users, context).features
    assert {feature.column: feature.values for feature in features if feature.values} == {
        "user.hour": ("day", "night"),
        "user.group": ("a",),
    }


def test_specification_survives_its_file():
    features = RankerFeatures(features=(RankerFeature(column='Größe "x"', transform="category", values=("é",)),))
    assert RankerFeatures.model_validate_json(features.model_dump_json()) == features


def test_features_of_500_candidates_take_at_most_two_milliseconds():
    rng = np.random.default_rng(0)
    brands, n = [f"brand {number}" for number in range(200)], 500
    numbers = {f"number {i}": rng.random(n) for i in range(20)}
    texts = {f"text {i}": rng.choice(brands, n) for i in range(5)}
    candidates = pl.DataFrame({**numbers, **texts, "user.group": ["a"] * n})
    features = RankerFeatures(
        features=(
            *(RankerFeature(column=name, transform="position") for name in numbers),
            *(RankerFeature(column=name, transform="category", values=tuple(brands)) for name in texts),
            RankerFeature(column="user.group", transform="category", values=("a", "b")),
        )
    )
    features.build_matrix(candidates)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        features.build_matrix(candidates)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2e-3
