"""Where the rows that a filter allows lie in an index: computed once per filter, read by every query under it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.index.bitmap import Bitmap


@dataclass(frozen=True)
class FilterProfile:
    """The rows that a filter allows, and their number by part of the index.

    Attributes:
        allowed: the rows.
        list_counts: [nlist] number of them in each inverted list; None of an index without such lists.
    """

    allowed: Bitmap
    list_counts: NDArray[np.int64] | None = None

    @property
    def pass_rate(self) -> float:
        """Share of all rows that the filter allows."""
        return self.allowed.count / max(self.allowed.size, 1)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self.allowed.bits.nbytes + (0 if self.list_counts is None else self.list_counts.nbytes)
