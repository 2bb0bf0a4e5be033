import math

import numpy as np
import pytest

from vecall.errors import ConfigError, DataError
from vecall.evaluation.metrics import compute_standard_error, coverage_at_k, ndcg_at_k, recall_at_k, recall_per_user


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


def test_standard_error_computed_by_hand():
    recalls = recall_per_user(np.array([0, 7, 3]), np.array([0, 2, 2, 3]), 5)
    assert recalls.tolist() == [0.5, 1.0]  # the user without targets does not count
    assert compute_standard_error(recalls) == pytest.approx(0.25)  # s = 0.5 / √2
    assert math.isnan(compute_standard_error(recalls[:1]))


def test_k_below_1_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        recall_at_k(np.array([0]), np.array([0, 1]), 0)
