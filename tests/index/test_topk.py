import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecall.index.base import Hits
from vecall.index.topk import merge_hits, select_top_k_batch

# Few different numbers, so that nearly every draw has ties at place k.
scores = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40).filter(lambda shape: shape[1] > 0),
    elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 3.0]),
)


def plainly_sorted(pairs, k):
    """One query's (row, score) pairs in the order that answers have, by a plain sort."""
    found = sorted(((r, s) for r, s in pairs if s > -np.inf), key=lambda pair: (-pair[1], pair[0]))[:k]
    return found + [(-1, -np.inf)] * (k - len(found))


def pairs_of(hits, b):
    return list(zip(hits.rows[b].tolist(), hits.scores[b].tolist(), strict=True))


@given(scores, st.integers(1, 50))
def test_top_k_is_a_plain_sort(table, k):
    before = table.copy()
    hits = select_top_k_batch(table, k)
    assert hits.rows.shape == hits.scores.shape == (len(table), k)
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    for b, line in enumerate(table.tolist()):
        assert pairs_of(hits, b) == plainly_sorted(enumerate(line), k)
    np.testing.assert_array_equal(table, before)


@given(scores, st.integers(1, 50), st.integers(1, 50), st.integers(0, 40))
def test_merged_parts_are_the_whole(table, k, cut_k, cut):
    """Rows cut in two, each answered, merged: as if they had never been cut."""
    width = max(k, cut_k)
    parts = [select_top_k_batch(half, width) for half in (table[:, :cut], table[:, cut:]) if half.shape[1]]
    if cut < table.shape[1]:
        late = parts[-1].rows
        late[late >= 0] += cut
    whole = select_top_k_batch(table, k)
    merged = merge_hits(parts, k)
    np.testing.assert_array_equal(merged.rows, whole.rows)
    np.testing.assert_array_equal(merged.scores, whole.scores)


@pytest.mark.parametrize("k", [1, 3, 4, 6])
def test_equal_scores_at_place_k_go_to_the_lowest_rows(k):
    table = np.array([[1, 2, 1, 2, 1]], dtype=np.float32)
    assert select_top_k_batch(table, k).rows[0].tolist() == [1, 3, 0, 2, 4, -1][:k]


def test_merge_puts_empty_places_last():
    none = np.float32(-np.inf)
    parts = [
        Hits(np.array([[7, -1]]), np.array([[-5, none]], dtype=np.float32)),
        Hits(np.array([[2, 9]]), np.array([[-5, -6]], dtype=np.float32)),
    ]
    merged = merge_hits(parts, 5)
    assert merged.rows.tolist() == [[2, 7, 9, -1, -1]]
    assert merged.scores.tolist() == [[-5, -5, -6, none, none]]
