"""Learning rate schedule."""

import math
from collections.abc import Callable

_WARMUP_SHARE = 0.05  # of the steps
_MIN_MULTIPLIER = 0.02


def build_cosine_schedule(steps: int) -> Callable[[int], float]:
    """Build a function from the step to the factor of the highest learning rate.

    The factor rises linearly to 1 over the first 5 % of the steps, then falls to 0.02 along a cosine.

    Args:
        steps: Number of steps of the whole training.
    """
    warmup_steps = max(1, round(_WARMUP_SHARE * steps))

    def compute_multiplier(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return _MIN_MULTIPLIER + (1 - _MIN_MULTIPLIER) * 0.5 * (1 + math.cos(math.pi * progress))

    return compute_multiplier
