"""Ragged lists of item rows: histories, held-out targets, exclusions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows


@dataclass(frozen=True)
class RaggedArray:
    """n lists of item rows in one array (CSR layout): list i is `rows[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: [n + 1], ascending from 0.
        values: [total] item rows; within a history the oldest comes first.
    """

    offsets: NDArray[np.int64]
    values: Rows

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | Rows]) -> Self:
        """From one list of rows each."""
        arrays = [np.asarray(rows, dtype=np.int64) for rows in lists]
        lengths = np.fromiter((len(rows) for rows in arrays), dtype=np.int64, count=len(arrays))
        rows = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), rows)

    @classmethod
    def from_groups(cls, groups: NDArray[np.int64], values: Rows, n_lists: int) -> Self:
        """From (group, row) pairs whose groups ascend within 0 .. n - 1."""
        counts = np.bincount(groups, minlength=n_lists)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] how many rows each list has."""
        return np.diff(self.offsets)

    @property
    def segment_ids(self) -> NDArray[np.int64]:
        """[total] the list that each row belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, indices: NDArray[np.int64]) -> "RaggedArray":
        """The lists at `indices`, in that order."""
        starts, lengths = self.offsets[indices], self.lengths[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return RaggedArray(offsets, self.values[np.repeat(starts, lengths) + within])

    def take_last(self, count: int) -> "RaggedArray":
        """The last `count` rows of each list, the newest."""
        kept = np.minimum(self.lengths, count)
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
        return RaggedArray(offsets, self.values[np.repeat(self.offsets[1:] - kept, kept) + within])

    def to_padded(self, fill_value: int = -1) -> tuple[Rows, NDArray[np.int64]]:
        """The lists as one array, left-aligned: [n, longest] rows filled with `fill_value`, and [n] lengths."""
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill_value, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.values
        return table, lengths


@dataclass(frozen=True)
class EvalCases:
    """Users to be judged: what was known of each, and what is held out.

    Attributes:
        users: [n] user rows.
        histories: n lists of what the user took before the held-out time, oldest first.
        targets: n lists of distinct held-out items, never empty.
    """

    users: NDArray[np.int64]
    histories: RaggedArray
    targets: RaggedArray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, indices: NDArray[np.int64]) -> "EvalCases":
        """The cases at `indices`, in that order."""
        return EvalCases(self.users[indices], self.histories.take(indices), self.targets.take(indices))
