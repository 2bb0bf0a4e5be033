"""Columns of candidates as a ranker reads them: each is made when it is read."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.frames import get_unnamed_column, select_columns
from vecall.ranking.numeric_columns import to_numbers

Numbers = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64]

USER_PREFIX = "user."  # of columns that are equal in all rows


@runtime_checkable
class CandidateColumns(Protocol):
    """The columns of C candidates of one query.

    What is read of a column `user.*` has the length 1: it is equal in all rows.
    """

    def __len__(self) -> int:
        """Return C."""

    def get_numbers(self, name: str) -> Numbers | None:
        """Return the [C] values of a numeric column, NaN where null; None if there is no such column."""

    def get_texts(self, name: str) -> list[str | None] | None:
        """Return the [C] values as text; None if there is no such column."""

    def get_lengths(self, name: str) -> Numbers | None:
        """Return the [C] lengths of a column of lists, NaN where null; None if there is no such column."""

    def to_frame(self, names: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the table of those of the named columns that there are, or of all."""


class FrameColumns:
    """The columns of a table.

    Args:
        frame: C rows.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __len__(self) -> int:
        return len(self._frame)

    def get_numbers(self, name: str) -> Numbers | None:
        """Return numbers, see `CandidateColumns`."""
        column = self._find(name)
        return None if column is None else to_numbers(column)

    def get_texts(self, name: str) -> list[str | None] | None:
        """Return texts, see `CandidateColumns`."""
        column = self._find(name)
        return None if column is None else column.cast(pl.String).to_list()

    def get_lengths(self, name: str) -> Numbers | None:
        """Return lengths of lists, see `CandidateColumns`."""
        column = self._find(name)
        return None if column is None else get_list_lengths(column)

    def to_frame(self, names: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the table, see `CandidateColumns`."""
        if names is None:
            return self._frame
        return select_columns(self._frame, [name for name in names if name in self._frame.columns])

    def _find(self, name: str) -> pl.Series | None:
        if name not in self._frame.columns:
            return None
        column = get_unnamed_column(self._frame, name)
        return column.head(1) if name.startswith(USER_PREFIX) else column


def get_list_lengths(column: pl.Series) -> NDArray[np.float64]:
    """Return the [n] lengths of the lists of a column; NaN where null."""
    return column.list.len().cast(pl.Float64).to_numpy()
