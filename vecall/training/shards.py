"""Parts of a training step's batch, for several processes that compute a part each."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
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

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "WholeBatch":
        """Return the batch with each tensor replaced by the function's result."""
        return replace(self, users=function(self.users), items=function(self.items), labels=function(self.labels))


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """Batch of a step, or the part of it that this process computes.

    Attributes:
        whole: The whole batch; None if this is all of it.
        weights: [P] weight in the loss of each target; None if all weigh the same.
    """

    whole: WholeBatch | None = None
    weights: Tensor | None = None

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with each tensor replaced by the function's result."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors, whole=None if self.whole is None else self.whole.map_tensors(function))

    def select_part(self, values: Tensor) -> Tensor:
        """Return the values [p, ...] of this part of values [P, ...] of the whole batch's targets."""
        return values if self.whole is None else values[self.whole.part]
