import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.errors import ConfigError, DataError, TrainingError
from vecall.evaluation.metrics import coverage_at_k, ndcg_at_k, rank_targets, recall_at_k, select_top_rows

SCORES = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.5, 0.5, 0.5, 0.2]], dtype=np.float32)


def slow_ranks(scores, targets, seen):
    ranks = []
    for user, row in enumerate(scores):
        hidden = set() if seen is None else set(seen[user].tolist())
        for target in targets[user].tolist():
            others = [j for j in range(len(row)) if j != target and j not in hidden]
            ranks.append(sum(row[j] >= row[target] for j in others))
    return ranks


@st.composite
def judged(draw):
    users, items = draw(st.integers(1, 4)), draw(st.integers(2, 8))
    few = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])  # few values make many ties
    scores = np.array(draw(st.lists(st.lists(few, min_size=items, max_size=items), min_size=users, max_size=users)))
    row = st.integers(0, items - 1)
    targets = [draw(st.lists(row, unique=True, max_size=3)) for _ in range(users)]
    seen = [[r for r in draw(st.lists(row, max_size=6)) if r not in held] for held in targets]  # with repeats
    return scores.astype(np.float32), RaggedArray.from_lists(targets), RaggedArray.from_lists(seen)


@given(judged(), st.booleans())
def test_ranks_are_those_of_the_slow_count(case, exclude):
    scores, targets, seen = case
    before = scores.copy()
    ranks = rank_targets(scores, targets, seen if exclude else None)
    assert ranks.tolist() == slow_ranks(scores, targets, seen if exclude else None)
    np.testing.assert_array_equal(scores, before)


@given(judged(), st.integers(1, 9))
def test_top_rows_are_the_best_unseen_ones(case, k):
    scores, _, seen = case
    for user, top in enumerate(select_top_rows(scores, seen, k)):
        unseen = [row for row in range(scores.shape[1]) if row not in seen[user]]
        filled = top[top >= 0]
        assert (top[len(filled) :] == -1).all()
        assert filled.tolist() == sorted(unseen, key=lambda row: (-scores[user, row], row))[:k]


def test_ranks_by_hand():
    targets = RaggedArray.from_lists([[3, 1], [2]])
    assert rank_targets(SCORES, targets, None).tolist() == [3, 1, 2]  # rows 1 and 3 tie with row 2 and go before it
    assert rank_targets(SCORES, targets, RaggedArray.from_lists([[0, 0, 2], [1]])).tolist() == [1, 0, 1]


def test_recall_is_never_divided_by_k():
    ranks, offsets = np.array([0, 7, 3]), np.array([0, 2, 3])
    assert recall_at_k(ranks, offsets, 1) == pytest.approx((1 / 2 + 0) / 2)
    assert recall_at_k(ranks, offsets, 3) == pytest.approx((1 / 2 + 0) / 2)  # rank 3 is the fourth place
    assert recall_at_k(ranks, offsets, 5) == pytest.approx((1 / 2 + 1) / 2)
    assert recall_at_k(ranks, offsets, 100) == 1.0


def test_users_without_targets_do_not_count():
    assert recall_at_k(np.array([0]), np.array([0, 0, 1, 1]), 1) == 1.0
    with pytest.raises(DataError, match="none of 2 users"):
        recall_at_k(np.array([], dtype=np.int64), np.array([0, 0, 0]), 1)


def test_ndcg_by_hand():
    ranks, offsets = np.array([0, 2, 5]), np.array([0, 2, 3])
    ideal_of_two = 1 + 1 / math.log2(3)
    assert ndcg_at_k(ranks, offsets, 3) == pytest.approx(((1 + 1 / 2) / ideal_of_two + 0) / 2)
    assert ndcg_at_k(ranks, offsets, 1) == pytest.approx((1 + 0) / 2)  # one place can hold one of two targets
    assert ndcg_at_k(np.array([0, 1]), np.array([0, 2]), 10) == pytest.approx(1.0)


def test_coverage_by_hand():
    top = np.array([[0, 1, 2], [0, 3, -1]])
    assert coverage_at_k(top, 5, 1) == pytest.approx(1 / 5)
    assert coverage_at_k(top, 5, 2) == pytest.approx(3 / 5)
    assert coverage_at_k(top, 5, 3) == pytest.approx(4 / 5)


@pytest.mark.parametrize("constant", [0.0, 1.0, -math.inf, math.inf])
def test_a_constant_model_recalls_nothing(constant):
    scores = np.full((3, 20), constant, dtype=np.float32)
    targets = RaggedArray.from_lists([[0], [7, 8], [19]])
    ranks = rank_targets(scores, targets, RaggedArray.from_lists([[3], [], [5]]))
    assert recall_at_k(ranks, targets.offsets, 10) == 0.0
    assert ndcg_at_k(ranks, targets.offsets, 10) == 0.0


def test_what_cannot_be_judged_is_refused():
    broken = SCORES.copy()
    broken[1, 4] = np.nan
    one = RaggedArray.from_lists([[0], [1]])
    with pytest.raises(TrainingError, match="1 of 10 scores are NaN"):
        rank_targets(broken, one, None)
    with pytest.raises(DataError, match="user 1"):
        rank_targets(SCORES, one, RaggedArray.from_lists([[], [1]]))
    with pytest.raises(DataError, match="only 5 items"):
        rank_targets(SCORES, RaggedArray.from_lists([[0], [5]]), None)
    with pytest.raises(DataError, match="only 5 items"):
        rank_targets(SCORES, one, RaggedArray.from_lists([[], [-1]]))
    with pytest.raises(DataError, match="1 lists of targets"):
        rank_targets(SCORES, RaggedArray.from_lists([[0]]), None)
    with pytest.raises(ConfigError, match="at least 1"):
        recall_at_k(np.array([0]), np.array([0, 1]), 0)
