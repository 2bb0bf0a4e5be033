"""Steps of an epoch, by which small data are trained longer."""

import dataclasses

import numpy as np
import pytest
from support import synthetic
from support.doctor import make_config

from vecall.data.ragged import RaggedArray
from vecall.pipeline.selection_length import (
    compute_length_factor,
    count_epoch_steps,
    count_later_targets,
    count_targets,
)
from vecall.training.batches import build_positive_samples

LISTS = [[1, 2, 3], [4], [5, 6], []] * 100  # 200 users with two items or more, 600 interactions


def make_data(weights=None, user_features=None):
    return dataclasses.replace(
        synthetic.make_training_data(),
        histories=RaggedArray.from_lists(LISTS),
        history_weights=weights,
        user_features=user_features or {},
    )


@pytest.mark.parametrize(("preset", "samples"), [("set", 200), ("pooled", 300), ("sequence", 300)])
def test_steps_are_users_of_sets_or_interactions_after_the_first_by_the_batch(preset, samples):
    config = make_config(model={"preset": preset}, training={"batch": 32})
    assert count_epoch_steps(config, make_data()) == -(-samples // 32)


def test_first_interactions_of_users_with_features_are_counted():
    config = make_config(model={"preset": "pooled"})
    assert count_targets(config, make_data()) == 300
    data = make_data(user_features={"age": np.zeros(400, dtype=np.float32)})
    assert (count_targets(config, data), count_later_targets(data)) == (600, 300)


def test_steps_are_those_that_the_training_makes():
    config = make_config(model={"preset": "pooled"}, training={"batch": 32})
    samples = build_positive_samples(make_data().histories, min_history=1)
    assert count_targets(config, make_data()) == len(samples)


def test_interactions_of_weight_0_make_no_steps():
    weights = np.zeros(600, dtype=np.float32)
    weights[1::6] = 1
    weights[3::6] = 1  # the only interaction of its user
    config = make_config(model={"preset": "pooled"}, training={"batch": 10})
    assert count_epoch_steps(config, make_data(weights)) == 10
    config = make_config(model={"preset": "pooled"}, training={"batch": 1})
    assert compute_length_factor(config, make_data(weights)) > compute_length_factor(config, make_data())
