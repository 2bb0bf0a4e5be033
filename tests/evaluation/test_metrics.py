import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.errors import ConfigError, DataError, TrainingError
from vecall.evaluation.metrics import coverage_at_k, ndcg_at_k, rank_targets, recall_at_k, select_top_rows

SCORES = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.5, 0.5, 0.5, 0.2]], dtype=np.float32)


def rank_targets_slowly(scores, targets, seen):
    ranks = []
    for user, row in enumerate(scores):
        excluded = set() if seen is None else set(seen[user].tolist())
        for target in targets[user].tolist():
            others = [j for j in range(len(row)) if j != target and j not in excluded]
            ranks.append(sum(row[j] >= row[target] for j in others))
    return ranks


@st.composite
def ranking_cases(draw):
    users, items = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    few = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])  # few values make many ties
    scores = np.array(draw(st.lists(st.lists(few, min_size=items, max_size=items), min_size=users, max_size=users)))
    row = st.integers(0, items - 1)
    targets = [draw(st.lists(row, unique=True, max_size=3)) for _ in range(users)]
    seen = [[r for r in draw(st.lists(row, max_size=6)) if r not in held_out] for held_out in targets]  # with repeats
    return scores.astype(np.float32), RaggedArray.from_lists(targets), RaggedArray.from_lists(seen)


@given(ranking_cases(), st.booleans())
def test_ranks_equal_a_slow_count(case, exclude):
    scores, targets, seen = case
    before = scores.copy()
    ranks = rank_targets(scores, targets, seen if exclude else None)
    assert ranks.tolist() == rank_targets_slowly(scores, targets, seen if exclude else None)
    np.testing.assert_array_equal(scores, before)


@given(ranking_cases(), st.integers(1, 9))
def test_top_rows_are_the_best_unseen_rows(case, k):
    scores, _, seen = case
    for user, top in enumerate(select_top_rows(scores, seen, k)):
        unseen = [row for row in range(scores.shape[1]) if row not in seen[user]]
        filled = top[top >= 0]
        assert (top[len(filled) :] == -1).all()
        assert filled.tolist() == sorted(unseen, key=lambda row: (-scores[user, row], row))[:k]


def test_ranks_computed_by_hand():
    targets = RaggedArray.from_lists([[3, 1], [2]])
    assert rank_targets(SCORES, targets, None).tolist() == [3, 1, 2]  # rows 1 and 3 tie with row 2 and rank above it
    assert rank_targets(SCORES, targets, RaggedArray.from_lists([[0, 0, 2], [1]])).tolist() == [1, 0, 1]


def test_recall_is_divided_by_the_number_of_targets_and_not_by_k():
    ranks, offsets = np.array([0, 7, 3]), np.array([0, 2, 3])
    assert recall_at_k(ranks, offsets, 1) == pytest.approx((1 / 2 + 0) / 2)
    assert recall_at_k(ranks, offsets, 3) == pytest.approx((1 / 2 + 0) / 2)  # ranks count from 0
    assert recall_at_k(ranks, offsets, 5) == pytest.approx((1 / 2 + 1) / 2)
    assert recall_at_k(ranks, offsets, 100) == 1.0


def test_users_without_targets_are_not_averaged():
    assert recall_at_k(np.array([0]), np.array([0, 0, 1, 1]), 1) == 1.0
    with pytest.raises(DataError, match="none of 2 users"):
        recall_at_k(np.array([], dtype=np.int64), np.array([0, 0, 0]), 1)


def test_ndcg_computed_by_hand():
    ranks, offsets = np.array([0, 2, 5]), np.array([0, 2, 3])
    ideal_of_two = 1 + 1 / math.log2(3)
    assert ndcg_at_k(ranks, offsets, 3) == pytest.approx(((1 + 1 / 2) / ideal_of_two + 0) / 2)
    assert ndcg_at_k(ranks, offsets, 1) == pytest.approx((1 + 0) / 2)  # the ideal has room for one of the two targets
    assert ndcg_at_k(np.array([0, 1]), np.array([0, 2]), 10) == pytest.approx(1.0)


def test_coverage_computed_by_hand():
    top = np.array([[0, 1, 2], [0, 3, -1]])
    assert coverage_at_k(top, 5, 1) == pytest.approx(1 / 5)
    assert coverage_at_k(top, 5, 2) == pytest.approx(3 / 5)
    assert coverage_at_k(top, 5, 3) == pytest.approx(4 / 5)


@pytest.mark.parametrize("constant", [0.0, 1.0, -math.inf, math.inf])
def test_constant_scores_have_zero_recall(constant):
    scores = np.full((3, 20), constant, dtype=np.float32)
    targets = RaggedArray.from_lists([[0], [7, 8], [19]])
    ranks = rank_targets(scores, targets, RaggedArray.from_lists([[3], [], [5]]))
    assert recall_at_k(ranks, targets.offsets, 10) == 0.0
    assert ndcg_at_k(ranks, targets.offsets, 10) == 0.0


def test_invalid_scores_and_lists_are_refused():
    with_nan = SCORES.copy()
    with_nan[1, 4] = np.nan
    targets = RaggedArray.from_lists([[0], [1]])
    with pytest.raises(TrainingError, match="1 of 10 scores are NaN"):
        rank_targets(with_nan, targets, None)
    with pytest.raises(DataError, match="user 1"):
        rank_targets(SCORES, targets, RaggedArray.from_lists([[], [1]]))
    with pytest.raises(DataError, match="of the 5 scored items"):
        rank_targets(SCORES, RaggedArray.from_lists([[0], [5]]), None)
    with pytest.raises(DataError, match="of the 5 scored items"):
        rank_targets(SCORES, targets, RaggedArray.from_lists([[], [-1]]))
    with pytest.raises(DataError, match=r"expected 2 lists of targets, .*got 1"):
        rank_targets(SCORES, RaggedArray.from_lists([[0]]), None)
    with pytest.raises(ConfigError, match="at least 1"):
        recall_at_k(np.array([0]), np.array([0, 1]), 0)
