import numpy as np
import pytest

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation import sampling
from vecall.evaluation.sampling import SAMPLE_SIZE, describe_users, sample_cases, select_test_cases


def make_cases(count):
    rows = RaggedArray(np.arange(count + 1), np.arange(count))
    return EvalCases(np.arange(count), rows, rows)


def test_sample_is_the_same_each_time_and_in_the_order_of_the_cases():
    cases = make_cases(3 * SAMPLE_SIZE)
    sample = sample_cases(cases)
    assert len(sample) == SAMPLE_SIZE
    assert (np.diff(sample.users) > 0).all()
    np.testing.assert_array_equal(sample_cases(cases).users, sample.users)
    np.testing.assert_array_equal(sample.histories.values, sample.users)
    assert abs(sample.users.mean() / len(cases) - 0.5) < 0.01
    few = make_cases(SAMPLE_SIZE)
    assert sample_cases(few) is few


@pytest.mark.parametrize(("n_items", "all_users", "expected"), [(50, False, 20), (51, False, 6), (51, True, 20)])
def test_test_cases_are_sampled_beyond_a_number_of_pairs(monkeypatch, n_items, all_users, expected):
    monkeypatch.setattr(sampling, "MAX_FULL_PAIRS", 1000)
    monkeypatch.setattr(sampling, "SAMPLE_SIZE", 6)
    assert len(select_test_cases(make_cases(20), n_items, all_users=all_users)) == expected


def test_texts_tell_a_sample_from_all_users():
    assert describe_users(1000, 1000) == "1,000 users"
    assert describe_users(10, 1000) == "10 of 1,000 users, a fixed random sample,"
