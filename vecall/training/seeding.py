"""Random generators of training, derived from (seed, epoch, step), so that a resumed run equals an uninterrupted one.

See docs/decisions/0007-seeds-per-step.md.
"""

import numpy as np
import torch


def build_epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """Build the generator of the order of an epoch's samples."""
    return np.random.default_rng([seed, epoch])


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed torch's generators for one training step: dropout, hidden ids and sampled negatives depend on it.

    Not by `torch.manual_seed`, which walks the call stack for each absent device, at every step.
    """
    state = int(np.random.SeedSequence([seed, epoch, step, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    _seed_generators(state)


def seed_process(rank: int) -> None:
    """Seed torch's generators for the draws of one of several processes, in a step in which they drew the same so far.

    Negatives are drawn before, the same by all processes; dropout and hidden ids after, by each for its own samples.
    """
    _seed_generators(int(torch.randint(2**62, ())) + rank)


def _seed_generators(state: int) -> None:
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(state)
