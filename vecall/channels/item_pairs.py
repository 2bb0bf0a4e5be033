"""Pairs of items that stood near each other in histories, counted item by item."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Scores
from vecall.channels.neighbors import (
    CollectedLists,
    Entries,
    collect_lists,
    collect_neighbors,
    compact_rows,
    group_positions,
)
from vecall.data.ragged import RaggedArray, count_users, offsets_from_lengths

BYTES_PER_INTERACTION = 24
BYTES_PER_ITEM, BYTES_PER_ITEM_AND_THREAD = 60, 25  # sums of one item's neighbours
_MAX_THREADS = 8
_RANGES_PER_THREAD = 8  # popular items take longer
_NO_SHARES = np.empty(0, dtype=np.uint8)


def count_threads() -> int:
    """Return the number of threads that count pairs."""
    return min(os.cpu_count() or 1, _MAX_THREADS)


def weigh_gaps(window: int) -> Scores:
    """Return [window + 1] 1 / √gap; that of 0 is not used."""
    return np.array([0.0, *(gap**-0.5 for gap in range(1, window + 1))], dtype=np.float32)


def divide_items(offsets: Offsets, max_items: int | None = None) -> list[tuple[int, int]]:
    """Return ranges of N items (first, last + 1) for the threads, with about as many entries each.

    Args:
        offsets: [N + 1] bounds of the entries of each item.
        max_items: The most items in a range; None for any number.
    """
    n_items = len(offsets) - 1
    ends = np.searchsorted(offsets, np.linspace(0, offsets[-1], count_threads() * _RANGES_PER_THREAD + 1)[1:-1])
    bounds = np.unique([0, *ends, *range(0, n_items, max_items or max(n_items, 1)), n_items])
    return [(int(first), int(last)) for first, last in pairwise(bounds)]


class ItemPairs:
    """Measures for each item how similar others are: near(i, j) / √(n_i · n_j).

    near(i, j), i ≠ j, is the sum of `gap_weights[gap]` over all pairs of i and j in one history that are so many
    positions apart, in either order; n is the number of histories with an item.

    Args:
        histories: A list of item rows per user, oldest first.
        n_items: N.
        gap_weights: [window + 1] weight by gap, of which that of 0 is not used.
    """

    def __init__(self, histories: RaggedArray, n_items: int, gap_weights: Scores) -> None:
        self._values = histories.values
        self._list_ids = histories.segment_ids.astype(np.int32)
        self._positions, self._position_offsets = group_positions(histories.values, n_items)
        self._item_scale: Scores = np.maximum(count_users(histories, n_items), 1).astype(np.float32) ** -0.5
        self._gap_weights = gap_weights

    def bound_neighbors(self, item_range: tuple[int, int]) -> NDArray[np.int64]:
        """Return for each item of a range, from the first to the last + 1, the most neighbours that it can have."""
        first, last = item_range
        pair_bounds = 2 * (len(self._gap_weights) - 1) * np.diff(self._position_offsets[first : last + 1])
        bounds: NDArray[np.int64] = np.minimum(pair_bounds, max(len(self._item_scale) - 1, 0))
        return bounds

    def divide_items(self, max_items: int | None = None) -> list[tuple[int, int]]:
        """Return ranges of items (first, last + 1) for the threads, with about as many interactions each.

        Args:
            max_items: The most items in a range; None for any number.
        """
        return divide_items(self._position_offsets, max_items)

    def collect(self, item_range: tuple[int, int], limits: NDArray[np.int64]) -> CollectedLists:
        """Return the neighbours of a range of items, in no order.

        Args:
            item_range: First item and last item + 1.
            limits: [n] how many neighbours of each item are kept, the most similar; at most `bound_neighbors`.

        Returns:
            Bounds [n + 1]; rows, similarities and later shares [total]: how much of near(i, j) is of pairs in which j
            is the later, of `MAX_SHARE`.
        """
        return collect_lists(limits, partial(self._collect, item_range))

    def collect_all(self, limits: NDArray[np.int64]) -> tuple[Offsets, NDArray[np.int32], Scores]:
        """Return what `collect` returns for all N items, without later shares, by several threads."""
        offsets = offsets_from_lengths(limits)
        columns, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
        counts = np.zeros(len(limits), dtype=np.int64)

        def collect(item_range: tuple[int, int]) -> None:
            first, last = item_range
            self._collect(item_range, (offsets[first : last + 1], columns, values, _NO_SHARES, counts[first:last]))

        with ThreadPoolExecutor(count_threads()) as pool:
            list(pool.map(collect, self.divide_items()))
        compact = compact_rows(offsets, (columns, values), counts)
        return compact, columns[: compact[-1]], values[: compact[-1]]

    def _collect(
        self,
        item_range: tuple[int, int],
        output: Entries,
    ) -> None:
        histories = self._values, self._list_ids, self._positions, self._position_offsets
        collect_neighbors(item_range, histories, (self._item_scale, self._gap_weights), output)
