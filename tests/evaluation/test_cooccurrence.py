import numpy as np
import pytest
from scipy import sparse
from support.dense_evaluation import to_dense

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation import cooccurrence
from vecall.evaluation.baselines import build_interaction_matrix
from vecall.evaluation.cooccurrence import RecentCooccurrence


def make_random_lists(users, items, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, items + 1)
    return RaggedArray.from_lists(
        [rng.choice(items, rng.integers(0, longest), p=weights / weights.sum()) for _ in range(users)]
    )


def make_cases(histories):
    return EvalCases(np.arange(len(histories)), histories, RaggedArray.from_lists([[0]] * len(histories)))


def compute_similarity_at_once(train, n_items, window):
    """The item-item matrix from all pairs in memory, 50 per interaction: the oracle, to the last bit."""
    rows, owners, shape = train.values, train.segment_ids, (n_items, n_items)
    near = sparse.csr_array(shape, dtype=np.float32)
    for gap in range(1, min(window, len(rows) - 1) + 1):
        is_pair = (owners[gap:] == owners[:-gap]) & (rows[gap:] != rows[:-gap])
        earlier, later = rows[:-gap][is_pair], rows[gap:][is_pair]
        weights = np.full(len(later), gap**-0.5, dtype=np.float32)
        near += sparse.coo_array((weights, (earlier, later)), shape=shape).tocsr()
    scale = np.maximum(build_interaction_matrix(train, n_items).sum(axis=0), 1.0).astype(np.float32) ** -0.5
    return (sparse.diags_array(scale) @ (near + near.T) @ sparse.diags_array(scale)).tocsr()


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


@pytest.mark.parametrize(("users", "items", "longest", "window"), [(300, 80, 60, 50), (40, 500, 9, 3), (3, 5, 2, 50)])
def test_small_matrix_is_uncapped_and_equals_that_of_all_pairs_bit_by_bit(users, items, longest, window):
    train = make_random_lists(users, items, longest=longest)
    scorer = RecentCooccurrence(train, items, window=window, max_neighbors=2)
    expected = compute_similarity_at_once(train, items, window)
    assert not scorer.is_capped
    np.testing.assert_array_equal(scorer._similarity.toarray(), expected.toarray())


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    train = make_random_lists(100, 50, longest=30)
    matrices = []
    for threads in (1, 3):
        monkeypatch.setattr(cooccurrence, "_count_threads", lambda threads=threads: threads)
        matrices.append(RecentCooccurrence(train, 50)._similarity.toarray())
    np.testing.assert_array_equal(*matrices)


def test_large_matrix_keeps_the_best_neighbors_of_each_item(monkeypatch):
    items, max_neighbors = 60, 5
    train, histories = make_random_lists(200, items, longest=40), make_random_lists(8, items, seed=1)
    full = compute_similarity_at_once(train, items, 50).toarray()
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
