import tracemalloc

import numpy as np
import pytest
from support.dense_evaluation import to_dense as score_all

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import ConfigError
from vecall.evaluation.baselines import Ease, Popularity


def make_random_lists(users, items, seed=0):
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    return RaggedArray.from_lists(
        [rng.choice(items, rng.integers(0, 12), p=weights / weights.sum()) for _ in range(users)]
    )


def make_cases(histories):
    return EvalCases(np.arange(len(histories)), histories, RaggedArray.from_lists([[0]] * len(histories)))


def to_dense(lists, items):
    matrix = np.zeros((len(lists), items))
    matrix[lists.segment_ids, lists.values] = 1.0
    return matrix


@pytest.mark.parametrize(("users", "items"), [(25, 70), (70, 25), (40, 40)])
@pytest.mark.parametrize("l2", [0.5, 30.0])
def test_ease_equals_its_textbook_formula_in_primal_and_dual_form(users, items, l2):
    train, histories = make_random_lists(users, items), make_random_lists(9, items, seed=1)
    x = to_dense(train, items)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    score_block = Ease(train, items, l2)(make_cases(histories))
    scores = score_block(0, items)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, to_dense(histories, items) @ weights, atol=2e-4)
    np.testing.assert_array_equal(score_block(7, 20), scores[:, 7:20])


def test_ease_with_few_users_allocates_no_item_by_item_matrix():
    items = 20_000  # 1.6 GB if it did
    train = make_random_lists(50, items)
    tracemalloc.start()
    Ease(train, items)(make_cases(train.take(np.arange(4))))(0, items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_ease_refuses_invalid_l2_and_too_large_data(monkeypatch):
    with pytest.raises(ConfigError, match="expected a positive l2"):
        Ease(make_random_lists(5, 5), 5, 0.0)
    monkeypatch.setattr("vecall.evaluation.baselines.MAX_EASE_DIM", 10)
    with pytest.raises(ConfigError, match="expected at most 10 of either, got 188 users and 20 items"):
        Ease(make_random_lists(200, 20), 20)


def test_popularity_counts_users_not_events():
    scorer = Popularity(RaggedArray.from_lists([[0, 0, 0, 1], [1], []]), 3)
    scores = score_all(scorer, make_cases(RaggedArray.from_lists([[0], []])), 3)
    assert scores.tolist() == [[1, 2, 0], [1, 2, 0]]
    assert scores.dtype == np.float32
