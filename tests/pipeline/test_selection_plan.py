"""Users of the trials by the time that is given, and the time that is taken by default."""

import dataclasses
from types import MappingProxyType

import numpy as np
import pytest
from support import synthetic
from support.doctor import make_config

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import HardNegatives, Split
from vecall.pipeline.selection_plan import compute_default_seconds, plan_trials
from vecall.pipeline.selection_trial import shorten

CONFIGS = {preset: shorten(make_config(model={"preset": preset})) for preset in ("set", "pooled")}


@pytest.mark.parametrize(
    ("target_seconds", "n_rows", "seconds"),
    [
        (1.0, 300, 20.0),
        (35.0, 100_000, 35.0),
        (90.0, 199_999, 60.0),  # at most a minute below 200,000 rows
        (90.0, 200_000, 90.0),
        (1e4, 300_000, 360.0),
        (1e4, 4_999_999, 1_200.0),  # at most 20 below 5 million
        (1e4, 10**9, 1_200.0),
    ],
)
def test_default_time_is_that_of_most_interactions_between_limits(target_seconds, n_rows, seconds):
    assert compute_default_seconds(target_seconds, n_rows) == seconds


@pytest.fixture(scope="module")
def tables():
    """Training data and split of 10,000 users with 30 items each, 2,000 of whom are in the validation."""
    histories = RaggedArray.from_lists(np.random.default_rng(0).integers(0, 5_000, (10_000, 30)))
    data = dataclasses.replace(
        synthetic.make_training_data(), histories=histories, n_items=5_000, item_features={}, user_features={}
    )
    users = np.arange(2_000)
    cases = EvalCases(users, histories.take(users), histories.take(users))
    nothing = np.empty(0, dtype=np.int64)
    negatives = HardNegatives(nothing, nothing, nothing)
    parts = np.zeros(300_000, dtype=np.int8)
    return data, Split("", histories, negatives, cases, cases, MappingProxyType({}), parts)


def test_baselines_are_left_out_where_counting_them_takes_the_time(tables):
    """300,000 interactions take 3 s to count."""
    assert plan_trials(CONFIGS, *tables, 0.5).has_baselines
    plan = plan_trials(CONFIGS, *tables, 0.15)
    assert not plan.has_baselines
    assert plan.seconds == sum(plan.trial_seconds.values())


@pytest.mark.parametrize("minutes", [0.5, 1.0, 1e4])
def test_planned_phases_take_no_longer_than_the_time_that_is_given(tables, minutes):
    """All users where there is time, else as many as fit."""
    plan = plan_trials(CONFIGS, *tables, minutes)
    assert plan.budget_seconds == 60 * minutes
    assert plan.seconds < 1.03 * plan.budget_seconds  # the users are drawn, and their number varies
    assert plan.seconds > 0.9 * plan.budget_seconds or minutes == 1e4
    assert (len(plan.sample.histories.values) == 300_000) == (minutes == 1e4)
    assert sum(plan.trial_seconds.values()) < plan.seconds
    assert len(plan.cases) == 2_000


def test_trials_get_most_of_the_interactions_where_no_time_is_given(tables):
    plan = plan_trials(CONFIGS, *tables, 0.0)
    assert len(plan.sample.histories.values) == pytest.approx(180_000, rel=0.03)
    assert plan.seconds == pytest.approx(plan.budget_seconds, rel=0.03)


def test_fewer_users_are_ranked_where_each_takes_long(tables):
    data, split = tables
    huge = dataclasses.replace(data, n_items=10**7)
    assert len(plan_trials(CONFIGS, huge, split, 1.0).cases) == 500


def test_without_trials_there_is_nothing_to_plan(tables):
    plan = plan_trials({}, *tables, 0.0)
    assert (plan.seconds, plan.budget_seconds, plan.trial_seconds) == (0.0, 0.0, {})
