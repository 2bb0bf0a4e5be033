"""Which of N rows are allowed, a bit each: what filters, deletions and native searches agree on."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows


@dataclass(frozen=True)
class Bitmap:
    """A set of rows; it never changes.

    Attributes:
        bits: [ceil(N / 8)]; row 8 j + i is bit i of byte j, and bits beyond N are 0. So does faiss read it.
        size: N.
        count: how many rows are in it.
    """

    bits: NDArray[np.uint8]
    size: int
    count: int

    @classmethod
    def from_mask(cls, mask: Mask) -> Self:
        """The rows that `mask` [N] marks."""
        return cls(np.packbits(mask, bitorder="little"), len(mask), int(np.count_nonzero(mask)))

    @classmethod
    def full(cls, size: int) -> Self:
        """All of N rows."""
        bits = np.full(-(-size // 8), 255, dtype=np.uint8)
        if size % 8:
            bits[-1] = (1 << size % 8) - 1
        return cls(bits, size, size)

    def __and__(self, other: "Bitmap") -> "Bitmap":
        return _build_bitmap(self.bits & other.bits, self.size)

    def exclude(self, rows: Rows) -> "Bitmap":
        """All but these rows, each in 0 .. N - 1."""
        bits = self.bits.copy()
        np.bitwise_and.at(bits, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        return Bitmap(bits, self.size, self.count - int(np.count_nonzero(self.contains(np.unique(rows)))))

    def restrict_to_range(self, start: int, stop: int) -> "Bitmap":
        """Those of its rows that lie in start .. stop - 1, both divisible by eight; `stop` may lie beyond N."""
        bits = np.zeros_like(self.bits)
        bits[start // 8 : stop // 8] = self.bits[start // 8 : stop // 8]
        return Bitmap(bits, self.size, int(np.bitwise_count(bits[start // 8 : stop // 8]).sum()))

    def contains(self, rows: Rows) -> Mask:
        """Whether each of these rows, in 0 .. N - 1, is in it."""
        marked: Mask = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(np.bool_)
        return marked

    def to_mask(self) -> Mask:
        """[N] true for each row in it."""
        marked: Mask = np.unpackbits(self.bits, count=self.size, bitorder="little").view(np.bool_)
        return marked


def _build_bitmap(bits: NDArray[np.uint8], size: int) -> Bitmap:
    return Bitmap(bits, size, int(np.bitwise_count(bits).sum()))
