"""The baseline of items that stood near the newest items of a history in other histories."""

import numpy as np
from scipy import sparse

from vecall.channels.item_pairs import (
    BYTES_PER_INTERACTION,
    BYTES_PER_ITEM,
    BYTES_PER_ITEM_AND_THREAD,
    ItemPairs,
    count_threads,
    weigh_gaps,
)
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baseline_memory import check_baseline_memory
from vecall.evaluation.scorer import BlockScorer

MAX_NEIGHBORS = 200  # kept per item where all would not fit
_MAX_UNCAPPED_ENTRIES = 50_000_000  # of the item-item matrix up to which all neighbours are kept
_BYTES_PER_ENTRY = 8


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
            + BYTES_PER_INTERACTION * len(train.values)
            + (BYTES_PER_ITEM + BYTES_PER_ITEM_AND_THREAD * count_threads()) * n_items,
        )
        indptr, columns, values = ItemPairs(train, n_items, weigh_gaps(window)).collect_all(neighbor_bounds)
        self._similarity = sparse.csr_array((values, columns, indptr), shape=(n_items, n_items))

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
