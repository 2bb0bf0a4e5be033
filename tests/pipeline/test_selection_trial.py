"""Samples of users for short trainings, and evaluation without the order of histories."""

import dataclasses

import numpy as np
import pytest
import torch
from support import synthetic

from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.evaluation.sampling import shuffle_histories
from vecall.pipeline.selection_record import SELECTION_DIR, read_trial
from vecall.pipeline.selection_trial import TrialRunner, sample_users, shorten


def make_data():
    """Make data whose weights and context say which user and item a value belongs to."""
    users = np.arange(synthetic.USERS)
    data = synthetic.make_training_data(negatives=HardNegatives(users, users % synthetic.ITEMS, users * 0))
    values = np.concatenate([data.histories.segment_ids, users])
    return dataclasses.replace(
        data,
        history_weights=data.histories.segment_ids.astype(np.float32),
        context_features={"user": torch.from_numpy(values)},
    )


def test_sample_has_whole_users_with_all_that_belongs_to_them():
    data = make_data()
    sample = sample_users(data, 100)
    sampled = np.flatnonzero(sample.histories.lengths)
    assert 0 < len(sampled) < synthetic.USERS
    assert len(sample.histories.values) < 1.5 * 100
    for user in range(synthetic.USERS):
        expected = data.histories[user] if user in sampled else []
        np.testing.assert_array_equal(sample.histories[user], expected)
    assert set(sample.hard_negatives.users) == set(sampled)
    owners = np.concatenate([sample.histories.segment_ids, sample.hard_negatives.users])
    np.testing.assert_array_equal(sample.context_features["user"], owners)
    np.testing.assert_array_equal(sample.history_weights, sample.histories.segment_ids)
    assert sample.n_items == data.n_items


def test_sample_is_the_data_where_they_are_few_enough():
    data = make_data()
    assert sample_users(data, len(data.histories.values)) is data


@pytest.mark.parametrize("max_interactions", [10, 250])
def test_sample_of_few_users_with_long_histories_is_somebody(max_interactions):
    """A share of 1 % of five users would be nobody."""
    histories = RaggedArray.from_lists(np.random.default_rng(0).integers(synthetic.ITEMS, size=(5, 200)))
    negatives = HardNegatives(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    data = dataclasses.replace(synthetic.make_training_data(), histories=histories, hard_negatives=negatives)
    sampled = np.count_nonzero(sample_users(data, max_interactions).histories.lengths)
    assert sampled == (1 if max_interactions == 10 else 2)


def test_shuffled_histories_have_the_same_items_by_user_in_another_order():
    cases = synthetic.make_eval_cases()
    shuffled = shuffle_histories(cases)
    changed = 0
    for history, other in zip(cases.histories, shuffled.histories, strict=True):
        assert sorted(history) == sorted(other)
        changed += list(history) != list(other)
    assert changed > synthetic.USERS // 2
    assert shuffled.targets is cases.targets


def test_trial_is_no_larger_and_no_longer_than_its_limits_and_keeps_smaller_values(tmp_path):
    config = synthetic.make_config(
        tmp_path, model={"dim": 128, "ensemble_size": 2}, training={"epochs": 30, "logger": "mlflow", "lr": 0.01}
    )
    trial = shorten(config)
    assert (trial.model.dim, trial.model.ensemble_size) == (64, 1)
    assert (trial.training.epochs, trial.training.logger, trial.training.lr) == (2, "none", 0.01)
    small = synthetic.make_config(tmp_path, model={"dim": 4}, training={"epochs": 1})
    assert shorten(small) == small


@pytest.mark.examples
def test_trial_far_below_the_best_ends_after_an_epoch_and_another_goes_on_as_without_a_best(tmp_path):
    config = shorten(synthetic.make_config(tmp_path, training={"epochs": 2, "batch": 32, "lr": 0.03}))
    data, cases, trials = synthetic.make_training_data(), synthetic.make_eval_cases(), {}
    for best_score in (0.0, 1e-6, 1e6):
        run_dir = tmp_path / str(best_score)
        (run_dir / SELECTION_DIR).mkdir(parents=True)
        runner = TrialRunner(run_dir, lambda scorer: scorer, None)
        trials[best_score] = runner.run(config, data, cases, best_score)
        assert read_trial(run_dir, "pooled") == trials[best_score]
    assert [trial.is_hopeless for trial in trials.values()] == [False, False, True]
    assert trials[1e-6].metrics == trials[0.0].metrics != trials[1e6].metrics
