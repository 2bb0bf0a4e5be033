"""Sampling of negatives, with the expected count of each candidate for the logQ correction."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.training.settings import NegativeSettings


@dataclass(frozen=True)
class SampledCandidates:
    """C candidates that all positives of a training step share.

    Attributes:
        rows: [C] item rows; an item may occur several times.
        log_expected_counts: [C] log of the expected number of times that the item is in the list.
        owners: [C] user row whose positive a candidate is; -1 for a uniform one.
    """

    rows: Tensor
    log_expected_counts: Tensor
    owners: Tensor

    def mark_own(self, users: Tensor) -> Tensor:
        """Mark the candidates [P, C] that are positives of the same user in the step, of [P] user rows.

        A user's other positives are in the list of the same user far more often than expected of all users.
        """
        return self.owners == users.unsqueeze(1)


def sample_candidates(
    settings: NegativeSettings, users: Tensor, targets: Tensor, candidate_items: Tensor, frequencies: Tensor
) -> SampledCandidates:
    """Sample uniform candidates, and add some of the step's own positives.

    The expected count of item i is Q(i) = uniform / M + in_batch · f(i), as in Yi et al. (RecSys 2019), with counts
    instead of probabilities, which makes the two sources add up.

    Args:
        settings: Number of candidates of each source; at most B are in-batch ones.
        users: [B] user rows of the step's positives.
        targets: [B] item rows of the step's positives.
        candidate_items: [M] item rows that uniform candidates are drawn from; they include the positives.
        frequencies: [N] share f of each item among the positives of the training data.
    """
    uniform = candidate_items[torch.randint(len(candidate_items), (settings.uniform,), device=targets.device)]
    drawn = torch.randperm(len(targets), device=targets.device)[: settings.in_batch]
    rows = torch.cat([uniform, targets[drawn]])
    owners = torch.cat([torch.full_like(uniform, -1), users[drawn].to(uniform.dtype)])
    expected_counts = settings.uniform / len(candidate_items) + len(drawn) * frequencies[rows]
    return SampledCandidates(rows, expected_counts.log(), owners)


def sample_uniform_negatives(count: int, n_items: int, targets: Tensor) -> Tensor:
    """Sample uniform negatives for each positive, never the positive itself.

    Drawn from the n_items - 1 other rows, by shifting the rows from the target on by 1, so no hit has to be masked.

    Args:
        count: Negatives of each positive.
        n_items: Number of rows to sample from.
        targets: [B] rows of the positives in 0 .. n_items - 1.

    Returns:
        [B, count] rows in 0 .. n_items - 1.
    """
    drawn = torch.randint(n_items - 1, (len(targets), count), device=targets.device)
    return drawn + (drawn >= targets.unsqueeze(1)).to(drawn.dtype)


@dataclass(frozen=True)
class HardNegativeSampler:
    """Sampler of the hard negatives of each user: items that the user saw and did not take, or did not like.

    Attributes:
        offsets: [U + 1] start of each user's items in `values`.
        values: [n] item rows, distinct for each user.
    """

    offsets: Tensor
    values: Tensor

    @classmethod
    def from_pairs(cls, pairs: HardNegatives, n_users: int) -> Self:
        """Group (user, item) pairs of any order by user, without repetitions."""
        n_items = int(pairs.items.max(initial=0)) + 1
        users, items = np.divmod(np.unique(pairs.users.astype(np.int64) * n_items + pairs.items), n_items)
        grouped = RaggedArray.from_sorted_pairs(users, items, n_users)
        return cls(torch.from_numpy(grouped.offsets), torch.from_numpy(grouped.values))

    def to(self, device: torch.device) -> "HardNegativeSampler":
        """Copy to a device."""
        return HardNegativeSampler(self.offsets.to(device), self.values.to(device))

    def sample(self, users: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Sample up to `count` distinct items of each user, each item with the same probability.

        Args:
            users: [B] user rows.
            count: H, items to sample for each user.

        Returns:
            [B, H] item rows, and [B, H] bool, true for a sampled item, false (with row 0) where the user has no more.
            Both are [B, 0] if there are none of any user.
        """
        first = self.offsets[users]
        available = self.offsets[users + 1] - first  # [B]
        start = (torch.rand(len(users), device=users.device) * available).long()
        slots = torch.arange(count if len(self.values) else 0, device=users.device)  # [H]
        is_sampled = slots < available.unsqueeze(1)  # [B, H]
        sources = first.unsqueeze(1) + (start.unsqueeze(1) + slots) % available.clamp(min=1).unsqueeze(1)
        return torch.where(is_sampled, self.values[torch.where(is_sampled, sources, 0)], 0), is_sampled
