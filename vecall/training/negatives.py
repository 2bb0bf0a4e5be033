"""What a positive is told apart from, and how likely each candidate was to be there."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.training.settings import NegativeSettings


@dataclass(frozen=True)
class SampledCandidates:
    """C items that all positives of a step are told apart from.

    Attributes:
        rows: [C] item rows; an item may stand more than once.
        log_q: [C] log of the expected number of times that the item stands in such a list.
    """

    rows: Tensor
    log_q: Tensor


def sample_candidates(
    settings: NegativeSettings, targets: Tensor, candidate_items: Tensor, frequencies: Tensor
) -> SampledCandidates:
    """A mixture of uniform items and of the step's own positives.

    Q(i) = uniform / M + in_batch · f(i), the expected count of item i in the list (Yi et al., RecSys 2019, with
    counts instead of probabilities, so that mixtures add up).

    Args:
        settings: how many of each; of in-batch ones there are at most B.
        targets: [B] the step's positives.
        candidate_items: [M] rows of the items that uniform ones are drawn from, the positives among them.
        frequencies: [N] share f of each item among training positives.
    """
    uniform = candidate_items[torch.randint(len(candidate_items), (settings.uniform,), device=targets.device)]
    in_batch = targets[torch.randperm(len(targets), device=targets.device)[: settings.in_batch]]
    rows = torch.cat([uniform, in_batch])
    expected = settings.uniform / len(candidate_items) + len(in_batch) * frequencies[rows]
    return SampledCandidates(rows, expected.log())


def sample_uniform_negatives(count: int, n_items: int, targets: Tensor) -> Tensor:
    """[B, count] uniform rows in 0 .. n_items - 1 for each positive of its own, never the positive itself.

    Drawn among the other n_items − 1 by stepping over the target, so no hit has to be masked.
    """
    drawn = torch.randint(n_items - 1, (len(targets), count), device=targets.device)
    return drawn + (drawn >= targets.unsqueeze(1)).to(drawn.dtype)


@dataclass(frozen=True)
class HardNegatives:
    """What each user was shown and did not take, or did not like: hard to tell from what the user does take.

    Attributes:
        offsets: [U + 1] where each user's items begin in `values`.
        values: [n] item rows, an item once a user.
    """

    offsets: Tensor
    values: Tensor

    @classmethod
    def from_pairs(cls, pairs: LabeledNegatives, n_users: int) -> Self:
        """From pairs in any order."""
        distinct = np.unique(np.stack([pairs.users, pairs.items]), axis=1)  # [2, n], by user
        grouped = RaggedArray.from_groups(distinct[0], distinct[1], n_users)
        return cls(torch.from_numpy(grouped.offsets), torch.from_numpy(grouped.values))

    def to(self, device: torch.device) -> "HardNegatives":
        """The same on a device."""
        return HardNegatives(self.offsets.to(device), self.values.to(device))

    def sample(self, users: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` of each of B users' items, each as likely as any other.

        Returns:
            [B, count] item rows, distinct within a user's, and [B, count] whether there is one; else the row is 0.
        """
        first = self.offsets[users]
        held = self.offsets[users + 1] - first  # [B]
        start = (torch.rand(len(users), device=users.device) * held).long()
        places = torch.arange(count, device=users.device)  # [count]
        given = places < held.unsqueeze(1)  # [B, count]
        sources = first.unsqueeze(1) + (start.unsqueeze(1) + places) % held.clamp(min=1).unsqueeze(1)
        rows = self.values if len(self.values) else self.offsets.new_zeros(1)
        return torch.where(given, rows[torch.where(given, sources, 0)], 0), given
