"""Every random draw of training comes from (seed, epoch, step), so a run that was cut short goes on bit-equal."""

import numpy as np
import torch


def build_epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """For the order of an epoch's samples."""
    return np.random.default_rng([seed, epoch])


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Set torch's generators for one training step: dropout, hidden ids and sampled negatives follow from it.

    `torch.manual_seed` would do, but it walks the call stack for each device that is not there, at every step.
    """
    state = int(np.random.SeedSequence([seed, epoch, step, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(state)
