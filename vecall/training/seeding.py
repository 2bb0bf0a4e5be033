"""Random generators of training, derived from (seed, epoch, step), so that a resumed run equals an uninterrupted one.

See docs/decisions/0007-seeds-per-step.md.
"""

import numpy as np
import torch


def build_epoch_rng(seed: int, epoch: int) -> np.random.Generator:
    """Build the generator of the order of an epoch's samples."""
    return np.random.default_rng([seed, epoch])


def seed_step(seed: int, epoch: int, step: int, *, rank: int | None = None) -> None:
    """Seed torch's generators for one training step: dropout, hidden ids and sampled negatives depend on it.

    Of several processes, each draws the same negatives by the seed without a rank, then its own dropout and hidden ids
    by the seed with its rank.

    Not by `torch.manual_seed`, which walks the call stack for each absent device, at every step.
    """
    entropy = [seed, epoch, step, 1] if rank is None else [seed, epoch, step, 2, rank]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(state)
