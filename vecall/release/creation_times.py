"""When the items of a release came, as far as that is known."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows

UNKNOWN_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class CreationTimes:
    """Times of N items.

    Attributes:
        micros: [N] microseconds since 1970; `UNKNOWN_TIME` where it is not known.
    """

    micros: NDArray[np.int64]

    @cached_property
    def newest_rows(self) -> Rows:
        """Rows of known time, the newest first, then row ascending."""
        known = np.flatnonzero(self.micros != UNKNOWN_TIME)
        return known[np.argsort(-self.micros[known], kind="stable")]

    @cached_property
    def _negated_micros(self) -> NDArray[np.int64]:
        return -self.micros[self.newest_rows]

    def list_since(self, micros: int) -> Rows:
        """Return the rows of this time or later, the newest first."""
        return self.newest_rows[: np.searchsorted(self._negated_micros, -micros, side="right")]


def to_creation_micros(column: pl.Series) -> NDArray[np.int64]:
    """Return microseconds since 1970 of an attribute of type Datetime("us"); `UNKNOWN_TIME` for null."""
    return column.to_physical().fill_null(UNKNOWN_TIME).to_numpy()
