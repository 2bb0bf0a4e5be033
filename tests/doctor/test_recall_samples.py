"""Recall per user against the evaluator, and the comparison of two scorers."""

import numpy as np
import pytest

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.doctor.context import RecallGap
from vecall.doctor.recall_samples import RecallSample, draw_cases, sample_recalls
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.sampling import shuffle_histories

N_ITEMS = 120


def make_cases(users=300, *, targets_in_history=False):
    rng = np.random.default_rng(0)
    rows = [rng.choice(N_ITEMS, 9, replace=False) for _ in range(users)]
    histories = RaggedArray.from_lists([row[: user % 7] for user, row in enumerate(rows)])
    targets = [row[:1] if targets_in_history else np.sort(row[7:]) for row in rows]
    return EvalCases(np.arange(users), histories, RaggedArray.from_lists(targets))


def make_scorer(seed=1):
    scores = np.random.default_rng(seed).standard_normal((1000, N_ITEMS)).astype(np.float32)
    return lambda cases: lambda start, stop: scores[cases.users, start:stop]


def test_mean_is_that_of_the_evaluator():
    cases = make_cases()
    sample = sample_recalls(make_scorer(), cases, N_ITEMS)
    result = evaluate_scorer(make_scorer(), cases, N_ITEMS, (12,), max_sample_users=300)
    assert np.nanmean(sample.recalls) == pytest.approx(result.seen_excluded["recall@12"])
    np.testing.assert_array_equal(sample.top_rows, result.sample.top_rows[:, :12])


def test_seen_items_are_ranked_if_all_targets_are_seen():
    cases = make_cases(targets_in_history=True).take(np.arange(1, 300, 7))
    sample = sample_recalls(make_scorer(), cases, N_ITEMS)
    result = evaluate_scorer(make_scorer(), cases, N_ITEMS, (12,))
    assert np.isnan(result.seen_excluded["recall@12"])
    assert sample.recalls.mean() == pytest.approx(result.seen_included["recall@12"])


def test_difference_is_paired_over_users():
    first = RecallSample(np.array([1.0, 0.0, np.nan, 1.0]), np.zeros((4, 1), dtype=np.int64))
    second = RecallSample(np.array([0.0, 0.0, np.nan, 1.0]), first.top_rows)
    gap = first.compare(second)
    assert (gap.recall, gap.other_recall) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert gap.standard_error == pytest.approx(np.std([1.0, 0.0, 0.0], ddof=1) / np.sqrt(3))


@pytest.mark.parametrize(
    ("other", "is_above", "is_below"), [(0.2, True, False), (0.35, False, False), (0.6, False, True)]
)
def test_gap_counts_from_two_standard_errors_on(other, is_above, is_below):
    gap = RecallGap(0.4, other, 0.05)
    assert (gap.is_above, gap.is_below) == (is_above, is_below)


def test_shuffled_histories_hold_the_same_items():
    cases = make_cases()
    shuffled = shuffle_histories(cases)
    assert (shuffled.histories.values != cases.histories.values).any()
    for user in range(len(cases)):
        assert sorted(shuffled.histories[user]) == sorted(cases.histories[user])


def test_sample_keeps_long_histories_in_their_order(monkeypatch):
    monkeypatch.setattr("vecall.doctor.recall_samples.MAX_USERS", 50)
    drawn = draw_cases(make_cases(), min_history=3)
    assert len(drawn) == 50
    assert (np.diff(drawn.users) > 0).all()
    assert drawn.histories.lengths.min() >= 3
