"""EASE's l2 is the best on the validation cases, and the test cases have no say in it."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.dense_evaluation import to_dense

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baseline_evaluation import build_baseline_factories
from vecall.evaluation.baselines import Ease, EaseGram, Popularity
from vecall.evaluation.ease_tuning import EASE_L2_GRID, tune_ease
from vecall.evaluation.evaluator import evaluate_scorer


def make_split(users, items, seed=0):
    """Draw histories from a few overlapping groups of items, and hold out two items of each user."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    lists = []
    for user in range(users):
        boosted = weights * (1 + 9 * (np.arange(items) % 7 == user % 7))
        lists.append(rng.choice(items, rng.integers(4, 9), replace=False, p=boosted / boosted.sum()))
    train = RaggedArray.from_lists([row[:-2] for row in lists])
    return train, EvalCases(np.arange(users), train, RaggedArray.from_lists([row[-2:] for row in lists]))


@pytest.mark.parametrize(("users", "items"), [(60, 90), (90, 60)])
def test_ease_has_the_l2_that_is_best_on_validation_when_each_is_fitted_alone(users, items):
    train, valid = make_split(users, items)
    k = items // 10
    recalls = {
        l2: evaluate_scorer(Ease(train, items, l2), valid, items, (k,)).seen_excluded[f"recall@{k}"]
        for l2 in EASE_L2_GRID
    }
    assert len(set(recalls.values())) > 1
    tuned = tune_ease(train, valid, items)
    assert recalls[tuned.l2] == max(recalls.values())
    expected = to_dense(Ease(train, items, tuned.l2), valid, items)
    np.testing.assert_array_equal(to_dense(tuned.scorer, valid, items), expected)
    assert tuned.description == (
        f"EASE has l2 = {tuned.l2:g}, of 20, 100, 300, 1000, 3000 the best by recall@{k} of {users} validation users."
    )


@pytest.mark.parametrize(("users", "items"), [(30, 50), (50, 30)])
def test_counts_serve_several_values_of_l2(users, items):
    train, cases = make_split(users, items)
    gram = EaseGram(train, items)
    for l2 in (3.0, 300.0, 3.0):
        shared = to_dense(Ease(train, items, l2, gram), cases, items)
        np.testing.assert_array_equal(shared, to_dense(Ease(train, items, l2), cases, items))


def test_ease_of_large_data_has_the_default_l2_and_says_so():
    train, valid = make_split(60, 90)
    tuned = tune_ease(train, valid, 90, max_tuned_dim=59)
    assert tuned.l2 == 500.0
    assert tuned.description.startswith("EASE has l2 = 500, which was not chosen on the validation: each try would")


def test_baselines_are_fitted_without_the_test_cases():
    train, valid = make_split(60, 90)
    split = SimpleNamespace(train=train, counted_train=train, valid=valid)  # and no `test`
    notes = [build()[1] for build in build_baseline_factories(split, 90, Popularity(train, 90)).values()]
    assert [note[:14] for note in notes] == ["EASE has l2 = ", "", ""]
