"""What a positive is told apart from, and how likely each candidate was to be there."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vecall.training.settings import NegativeSettings


@dataclass(frozen=True)
class Candidates:
    """C items that all positives of a step are told apart from.

    Attributes:
        rows: [C] item rows; an item may stand more than once.
        log_q: [C] log of the expected number of times that the item stands in such a list.
    """

    rows: Tensor
    log_q: Tensor


def draw_candidates(settings: NegativeSettings, targets: Tensor, frequencies: Tensor) -> Candidates:
    """A mixture of uniform items and of the step's own positives.

    Q(i) = uniform / N + in_batch · f(i), the expected count of item i in the list (Yi et al., RecSys 2019, with
    counts instead of probabilities, so that mixtures add up).

    Args:
        settings: how many of each; of in-batch ones there are at most B.
        targets: [B] the step's positives.
        frequencies: [N] share f of each item among training positives.
    """
    n_items = len(frequencies)
    uniform = torch.randint(n_items, (settings.uniform,), device=targets.device)
    in_batch = targets[torch.randperm(len(targets), device=targets.device)[: settings.in_batch]]
    rows = torch.cat([uniform, in_batch])
    expected = settings.uniform / n_items + len(in_batch) * frequencies[rows]
    return Candidates(rows, expected.log())


def draw_uniform(count: int, n_items: int, targets: Tensor) -> Tensor:
    """[B, count] uniform items for each positive of its own, never the positive itself.

    Drawn among the other N − 1 items by stepping over the target, so no hit has to be masked.
    """
    drawn = torch.randint(n_items - 1, (len(targets), count), device=targets.device)
    return drawn + (drawn >= targets.unsqueeze(1)).to(drawn.dtype)
