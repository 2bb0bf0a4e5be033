"""Every random draw of training comes from (seed, epoch, step), so a run that was cut short goes on bit-equal."""

import numpy as np
import torch


def shuffler(seed: int, epoch: int) -> np.random.Generator:
    """For the order of an epoch's samples."""
    return np.random.default_rng([seed, epoch])


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Set torch's generators for one training step: dropout, hidden ids and sampled negatives follow from it."""
    state = np.random.SeedSequence([seed, epoch, step, 1]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state >> np.uint64(1)))
