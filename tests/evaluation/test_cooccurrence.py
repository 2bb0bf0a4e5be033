import numpy as np
from support.dense_evaluation import to_dense
from support.item_pairs import compute_similarity_at_once, make_random_lists

from vecall.channels.item_pairs import weigh_gaps
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation import cooccurrence
from vecall.evaluation.cooccurrence import RecentCooccurrence


def make_cases(histories):
    return EvalCases(np.arange(len(histories)), histories, RaggedArray.from_lists([[0]] * len(histories)))


def test_scores_equal_their_formula():
    items, n_recent, decay, window = 12, 3, 0.7, 4
    train, histories = make_random_lists(30, items), make_random_lists(8, items, seed=1)
    near = np.zeros((items, items))
    for history in (train[user] for user in range(len(train))):
        for a in range(len(history)):
            for b in range(a + 1, min(a + window + 1, len(history))):
                if history[a] != history[b]:
                    near[history[a], history[b]] += (b - a) ** -0.5
                    near[history[b], history[a]] += (b - a) ** -0.5
    users = np.maximum([sum(item in train[user] for user in range(30)) for item in range(items)], 1)
    expected = np.zeros((len(histories), items))
    for user in range(len(histories)):
        for age, row in enumerate(histories[user][::-1][:n_recent]):
            expected[user] += decay**age * near[row] / np.sqrt(users[row] * users)
    scorer = RecentCooccurrence(train, items, n_recent=n_recent, decay=decay, window=window)
    score_block = scorer(make_cases(histories))
    scores = score_block(0, items)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(score_block(5, 9), scores[:, 5:9])


def test_small_matrix_is_uncapped():
    train = make_random_lists(300, 80, longest=60)
    scorer = RecentCooccurrence(train, 80, max_neighbors=2)
    assert not scorer.is_capped
    expected = compute_similarity_at_once(train, 80, weigh_gaps(50))
    np.testing.assert_array_equal(scorer._similarity.toarray(), expected)


def test_large_matrix_keeps_the_best_neighbors_of_each_item(monkeypatch):
    items, max_neighbors = 60, 5
    train, histories = make_random_lists(200, items, longest=40), make_random_lists(8, items, seed=1)
    full = compute_similarity_at_once(train, items, weigh_gaps(50))
    monkeypatch.setattr(cooccurrence, "_MAX_UNCAPPED_ENTRIES", items)
    scorer = RecentCooccurrence(train, items, max_neighbors=max_neighbors)
    assert scorer.is_capped
    capped = scorer._similarity.toarray()
    for item in range(items):
        kept = np.flatnonzero(capped[item])
        assert len(kept) == min(max_neighbors, np.count_nonzero(full[item]))
        np.testing.assert_array_equal(capped[item, kept], full[item, kept])
        np.testing.assert_array_equal(np.sort(capped[item, kept])[::-1], np.sort(full[item])[::-1][: len(kept)])
    assert to_dense(scorer, make_cases(histories), items).any()
    assert scorer._similarity.nnz <= items * max_neighbors


def test_items_and_histories_may_be_empty():
    scorer = RecentCooccurrence(RaggedArray.from_lists([[], [1]]), 3)
    assert to_dense(scorer, make_cases(RaggedArray.from_lists([[], [1, 2]])), 3).tolist() == [[0, 0, 0], [0, 0, 0]]
    scorer = RecentCooccurrence(RaggedArray.from_lists([[], []]), 3)
    assert to_dense(scorer, make_cases(RaggedArray.from_lists([[]])), 3).tolist() == [[0, 0, 0]]
