import tracemalloc

import numpy as np
import pytest

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import ConfigError
from vecall.evaluation.baselines import Ease, Popularity, RecentCooccurrence


def random_lists(users, items, seed=0):
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    return RaggedArray.from_lists(
        [rng.choice(items, rng.integers(0, 12), p=weights / weights.sum()) for _ in range(users)]
    )


def as_cases(histories):
    return EvalCases(np.arange(len(histories)), histories, RaggedArray.from_lists([[0]] * len(histories)))


def dense(lists, items):
    x = np.zeros((len(lists), items))
    x[lists.owners, lists.rows] = 1.0
    return x


@pytest.mark.parametrize(("users", "items"), [(25, 70), (70, 25), (40, 40)])
@pytest.mark.parametrize("l2", [0.5, 30.0])
def test_ease_is_the_textbook_one_on_both_paths(users, items, l2):
    train, histories = random_lists(users, items), random_lists(9, items, seed=1)
    x = dense(train, items)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    scores = Ease(train, items, l2)(as_cases(histories))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, dense(histories, items) @ weights, atol=2e-4)


def test_ease_never_holds_items_by_items_when_users_are_few():
    items = 20_000  # 1.6 GB if it did
    train = random_lists(50, items)
    tracemalloc.start()
    Ease(train, items)(as_cases(train.take(np.arange(4))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_ease_refuses_what_it_cannot_do(monkeypatch):
    with pytest.raises(ConfigError, match="l2"):
        Ease(random_lists(5, 5), 5, 0.0)
    monkeypatch.setattr("vecall.evaluation.baselines.EASE_LIMIT", 10)
    with pytest.raises(ConfigError, match="188 users and 20 items, and it can hold 10"):
        Ease(random_lists(200, 20), 20)


def test_popularity_counts_users_not_events():
    scores = Popularity(RaggedArray.from_lists([[0, 0, 0, 1], [1], []]), 3)(as_cases(RaggedArray.from_lists([[0], []])))
    assert scores.tolist() == [[1, 2, 0], [1, 2, 0]]
    assert scores.dtype == np.float32


def test_recent_cooccurrence_is_its_formula():
    items, recent, decay, window = 12, 3, 0.7, 4
    train, histories = random_lists(30, items), random_lists(8, items, seed=1)
    near = np.zeros((items, items))
    for history in (train[user] for user in range(len(train))):
        for a in range(len(history)):
            for b in range(a + 1, min(a + window + 1, len(history))):
                if history[a] != history[b]:
                    near[history[a], history[b]] += (b - a) ** -0.5
                    near[history[b], history[a]] += (b - a) ** -0.5
    users = np.maximum(dense(train, items).sum(axis=0), 1)
    expected = np.zeros((len(histories), items))
    for user in range(len(histories)):
        for age, row in enumerate(histories[user][::-1][:recent]):
            expected[user] += decay**age * near[row] / np.sqrt(users[row] * users)
    scorer = RecentCooccurrence(train, items, n_recent=recent, decay=decay, window=window)
    scores = scorer(as_cases(histories))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
