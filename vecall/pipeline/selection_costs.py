"""Seconds that the phases of choosing a preset take, estimated from the sizes of the data and of the steps.

The constants were measured on one thread of a slow CPU, on the data sets of docs/decisions/0016-auto-preset.md. No
clock is asked: a choice can be repeated on a machine of any speed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from vecall.config import Config
from vecall.pipeline.selection_length import count_epoch_steps, count_targets
from vecall.training.data import TrainingData
from vecall.training.plan import select_loss


class _StepCosts(NamedTuple):
    """Seconds of a training step.

    Attributes:
        fixed: Whatever the data.
        by_logit: For each score of the softmax.
        by_input: For each item that the user tower reads.
        by_value: For each cell of the arrays of item features, padding included, in a step over all items.
    """

    fixed: float
    by_logit: float
    by_input: float
    by_value: float


_STEP_COSTS: Mapping[str, _StepCosts] = {
    "set": _StepCosts(0.005, 16e-9, 2.5e-6, 0.08e-6),
    "pooled": _StepCosts(0.02, 10e-9, 0.0, 0.12e-6),  # inputs are few, and counted in what is fixed
}
_BY_SEQUENCE_TARGET = 0.8e-3  # of an epoch of `sequence`, ensemble members included; on Beauty
_BY_RANKED_PAIR = 10e-9  # of an evaluation: user and item
_BY_COUNTED_INTERACTION = 10e-6  # of the baselines


def estimate_training_seconds(config: Config, data: TrainingData) -> float:
    """Estimate the time of a trial's training.

    Args:
        config: Settings of the trial, whose preset is "set" or "pooled".
        data: Its data.
    """
    costs, training, histories = _STEP_COSTS[config.model.preset], config.training, data.histories
    n_steps = count_epoch_steps(config, data)
    all_logits = logits = training.batch * data.n_items
    if select_loss(training, data.n_items) != "softmax":
        in_batch = min(training.negatives.in_batch, count_targets(config, data) // max(n_steps, 1))
        logits = min(all_logits, training.batch * (training.negatives.uniform + in_batch))
    n_values = sum(values.size for values in data.item_features.values()) * logits / max(all_logits, 1)
    step = costs.fixed + costs.by_logit * logits + costs.by_value * n_values
    return training.epochs * (n_steps * step + costs.by_input * len(histories.values))


def estimate_sequence_seconds(config: Config, data: TrainingData) -> float:
    """Estimate the longest time of a training of `sequence`; 0 with a GPU, on which it was not measured."""
    if torch.cuda.is_available():
        return 0.0
    return _BY_SEQUENCE_TARGET * config.training.epochs * count_targets(config, data)


def estimate_evaluation_seconds(n_users: int, n_items: int) -> float:
    """Estimate the time of two evaluations: with the order of histories and without, or of the two baselines."""
    return 2 * _BY_RANKED_PAIR * n_users * n_items


def compute_max_ranked_pairs(seconds: float) -> int:
    """Return the pairs of users and items for which the evaluations of two trials and of the baselines take so long."""
    return int(seconds / (8 * _BY_RANKED_PAIR))


def estimate_baseline_seconds(n_interactions: int) -> float:
    """Estimate the time of building popularity and co-occurrence."""
    return _BY_COUNTED_INTERACTION * n_interactions
