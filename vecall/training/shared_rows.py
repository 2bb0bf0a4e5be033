"""A table that processes of one machine hold in common: each updates a share of the rows of a step."""

import numpy as np
import torch
from torch import Tensor

from vecall.towers.distinct_rows import find_distinct_rows
from vecall.towers.row_lookup import add_rows
from vecall.training.distributed import ProcessGroup

# Blocks of rows are dealt out in turn, so that shares are equal wherever the popular rows are. A row has 4 bytes in the
# smallest array that is written by row: processes do not write to the same line of the cache.
_BLOCK_ROWS = 64


class SharedRows:
    """Memory of a table's processes, and the exchange of a step's gradients through it.

    Args:
        group: The processes; `shares_memory` is true.
        n_rows: R, rows of the table.
        dim: D, columns of the table.
    """

    def __init__(self, group: ProcessGroup, n_rows: int, dim: int) -> None:
        self._group, self._n_rows = group, n_rows
        # A process may read any number of rows in a step. Of such arrays only the part that is written to takes memory.
        self._rows = group.allocate_shared((group.size, n_rows), torch.int64)
        self._gradients = group.allocate_shared((group.size, n_rows, dim), torch.float32)
        self._counts = group.allocate_shared((group.size,), torch.int64)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate zeros that all processes have in common."""
        return self._group.allocate_shared(shape, dtype)

    def share(self, table: Tensor) -> Tensor:
        """Copy the table [R, D] of the first process to memory that all processes have in common."""
        shared = self.allocate(tuple(table.shape), table.dtype)
        self.copy(table, shared)
        return shared

    def copy(self, source: Tensor, shared: Tensor) -> None:
        """Copy a table [R, D] of the first process into a shared one."""
        if self._group.rank == 0:
            shared.copy_(source)
        self._group.barrier()

    @property
    def own_range(self) -> range:
        """Rows that this process brings up to date when all rows are."""
        rank, size = self._group.rank, self._group.size
        return range(self._n_rows * rank // size, self._n_rows * (rank + 1) // size)

    def publish(self, rows: Tensor, gradients: Tensor) -> None:
        """Show the other processes the rows of a step and their gradients, which they may read after a barrier.

        Args:
            rows: [M] distinct rows, ascending.
            gradients: [M, D].
        """
        rank, count = self._group.rank, len(rows)
        self._counts[rank] = count
        self._rows[rank, :count] = rows
        self._gradients[rank, :count] = gradients

    def merge_share(self) -> tuple[Tensor, Tensor]:
        """Average the published gradients, for the rows that this process updates.

        Returns:
            [K] distinct rows, ascending, and [K, D] the sums of their gradients divided by the number of processes: the
            bits are those of `ProcessGroup.merge_rows`.
        """
        rank, size = self._group.rank, self._group.size
        published = [rows[:count] for rows, count in zip(self._rows.numpy(), self._counts.tolist(), strict=True)]
        positions = [np.flatnonzero(rows // _BLOCK_ROWS % size == rank) for rows in published]
        own = [rows[kept] for rows, kept in zip(published, positions, strict=True)]
        merged, index = find_distinct_rows(torch.from_numpy(np.concatenate(own)))
        total = np.zeros((len(merged), self._gradients.shape[2]), dtype=np.float32)
        indices = torch.split(index, [len(rows) for rows in own])
        for part, kept, gradients in zip(indices, positions, self._gradients.numpy(), strict=True):
            add_rows(total, part.numpy(), gradients, kept, 0, len(total))
        total /= size
        return merged, torch.from_numpy(total)

    def barrier(self) -> None:
        """Wait until all processes have written what they have to write."""
        self._group.barrier()
