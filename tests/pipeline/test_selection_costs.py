"""Estimated seconds of choosing a preset, beside those that were measured on public data sets."""

import dataclasses

import numpy as np
import pytest
from support import synthetic
from support.doctor import make_config

from vecall.data.ragged import RaggedArray, offsets_from_lengths
from vecall.pipeline.selection_costs import (
    compute_max_ranked_pairs,
    estimate_evaluation_seconds,
    estimate_training_seconds,
)
from vecall.pipeline.selection_length import count_epoch_steps
from vecall.pipeline.selection_trial import shorten


def make_data(n_users: int, n_interactions: int, n_items: int, n_values: int):
    """Make training data of these sizes; items have `n_values` cells of features each."""
    lengths = np.full(n_users, n_interactions // n_users)
    histories = RaggedArray(offsets_from_lengths(lengths), np.zeros(lengths.sum(), dtype=np.int64))
    features = {"tags": np.zeros((n_items, n_values), dtype=np.int32)}
    return dataclasses.replace(
        synthetic.make_training_data(), histories=histories, n_items=n_items, item_features=features
    )


@pytest.mark.parametrize(
    ("preset", "sizes", "measured"),  # seconds of CPU per epoch, one thread
    [
        ("set", (7_400, 62_438, 5_155, 0), 0.66),  # Steam
        ("set", (360, 58_761, 9_742, 10), 0.33),  # MovieLens
        ("set", (13_400, 92_235, 12_101, 6), 4.0),  # Beauty
        ("set", (1_700, 125_988, 17_384, 0), 0.82),  # Book-Crossing
        ("set", (3_330, 98_123, 16_980, 64), 3.7),  # citeulike-a
        ("set", (21_400, 135_411, 18_357, 37), 15.0),  # Sports
        ("pooled", (7_400, 62_438, 5_155, 0), 5.0),
        ("pooled", (360, 58_761, 9_742, 10), 9.6),
        ("pooled", (13_400, 92_235, 12_101, 6), 14.0),
        ("pooled", (1_700, 125_988, 17_384, 0), 25.5),
        ("pooled", (3_330, 98_123, 16_980, 64), 40.0),
    ],
)
def test_estimates_are_near_the_measured_times(preset, sizes, measured):
    config = shorten(make_config(model={"preset": preset}))
    seconds = estimate_training_seconds(config, make_data(*sizes)) / config.training.epochs
    assert 0.7 < seconds / measured < 1.6


@pytest.mark.parametrize(
    ("preset", "n_items", "measured"),  # seconds of CPU per step, one thread
    [
        ("set", 235_000, 0.012),
        ("set", 1_000_000, 0.019),
        ("pooled", 60_000, 0.023),
        ("pooled", 235_000, 0.021),
        ("pooled", 1_000_000, 0.022),
    ],
)
def test_estimates_of_sampled_steps_are_near_the_measured_times(preset, n_items, measured):
    config = shorten(make_config(model={"preset": preset}))
    data = make_data(32_000, 160_000, n_items, 0)
    steps = config.training.epochs * count_epoch_steps(config, data)
    assert 0.4 < estimate_training_seconds(config, data) / steps / measured < 1.6


def test_ranked_pairs_take_the_time_that_is_given():
    n_users = compute_max_ranked_pairs(30.0) // 10_000
    assert 4 * estimate_evaluation_seconds(n_users, 10_000) == pytest.approx(30.0, rel=0.01)
