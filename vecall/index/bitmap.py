"""Set of rows as a bitmap: the common format of filters, deletions and faiss's searches."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows


@dataclass(frozen=True)
class Bitmap:
    """Immutable subset of the rows 0 .. N - 1.

    Attributes:
        bits: [ceil(N / 8)]; row 8 j + i is bit i of byte j, bits beyond N are 0. This is faiss's layout.
        size: N.
        count: number of rows in the set.
    """

    bits: NDArray[np.uint8]
    size: int
    count: int

    @classmethod
    def from_mask(cls, mask: Mask) -> Self:
        """Create the set of the rows where `mask` [N] is true."""
        return cls(np.packbits(mask, bitorder="little"), len(mask), int(np.count_nonzero(mask)))

    @classmethod
    def full(cls, size: int) -> Self:
        """Create the set of all N rows."""
        bits = np.full(-(-size // 8), 255, dtype=np.uint8)
        if size % 8:
            bits[-1] = (1 << size % 8) - 1
        return cls(bits, size, size)

    def __and__(self, other: "Bitmap") -> "Bitmap":
        return _build_bitmap(self.bits & other.bits, self.size)

    def exclude(self, rows: Rows) -> "Bitmap":
        """Return this set without some rows, each in 0 .. N - 1; repeated rows are allowed."""
        bits = self.bits.copy()
        np.bitwise_and.at(bits, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        return Bitmap(bits, self.size, self.count - int(np.count_nonzero(self.contains(np.unique(rows)))))

    def list_rows(self, start: int, stop: int) -> Rows:
        """Return the ascending rows of this set in start .. stop - 1, both multiples of 8; `stop` may exceed N."""
        rows: Rows = np.flatnonzero(np.unpackbits(self.bits[start // 8 : stop // 8], bitorder="little"))
        return rows + start

    def contains(self, rows: Rows) -> Mask:
        """[n] true for each of the rows [n], in 0 .. N - 1, that is in the set."""
        mask: Mask = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(np.bool_)
        return mask

    def to_mask(self) -> Mask:
        """[N] true for each row in the set; the array belongs to the caller."""
        mask: Mask = np.unpackbits(self.bits, count=self.size, bitorder="little").view(np.bool_)
        return mask


def _build_bitmap(bits: NDArray[np.uint8], size: int) -> Bitmap:
    return Bitmap(bits, size, int(np.bitwise_count(bits).sum()))
