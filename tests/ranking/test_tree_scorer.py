"""Scores of trees: those of LightGBM itself, bit by bit."""

import numpy as np
import pytest

from vecall.ranking.lightgbm_text import parse_trees
from vecall.ranking.tree_scorer import TreeScorer

lightgbm = pytest.importorskip("lightgbm")

N_CATEGORIES = 60
PARAMETERS = {"objective": "lambdarank", "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5, "max_bin": 63}


def make_matrix(n, seed=0):
    """Two categories, a column of zeros and ones, three of numbers with NaN and zeros, and one without either."""
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, 7)).astype(np.float32)
    matrix[:, :2] = rng.integers(N_CATEGORIES, size=(n, 2))
    matrix[:, 2] = rng.random(n) < 0.5
    matrix[:, :6][rng.random((n, 6)) < 0.15] = np.nan
    matrix[:, 3:6][rng.random((n, 3)) < 0.3] = 0
    return matrix


def train(n_trees=10, n=2_000, **parameters):
    matrix, rng = make_matrix(n), np.random.default_rng(1)
    chances = 0.02 + 0.2 * (matrix[:, 0] % 7 == 3) + 0.2 * np.isnan(matrix[:, 3]) + 0.2 * (matrix[:, 4] == 0)
    chances += 0.2 * (matrix[:, 6] > 0.7) * (matrix[:, 1] % 3 == 1)
    categories = {"categorical_feature": [0, 1], "params": PARAMETERS | parameters}
    dataset = lightgbm.Dataset(matrix, rng.random(n) < chances, group=[100] * (n // 100), **categories)
    return lightgbm.train(PARAMETERS | parameters, dataset, n_trees)


def make_scorer(booster):
    trees = parse_trees(booster.model_to_string())
    return None if trees is None else TreeScorer.build(trees)


def score(booster, matrix):
    return make_scorer(booster).score(np.ascontiguousarray(matrix.T))


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_leaves": 15},
        {"num_leaves": 15, "zero_as_missing": True},
        {"num_leaves": 32, "use_missing": False},
        {"num_leaves": 32, "max_cat_to_onehot": 100},
    ],
    ids=["15 leaves", "zero is missing", "nothing is missing", "32 leaves, one category against all"],
)
def test_scores_equal_those_of_lightgbm_bit_by_bit(parameters):
    booster = train(**parameters)
    matrix = make_matrix(1_100, seed=2)  # three blocks of rows, the last one not full
    odd = [-1, -0.5, 1e9, np.inf, -np.inf, N_CATEGORIES + 1, 0.9, 1e-35, -1e-36, 2e-35, np.nan]
    matrix[: len(odd)] = np.array(odd, dtype=np.float32)[:, None]
    for n in (0, 1, 500, len(matrix)):
        expected = booster.predict(matrix[:n], num_threads=1) if n else np.empty(0)
        assert score(booster, matrix[:n]).tobytes() == expected.tobytes()


def test_values_at_thresholds_go_where_lightgbm_sends_them():
    booster = train(num_leaves=15)
    numbers = [
        threshold
        for tree in parse_trees(booster.model_to_string())
        for threshold in tree.thresholds[(tree.features == 6) & ~tree.is_category].tolist()
    ]
    near = np.array(numbers, dtype=np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))])
    matrix = np.tile(make_matrix(1, seed=3), (len(near), 1))
    matrix[:, 6] = near
    assert len(numbers) > 5
    assert score(booster, matrix).tobytes() == booster.predict(matrix, num_threads=1).tobytes()


def test_features_that_no_tree_reads_are_not_listed_and_not_read():
    booster = train(n_trees=2, num_leaves=3)
    importance = booster.feature_importance("split")
    scorer, matrix = make_scorer(booster), make_matrix(50)
    assert scorer.used_features == np.flatnonzero(importance).tolist()
    expected = booster.predict(matrix, num_threads=1)
    matrix[:, importance == 0] = np.nan
    assert scorer.score(np.ascontiguousarray(matrix.T)).tobytes() == expected.tobytes()


def test_tree_without_a_split_adds_its_leaf():
    booster = train(n_trees=3, min_data_in_leaf=100_000)
    matrix = make_matrix(4)
    assert score(booster, matrix).tolist() == booster.predict(matrix, num_threads=1).tolist()


@pytest.mark.parametrize("parameters", [{"num_leaves": 33}, {"objective": "binary"}, {"linear_tree": True}])
def test_other_models_have_no_scorer(parameters):
    assert make_scorer(train(n_trees=2, **parameters)) is None
