"""Parts of a training step's batch, for several processes that compute a part each."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Which part of each batch a process computes.

    Attributes:
        rank: Number of the process, from 0.
        size: Number of processes.
    """

    rank: int
    size: int

    def select(self, weights: NDArray[np.int64]) -> slice:
        """Select consecutive elements, so that the parts of all processes have about the same total weight.

        Args:
            weights: [n] weight of each element, at least 1.

        Returns:
            Slice of 0 .. n - 1; empty if there are too few elements.
        """
        middles = np.cumsum(weights) - weights / 2
        bounds = weights.sum() * np.array([self.rank, self.rank + 1]) / self.size
        start, stop = np.searchsorted(middles, bounds)
        return slice(int(start), int(stop))


@dataclass(frozen=True)
class WholeBatch:
    """P targets of the whole batch of a step, of which a process computes a part.

    Negatives are drawn for all P targets on every process, so the draws do not depend on the number of processes.

    Attributes:
        users: [P] user row of each target.
        items: [P] item row of each target.
        labels: [P] 1 for a positive, 0 for a negative.
        part: Targets that this process computes.
        n_processes: Number of processes.
        is_padding: Whether there are too few targets for this process. Then `part` has some of another process, since
            each process takes part in every step; they count 0.
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    part: slice
    n_processes: int
    is_padding: bool

    @property
    def weight(self) -> float:
        """Factor of the mean loss of the part; the mean over the processes is then the mean over all P targets."""
        return 0.0 if self.is_padding else (self.part.stop - self.part.start) * self.n_processes / len(self.items)

    def to(self, device: torch.device) -> "WholeBatch":
        """Copy to a device."""
        return replace(self, users=self.users.to(device), items=self.items.to(device), labels=self.labels.to(device))
