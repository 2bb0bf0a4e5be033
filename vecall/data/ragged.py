"""Ragged lists of item rows: histories, held-out targets, exclusions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """n lists of item rows in one array (CSR layout): list i is `rows[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: [n + 1], ascending from 0.
        rows: [total] item rows; within a history the oldest comes first.
    """

    offsets: NDArray[np.int64]
    rows: Rows

    @classmethod
    def of(cls, lists: Iterable[Sequence[int] | Rows]) -> Self:
        """From one list of rows each."""
        arrays = [np.asarray(rows, dtype=np.int64) for rows in lists]
        lengths = np.fromiter((len(rows) for rows in arrays), dtype=np.int64, count=len(arrays))
        rows = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), rows)

    @classmethod
    def grouped(cls, groups: NDArray[np.int64], rows: Rows, n: int) -> Self:
        """From (group, row) pairs whose groups ascend within 0 .. n - 1."""
        counts = np.bincount(groups, minlength=n)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.rows[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] how many rows each list has."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> NDArray[np.int64]:
        """[total] the list that each row belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, indices: NDArray[np.int64]) -> "Sequences":
        """The lists at `indices`, in that order."""
        starts, lengths = self.offsets[indices], self.lengths[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Sequences(offsets, self.rows[np.repeat(starts, lengths) + within])

    def last(self, count: int) -> "Sequences":
        """The last `count` rows of each list, the newest."""
        kept = np.minimum(self.lengths, count)
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
        return Sequences(offsets, self.rows[np.repeat(self.offsets[1:] - kept, kept) + within])

    def padded(self, fill: int = -1) -> tuple[Rows, NDArray[np.int64]]:
        """The lists as one array, left-aligned: [n, longest] rows filled with `fill`, and [n] lengths."""
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.rows
        return table, lengths


@dataclass(frozen=True)
class Cases:
    """Users to be judged: what was known of each, and what is held out.

    Attributes:
        users: [n] user rows.
        histories: n lists of what the user took before the held-out time, oldest first.
        targets: n lists of distinct held-out items, never empty.
    """

    users: NDArray[np.int64]
    histories: Sequences
    targets: Sequences

    def __len__(self) -> int:
        return len(self.users)

    def take(self, indices: NDArray[np.int64]) -> "Cases":
        """The cases at `indices`, in that order."""
        return Cases(self.users[indices], self.histories.take(indices), self.targets.take(indices))
