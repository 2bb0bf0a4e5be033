"""Lists of rows of different lengths: histories, held-out targets, exclusions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows

_CHUNK_ROWS = 2**22
_COUNTED_CHUNK = 2**20  # rows whose lists are counted at once


def offsets_from_lengths(lengths: NDArray[np.int64]) -> Offsets:
    """Return the [n + 1] offsets of n segments that follow each other."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def locate_segments(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the [total] positions in n segments of an array, segment by segment, given their starts and lengths."""
    offsets = offsets_from_lengths(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def count_rows(rows: Rows, n_rows: int) -> NDArray[np.int64]:
    """Return how often each of the rows 0 to n_rows - 1 occurs, [n_rows]."""
    counts = np.zeros(n_rows, dtype=np.int64)
    for start in range(0, len(rows), _CHUNK_ROWS):  # NumPy converts what it counts to int64
        counts += np.bincount(rows[start : start + _CHUNK_ROWS], minlength=n_rows)
    return counts


@dataclass(frozen=True)
class RaggedArray:
    """n lists of rows in one array (CSR layout): list i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: [n + 1] Bounds of the lists, ascending from 0.
        values: [total] Rows of all lists, int32 or int64; in a history the oldest comes first.
    """

    offsets: Offsets
    values: Rows

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | Rows]) -> Self:
        """Build from one sequence of rows per list."""
        arrays = [np.asarray(rows, dtype=np.int64) for rows in lists]
        lengths = np.fromiter((len(rows) for rows in arrays), dtype=np.int64, count=len(arrays))
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
        return cls(offsets_from_lengths(lengths), values)

    @classmethod
    def from_sorted_pairs(cls, segment_ids: Rows, values: Rows, n_lists: int) -> Self:
        """Build from (list, row) pairs that are sorted by list.

        Args:
            segment_ids: [total] Index of the list of each row, in [0, n_lists). Must be ascending, which is not
                checked: other orders give wrong lists.
            values: [total] The rows; not copied.
            n_lists: Number of lists; those without a row are empty.
        """
        # A binary search per list: counting would convert all of `segment_ids` to int64.
        bounds = np.arange(n_lists + 1, dtype=segment_ids.dtype)
        return cls(np.searchsorted(segment_ids, bounds).astype(np.int64, copy=False), values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Rows:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows in each list, [n]."""
        return np.diff(self.offsets)

    @property
    def segment_ids(self) -> NDArray[np.int64]:
        """Index of the list that each row belongs to, [total]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, indices: NDArray[np.int64]) -> "RaggedArray":
        """Return the lists at `indices`, in that order."""
        return _gather(self.values, self.offsets[indices], self.lengths[indices])

    def truncate_to_last(self, count: int) -> "RaggedArray":
        """Return the last `count` rows of each list, or all of a shorter list."""
        lengths = np.minimum(self.lengths, count)
        return _gather(self.values, self.offsets[1:] - lengths, lengths)

    def drop_repeats(self) -> "RaggedArray":
        """Return the lists with the last one alone of rows of a list that are equal."""
        owners, values = self.segment_ids, self.values
        order = np.lexsort((values, owners))  # equal ones stay in their order
        is_last = np.ones(len(order), dtype=np.bool_)
        is_last[:-1] = (np.diff(values[order]) != 0) | (np.diff(owners[order]) != 0)
        kept = np.sort(order[is_last])
        return RaggedArray(offsets_from_lengths(np.bincount(owners[kept], minlength=len(self))), values[kept])

    def to_padded(self, fill_value: int = -1) -> tuple[Rows, NDArray[np.int64]]:
        """Return the lists as a matrix.

        Returns:
            [n, longest] Rows, left-aligned and padded with `fill_value`, and [n] the lengths.
        """
        lengths = self.lengths
        table = np.full((len(self), int(lengths.max(initial=0))), fill_value, dtype=np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = self.values
        return table, lengths


def _gather(values: Rows, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> RaggedArray:
    """Return the segments of `values` with the given starts and lengths as lists."""
    return RaggedArray(offsets_from_lengths(lengths), values[locate_segments(starts, lengths)])


def count_users(lists: RaggedArray, n_items: int) -> NDArray[np.int64]:
    """Return [N] the number of lists that contain each of the rows 0 to N - 1, however often."""
    counts = np.zeros(n_items, dtype=np.int64)
    values, owners = lists.values, lists.segment_ids
    bounds = np.searchsorted(lists.offsets, np.arange(0, len(values), _COUNTED_CHUNK))  # whole lists
    for first, last in pairwise([*lists.offsets[np.unique(bounds)], len(values)]):
        codes = np.sort(owners[first:last] * n_items + values[first:last])
        is_first = np.concatenate([[True], codes[1:] != codes[:-1]])[: len(codes)]
        counts += np.bincount(codes[is_first] % n_items, minlength=n_items)
    return counts


class RaggedView(RaggedArray):
    """n lists that are segments of an array which other lists use too; `take` copies the lists that it returns.

    `offsets` and `values` are those of a copy, which is made when they are first read.

    Args:
        source: [any] Rows.
        starts: [n] List i is `source[starts[i] : starts[i] + lengths[i]]`.
        lengths: [n] Lengths of the lists.
    """

    def __init__(self, source: Rows, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        for name, value in (("_source", source), ("_starts", starts), ("_lengths", lengths)):
            object.__setattr__(self, name, value)  # of a frozen dataclass

    _source: Rows
    _starts: NDArray[np.int64]
    _lengths: NDArray[np.int64]

    @cached_property
    def offsets(self) -> Offsets:
        """Bounds of the lists in `values`, [n + 1]."""
        return offsets_from_lengths(self._lengths)

    @cached_property
    def values(self) -> Rows:
        """Rows of all lists, [total]."""
        return _gather(self._source, self._starts, self._lengths).values

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Rows:
        return self._source[self._starts[index] : self._starts[index] + self._lengths[index]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows in each list, [n]."""
        return self._lengths

    def take(self, indices: NDArray[np.int64]) -> RaggedArray:
        """Return the lists at `indices`, in that order."""
        return _gather(self._source, self._starts[indices], self._lengths[indices])

    def truncate_to_last(self, count: int) -> RaggedArray:
        """Return the last `count` rows of each list, or all of a shorter list."""
        lengths = np.minimum(self._lengths, count)
        return _gather(self._source, self._starts + self._lengths - lengths, lengths)


@dataclass(frozen=True)
class EvalCases:
    """Users to evaluate: what each took before, and what is held out.

    Attributes:
        users: [n] User rows.
        histories: n lists of item rows that the user took before the held-out time, oldest first.
        targets: n lists of distinct held-out item rows, never empty.
        context: [n] Rows with a column per context feature, of the first held-out interaction; None without context.
    """

    users: Rows
    histories: RaggedArray
    targets: RaggedArray
    context: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.users)

    def take(self, indices: NDArray[np.int64]) -> "EvalCases":
        """Return the cases at `indices`, in that order."""
        context = None if self.context is None else self.context[indices]
        return EvalCases(self.users[indices], self.histories.take(indices), self.targets.take(indices), context)
