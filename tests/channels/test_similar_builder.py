"""The table of the channel `similar`, compared with the similarity of all pairs in memory."""

import numpy as np
import pytest
from support.item_pairs import compute_similarity_at_once, make_random_lists, weigh_pairs_at_once

from vecall.channels import similar_builder
from vecall.channels.item_pairs import weigh_gaps
from vecall.channels.neighbors import MAX_SHARE
from vecall.channels.similar_builder import WINDOW, build_similar_items, limit_neighbors
from vecall.channels.similar_items import SIMILARITY_SCALE
from vecall.data.ragged import RaggedArray, offsets_from_lengths


@pytest.mark.parametrize(("users", "items", "longest", "max_neighbors"), [(60, 40, 12, 100), (300, 60, 51, 5)])
def test_neighbors_are_the_most_similar_in_order(users, items, longest, max_neighbors, monkeypatch):
    monkeypatch.setattr(similar_builder, "MAX_NEIGHBORS", max_neighbors)
    monkeypatch.setattr(similar_builder, "_MAX_NEIGHBORS_OF_SMALL", max_neighbors)
    monkeypatch.setattr(similar_builder, "_MAX_RANGE_ITEMS", 7)
    histories = make_random_lists(users, items, longest=longest)
    expected = compute_similarity_at_once(histories, items, weigh_gaps(WINDOW))
    near = weigh_pairs_at_once(histories, items, weigh_gaps(WINDOW)).toarray()
    similar = build_similar_items(histories, items)
    assert (len(similar), similar.rows.dtype, similar.scores.dtype) == (items, np.int32, np.float16)
    for item in range(items):
        rows, similarities = similar.get_neighbors(item)
        stored = similarities.tolist()
        assert len(set(rows.tolist())) == len(rows) == min(max_neighbors, np.count_nonzero(expected[item]))
        np.testing.assert_allclose(stored, expected[item, rows], rtol=1e-3)  # rounded to float16
        assert list(zip(stored, rows, strict=True)) == sorted(
            zip(stored, rows, strict=True), key=lambda pair: (-pair[0], pair[1])
        )
        np.testing.assert_allclose(stored, np.sort(expected[item])[::-1][: len(rows)], rtol=1e-3)
        shares = similar.later_shares[similar.offsets[item] : similar.offsets[item + 1]]
        np.testing.assert_allclose(shares, MAX_SHARE * near[item, rows] / (near + near.T)[item, rows], atol=0.501)


@pytest.mark.parametrize(
    ("n_items", "expected"), [(0, 1_000), (20_000, 1_000), (100_000, 200), (200_000, 100), (10**7, 100)]
)
def test_items_of_small_catalogues_keep_more_neighbors(n_items, expected):
    assert limit_neighbors(n_items) == expected


def test_scores_stay_within_the_normal_numbers_of_float16():
    """A pair that is far apart in histories of popular items, and two items that a user took again and again."""
    lists = [[0, *range(4, 53), 1], [2, 3] * 5_000]
    values = np.concatenate([np.tile([0, 1], 200_000), *lists]).astype(np.int32)
    lengths = np.array([1] * 400_000 + [len(history) for history in lists])
    similar = build_similar_items(RaggedArray(offsets_from_lengths(lengths), values), 53)
    rows, similarities = similar.get_neighbors(0)
    assert 50**-0.5 / 200_001 < similarities[rows == 1] == 2**-14 / SIMILARITY_SCALE
    rows, similarities = similar.get_neighbors(2)
    assert (rows.tolist(), similarities.tolist()) == ([3], [65504 / SIMILARITY_SCALE])


def test_nothing_is_built_from_histories_of_single_items(tmp_path):
    assert build_similar_items(RaggedArray.from_lists([[1], [], [2, 2]]), 4, scratch_dir=tmp_path) is None
    assert build_similar_items(RaggedArray.from_lists([]), 0) is None


def test_no_file_is_left(tmp_path):
    similar = build_similar_items(RaggedArray.from_lists([[0, 2]]), 3, scratch_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (similar.offsets.tolist(), similar.rows.tolist()) == ([0, 1, 1, 2], [2, 0])
    assert similar.scores.tolist() == [64, 64]
    assert similar.later_shares.tolist() == [MAX_SHARE, 0]


@pytest.mark.parametrize("max_neighbors", [100, 6])
def test_second_order_adds_the_neighbors_of_neighbors(max_neighbors, monkeypatch):
    monkeypatch.setattr(similar_builder, "MAX_NEIGHBORS", max_neighbors)
    monkeypatch.setattr(similar_builder, "_MAX_NEIGHBORS_OF_SMALL", max_neighbors)
    monkeypatch.setattr(similar_builder, "_MAX_RANGE_ITEMS", 7)
    histories = make_random_lists(40, 50, longest=5)
    first = to_dense(build_similar_items(histories, 50))
    similar = build_similar_items(histories, 50, second_order=0.5)
    similarities, shares = (matrix[0] for matrix in (first, first[1:]))
    expected = similarities + 0.5 * similarities @ similarities
    np.fill_diagonal(expected, 0)
    assert np.count_nonzero(expected) > np.count_nonzero(similarities)
    found, found_shares = to_dense(similar)
    is_found = found > 0
    np.testing.assert_allclose(found[is_found], expected[is_found], rtol=1e-3)
    np.testing.assert_allclose(
        found_shares[is_found], (shares * similarities)[is_found] / expected[is_found], atol=0.501 + 0.255
    )
    for item in range(50):
        kept = min(max_neighbors, np.count_nonzero(expected[item]))
        assert np.count_nonzero(found[item]) == kept
        np.testing.assert_allclose(np.sort(found[item])[-kept:], np.sort(expected[item])[-kept:], rtol=1e-3)


def to_dense(similar):
    """Return similarities and later shares as two matrices [N, N]."""
    matrices = np.zeros((2, len(similar), len(similar)))
    for item in range(len(similar)):
        part = slice(similar.offsets[item], similar.offsets[item + 1])
        rows, similarities = similar.get_neighbors(item)
        matrices[:, item, rows] = similarities, similar.later_shares[part]
    return matrices
