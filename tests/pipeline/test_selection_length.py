"""Steps of an epoch, by which small data are trained longer."""

import dataclasses

import numpy as np
import pytest
from support import synthetic
from support.doctor import make_config

from vecall.data.ragged import RaggedArray
from vecall.pipeline.selection_length import compute_length_factor, count_epoch_steps

LISTS = [[1, 2, 3], [4], [5, 6], []] * 100  # 200 users with two items or more, 600 interactions


def make_data(weights=None):
    data = dataclasses.replace(synthetic.make_training_data(), histories=RaggedArray.from_lists(LISTS))
    return dataclasses.replace(data, history_weights=weights)


@pytest.mark.parametrize(("preset", "samples"), [("set", 200), ("pooled", 600), ("sequence", 600)])
def test_steps_are_users_of_sets_or_interactions_by_the_batch(preset, samples):
    config = make_config(model={"preset": preset}, training={"batch": 32})
    assert count_epoch_steps(config, make_data()) == -(-samples // 32)


def test_interactions_of_weight_0_make_no_steps():
    weights = np.zeros(600, dtype=np.float32)
    weights[::10] = 1
    config = make_config(model={"preset": "pooled"}, training={"batch": 10})
    assert count_epoch_steps(config, make_data(weights)) == 6
    assert compute_length_factor(config, make_data(weights)) > compute_length_factor(config, make_data())
