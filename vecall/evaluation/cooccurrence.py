"""The baseline of items that stood near the newest items of a history in other histories."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vecall.arrays import Offsets
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baseline_memory import check_baseline_memory
from vecall.evaluation.baselines import count_users
from vecall.evaluation.neighbors import collect_neighbors, compact_rows, group_positions
from vecall.evaluation.scorer import BlockScorer

MAX_NEIGHBORS = 200  # kept per item where all would not fit
_MAX_UNCAPPED_ENTRIES = 50_000_000  # of the item-item matrix up to which all neighbours are kept
_BYTES_PER_ENTRY, _BYTES_PER_INTERACTION, _BYTES_PER_ITEM = 8, 24, 60
_BYTES_PER_ITEM_AND_THREAD = 24  # sums of one item's neighbours
_MAX_THREADS = 8
_CHUNKS_PER_THREAD = 8  # ranges of items: popular items take longer


class RecentCooccurrence:
    """Scores items by their co-occurrence, close in time, with the newest items of the history.

    score(j) = Σ over the last `n_recent` items i of decay^age(i) · near(i, j) / √(n_i · n_j), where n is the number
    of users of an item, and near(i, j), i ≠ j, is the sum of 1 / √gap over all pairs of i and j in one training
    history that are gap <= `window` positions apart, in either order.

    All pairs count while the item-item matrix has at most 50 million entries; beyond that the best `max_neighbors` of
    each item i do.

    Args:
        train: A list of item rows per user, oldest first.
        n_items: N.
        n_recent: Number of newest history items that count.
        decay: Factor of an item's weight per step into the past, in (0, 1].
        window: Largest gap in positions.
        max_neighbors: Neighbours kept per item of a large matrix.

    Attributes:
        is_capped: Whether only the best neighbours are kept.

    Raises:
        ConfigError: Memory is too small.
    """

    def __init__(
        self,
        train: RaggedArray,
        n_items: int,
        *,
        n_recent: int = 10,
        decay: float = 0.9,
        window: int = 50,
        max_neighbors: int = MAX_NEIGHBORS,
    ) -> None:
        self._n_recent, self._decay = n_recent, decay
        pair_bounds = 2 * window * np.bincount(train.values, minlength=n_items).astype(np.int64)
        neighbor_bounds = np.minimum(pair_bounds, max(n_items - 1, 0))  # [N] most neighbours that an item can have
        self.is_capped = bool(neighbor_bounds.sum() > _MAX_UNCAPPED_ENTRIES)
        if self.is_capped:
            neighbor_bounds = np.minimum(neighbor_bounds, max_neighbors)
        check_baseline_memory(
            "co-occurrence",
            _BYTES_PER_ENTRY * int(neighbor_bounds.sum())
            + _BYTES_PER_INTERACTION * len(train.values)
            + (_BYTES_PER_ITEM + _BYTES_PER_ITEM_AND_THREAD * _count_threads()) * n_items,
        )
        self._similarity = _compute_similarity(train, n_items, window, neighbor_bounds)

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Return the scorer of blocks of items for B cases, from the newest items of each history."""
        history = cases.histories.truncate_to_last(self._n_recent)
        ages = history.offsets[1:][history.segment_ids] - 1 - np.arange(len(history.values))
        index_dtype = self._similarity.indices.dtype  # of a wider one scipy would make a copy of the similarities
        recent_weights = sparse.csr_array(  # [B, N]
            (
                (self._decay**ages).astype(np.float32),
                history.values.astype(index_dtype),
                history.offsets.astype(index_dtype),
            ),
            shape=(len(history), self._similarity.shape[0]),
        )
        scores = (recent_weights @ self._similarity).tocsc()  # [B, N], almost empty
        return lambda start, stop: scores[:, start:stop].toarray(order="C")


def _compute_similarity(
    train: RaggedArray, n_items: int, window: int, neighbor_bounds: NDArray[np.int64]
) -> sparse.csr_array:
    """Return near(i, j) / √(n_i · n_j) as [N, N], with at most `neighbor_bounds[i]` entries of each item i."""
    positions, position_offsets = group_positions(train.values, n_items)
    list_ids = train.segment_ids.astype(np.int32)
    item_scale = np.maximum(count_users(train, n_items), 1).astype(np.float32) ** -0.5
    gap_weights = np.array([0.0, *(gap**-0.5 for gap in range(1, window + 1))], dtype=np.float32)
    offsets: Offsets = np.concatenate([[0], np.cumsum(neighbor_bounds)])
    columns, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
    counts = np.zeros(n_items, dtype=np.int64)

    def collect(item_range: tuple[int, int]) -> None:
        collect_neighbors(
            item_range,
            (train.values, list_ids, positions, position_offsets),
            (item_scale, gap_weights),
            (offsets, columns, values, counts),
        )

    with ThreadPoolExecutor(_count_threads()) as pool:
        list(pool.map(collect, _split_evenly(position_offsets, _count_threads() * _CHUNKS_PER_THREAD)))
    indptr = compact_rows(offsets, columns, values, counts)
    matrix = (values[: indptr[-1]], columns[: indptr[-1]], indptr)
    return sparse.csr_array(matrix, shape=(n_items, n_items))


def _count_threads() -> int:
    return min(os.cpu_count() or 1, _MAX_THREADS)


def _split_evenly(position_offsets: Offsets, n_ranges: int) -> list[tuple[int, int]]:
    """Return ranges of items (first, last + 1) with about as many interactions each."""
    targets = np.linspace(0, position_offsets[-1], n_ranges + 1)[1:-1]
    bounds = np.unique([0, *np.searchsorted(position_offsets, targets), len(position_offsets) - 1])
    return [(int(first), int(last)) for first, last in pairwise(bounds)]
