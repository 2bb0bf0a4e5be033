"""How long the presets that `preset = "auto"` compares are trained: small data need more epochs, which have few steps.

The evidence for each constant: docs/decisions/0016-auto-preset.md.
"""

import math
from collections.abc import Mapping

import numpy as np

from vecall.config import Config, parse_config
from vecall.training.data import TrainingData

# Steps without which a preset is not trained to its end.
_MIN_STEPS: Mapping[str, int] = {"set": 400, "pooled": 700, "sequence": 2_000}
_MAX_FACTOR = 4.0


def count_epoch_steps(config: Config, data: TrainingData) -> int:
    """Return about how many steps an epoch of a preset has: the users by the batch for `set`, else the targets."""
    if config.model.preset == "set":
        n_samples = int(np.count_nonzero(data.histories.lengths > 1))
    else:
        n_samples = count_targets(config, data)
    return math.ceil(n_samples / config.training.batch)


def count_targets(config: Config, data: TrainingData) -> int:
    """Return how many positives are learned to be predicted: all, if anything but their history is known of users."""
    if config.model.history.encoder != "none" and not data.user_features:
        return count_later_targets(data)
    return len(data.histories.values) if data.history_weights is None else int(np.count_nonzero(data.history_weights))


def count_later_targets(data: TrainingData) -> int:
    """Return how many positives come after another one of their user; those of weight 0 do not count."""
    histories, weights = data.histories, data.history_weights
    firsts = histories.offsets[:-1][histories.lengths > 0]
    if weights is None:
        return len(histories.values) - len(firsts)
    return int(np.count_nonzero(weights)) - int(np.count_nonzero(weights[firsts]))


def compute_length_factor(config: Config, data: TrainingData) -> float:
    """Return by which factor a preset is trained longer than its epochs say, 1 to 4, so that it has enough steps."""
    steps = config.training.epochs * max(1, count_epoch_steps(config, data))
    return min(_MAX_FACTOR, max(1.0, _MIN_STEPS[config.model.preset] / steps))


def lengthen(config: Config, factor: float) -> Config:
    """Return the settings with that many times the epochs, and the patience that belongs to them."""
    settings = config.as_json()
    for key in ("epochs", "patience"):
        settings["training"][key] = math.ceil(factor * settings["training"][key])
    return parse_config(settings, source=config.model.preset)
