"""Embedding table of which training can read a few rows at a time, without a gradient of the whole table."""

from collections.abc import Callable

from torch import Tensor, nn

from vecall.towers.distinct_rows import find_distinct_rows
from vecall.towers.row_lookup import take_rows

RowReader = Callable[[Tensor], Tensor]
"""Returns the vectors [M, D] of M distinct rows, as a leaf that collects their gradient."""


class RowEmbedding(nn.Embedding):
    """Embedding table that reads its rows through a reader in training mode, if it has one.

    Attributes:
        row_reader: Set by an optimizer that updates only the rows that a step read; None for an ordinary table.
        stays_on_cpu: Whether the table is left in the memory of the CPU when the module is moved to a GPU; the rows
            that a step reads are then copied to the GPU.
    """

    row_reader: RowReader | None = None
    stays_on_cpu: bool = False

    def forward(self, rows: Tensor) -> Tensor:
        """Look up [...] rows → [..., D]."""
        if self.row_reader is not None and self.training:
            vectors, index = self.read_rows(rows)
            return take_rows(vectors, index)
        if self.stays_on_cpu:
            return super().forward(rows.to(self.weight.device)).to(rows.device)
        return super().forward(rows)

    def read_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Read the distinct ones of [...] rows.

        Returns:
            [M, D] vectors of the distinct rows, and the index [...] of each of `rows` in them; without a reader or in
            evaluation mode the whole table and `rows` themselves, if they are on the same device.
        """
        if self.row_reader is not None and self.training:
            distinct, index = find_distinct_rows(rows)
            return self.row_reader(distinct), index
        if rows.device != self.weight.device:
            distinct, index = find_distinct_rows(rows)
            return self.weight[distinct.to(self.weight.device)].to(rows.device), index
        return self.weight, rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowEmbedding":
        return self if self.stays_on_cpu else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
