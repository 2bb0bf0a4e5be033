import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecall.index.topk import select_top_k_batch, sort_hits

# Few distinct values, so that nearly every draw has ties at position k.
score_tables = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40).filter(lambda shape: shape[1] > 0),
    elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 3.0]),
)


def sort_pairs(pairs, k):
    """The (row, score) pairs of one query in the order of hits, by a plain sort, padded to k."""
    best = sorted(((row, score) for row, score in pairs if score > -np.inf), key=lambda pair: (-pair[1], pair[0]))[:k]
    return best + [(-1, -np.inf)] * (k - len(best))


def to_pairs(hits, b):
    return list(zip(hits.rows[b].tolist(), hits.scores[b].tolist(), strict=True))


@given(score_tables, st.integers(1, 50))
def test_top_k_equals_a_plain_sort(scores, k):
    before = scores.copy()
    hits = select_top_k_batch(scores, k)
    assert hits.rows.shape == hits.scores.shape == (len(scores), k)
    assert (hits.rows.dtype, hits.scores.dtype) == (np.int64, np.float32)
    for b, query_scores in enumerate(scores.tolist()):
        assert to_pairs(hits, b) == sort_pairs(enumerate(query_scores), k)
    np.testing.assert_array_equal(scores, before)


@given(score_tables, st.integers(1, 50), st.randoms(use_true_random=False))
def test_sorted_hits_equal_a_plain_sort(scores, k, random):
    rows = np.array([random.sample(range(100), scores.shape[1]) for _ in scores]).reshape(scores.shape)
    rows[scores == -np.inf] = -1
    hits = sort_hits(rows, scores, k)
    for b in range(len(scores)):
        assert to_pairs(hits, b) == sort_pairs(zip(rows[b].tolist(), scores[b].tolist(), strict=True), k)


@pytest.mark.parametrize("k", [1, 3, 4, 6])
def test_ties_at_position_k_go_to_the_lowest_rows(k):
    scores = np.array([[1, 2, 1, 2, 1]], dtype=np.float32)
    assert select_top_k_batch(scores, k).rows[0].tolist() == [1, 3, 0, 2, 4, -1][:k]


def test_padding_is_sorted_last():
    rows = np.array([[7, -1, 2, 9]])
    scores = np.array([[-5, -np.inf, -5, -6]], dtype=np.float32)
    hits = sort_hits(rows, scores, 5)
    assert hits.rows.tolist() == [[2, 7, 9, -1, -1]]
    assert hits.scores.tolist() == [[-5, -5, -6, -np.inf, -np.inf]]
