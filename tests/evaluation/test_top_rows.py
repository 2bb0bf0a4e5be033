import numpy as np
import pytest

from vecall.evaluation.top_rows import TopRows


@pytest.mark.parametrize("depth", [1, 4, 50])
def test_best_rows_are_kept_in_order_whatever_the_chunks(depth):
    rng = np.random.default_rng(depth)
    n_users, n_items = 5, 200
    scores = rng.choice(np.array([-np.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, np.inf], np.float32), (n_users, n_items))
    top_rows, order = TopRows(n_users, depth), rng.permutation(n_items)
    for columns in np.split(order, [1, 2, 60, 61, 140]):
        is_added = np.zeros((n_users, n_items), dtype=bool)
        is_added[:, columns] = True
        is_added[4, 3:] = False  # this user has three rows
        users, rows = np.nonzero(is_added)
        top_rows.add(users, rows, scores[users, rows])
    rows, kept = top_rows.sort()
    for user in range(n_users):
        candidates = range(3) if user == 4 else range(n_items)
        expected = sorted(candidates, key=lambda row: (-scores[user, row], row))[:depth]
        assert rows[user, : len(expected)].tolist() == expected
        np.testing.assert_array_equal(kept[user, : len(expected)], scores[user, expected])
        assert (rows[user, len(expected) :] == -1).all()
        assert np.isnan(kept[user, len(expected) :]).all()
    assert np.isnan(top_rows.thresholds[4, 0]) == (depth > 3)
    assert top_rows.thresholds[0, 0] == kept[0, -1]
