import numpy as np
import pytest
from scipy import sparse
from support.item_pairs import compute_similarity_at_once, make_random_lists, weigh_pairs_at_once

from vecall.channels import item_pairs
from vecall.channels.item_pairs import ItemPairs, weigh_gaps
from vecall.channels.neighbors import MAX_SHARE
from vecall.data.ragged import RaggedArray


def to_dense(collected, n_columns):
    offsets, rows, similarities = collected
    return sparse.csr_array((similarities, rows, offsets), shape=(len(offsets) - 1, n_columns)).toarray()


@pytest.mark.parametrize(("users", "items", "longest", "window"), [(300, 80, 60, 50), (40, 500, 9, 3), (3, 5, 2, 50)])
def test_similarity_equals_that_of_all_pairs_bit_by_bit(users, items, longest, window):
    histories = make_random_lists(users, items, longest=longest)
    pairs = ItemPairs(histories, items, weigh_gaps(window))
    collected = pairs.collect_all(pairs.bound_neighbors((0, items)))
    expected = compute_similarity_at_once(histories, items, weigh_gaps(window))
    np.testing.assert_array_equal(to_dense(collected, items), expected)
    *part, later_shares = pairs.collect((2, 5), pairs.bound_neighbors((2, 5)))
    np.testing.assert_array_equal(to_dense(part, items), expected[2:5])
    near = weigh_pairs_at_once(histories, items, weigh_gaps(window)).toarray()
    expected_shares = near / np.where(near + near.T > 0, near + near.T, 1)
    shares = to_dense((*part[:2], later_shares.astype(np.float64)), items)
    np.testing.assert_allclose(shares, MAX_SHARE * expected_shares[2:5], atol=0.501)


def test_result_does_not_depend_on_the_number_of_threads(monkeypatch):
    pairs = ItemPairs(make_random_lists(100, 50, longest=30), 50, weigh_gaps(50))
    matrices = []
    for threads in (1, 3):
        monkeypatch.setattr(item_pairs, "count_threads", lambda threads=threads: threads)
        matrices.append(to_dense(pairs.collect_all(pairs.bound_neighbors((0, 50))), 50))
    np.testing.assert_array_equal(*matrices)


def test_best_neighbors_are_kept_within_the_limits():
    histories = make_random_lists(200, 60, longest=40)
    pairs = ItemPairs(histories, 60, weigh_gaps(50))
    limits = np.minimum(np.arange(60) % 7, pairs.bound_neighbors((0, 60)))
    kept = to_dense(pairs.collect_all(limits), 60)
    full = compute_similarity_at_once(histories, 60, weigh_gaps(50))
    for item in range(60):
        columns = np.flatnonzero(kept[item])
        assert len(columns) == min(limits[item], np.count_nonzero(full[item]))
        np.testing.assert_array_equal(kept[item, columns], full[item, columns])
        np.testing.assert_array_equal(
            np.sort(kept[item])[::-1][:7],
            np.sort(full[item] * 1)[::-1][: limits[item]].tolist() + [0] * (7 - limits[item]),
        )


def test_ranges_cover_all_items_and_are_short_enough():
    pairs = ItemPairs(make_random_lists(100, 50), 50, weigh_gaps(3))
    ranges = pairs.divide_items(4)
    assert [item for first, last in ranges for item in range(first, last)] == list(range(50))
    assert max(last - first for first, last in ranges) <= 4
    assert ItemPairs(RaggedArray.from_lists([[], []]), 0, weigh_gaps(3)).divide_items() == []
