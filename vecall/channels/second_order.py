"""Neighbours of neighbours: what a table of similar items says of pairs that no user, or few, took both."""

import numpy as np

from vecall.channels.neighbors import CollectedLists, collect_lists, write_nearest
from vecall.channels.similar_items import SIMILARITY_SCALE, SimilarItems
from vecall.runtime.numba_cache import compile_cached

_HALF_VALUES = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)  # by their bits


class SecondOrderPairs:
    """Measures for each item s(i, j) + weight · Σ_k s(i, k) · s(k, j), where s is the similarity of a table.

    The later share is that of s(i, j), as a share of the whole: what is of the sum has no direction.

    Args:
        similar: The table, of N items.
        weight: Of the sum, above 0.
    """

    def __init__(self, similar: SimilarItems, weight: float) -> None:
        self._similar, self._weight = similar, weight

    def collect(self, item_range: tuple[int, int], limit: int) -> CollectedLists:
        """Return the most similar items of a range of items, see `ItemPairs.collect`.

        Args:
            item_range: First item and last item + 1.
            limit: How many of each item are kept.
        """
        first, last = item_range
        lengths = np.full(last - first, min(limit, max(len(self._similar) - 1, 0)), dtype=np.int64)
        lengths[np.diff(self._similar.offsets[first : last + 1]) == 0] = 0
        similar = self._similar
        table = similar.offsets, similar.rows, similar.scores.view(np.uint16), similar.later_shares
        weights = np.float32(1 / SIMILARITY_SCALE), np.float32(self._weight)
        return collect_lists(lengths, lambda output: _collect(first, last, *table, _HALF_VALUES, *weights, *output))


@compile_cached()
def _collect(  # type: ignore[no-untyped-def]  # noqa: ANN202
    first_item,  # noqa: ANN001
    last_item,  # noqa: ANN001
    table_offsets,  # noqa: ANN001
    table_rows,  # noqa: ANN001
    table_bits,  # noqa: ANN001
    table_shares,  # noqa: ANN001
    half_values,  # noqa: ANN001
    scale,  # noqa: ANN001
    weight,  # noqa: ANN001
    offsets,  # noqa: ANN001
    columns,  # noqa: ANN001
    similarities,  # noqa: ANN001
    later_shares,  # noqa: ANN001
    counts,  # noqa: ANN001
):
    n_items = table_offsets.shape[0] - 1
    sums = np.zeros(n_items, dtype=np.float32)
    near = np.empty(n_items, dtype=np.int32)
    similarity, later_share = np.empty(n_items, dtype=np.float32), np.empty(n_items, dtype=np.uint8)
    for item in range(first_item, last_item):
        n_near = 0
        for position in range(table_offsets[item], table_offsets[item + 1]):
            near[n_near] = table_rows[position]
            n_near += 1
            sums[table_rows[position]] = scale * half_values[table_bits[position]]
        n_first = n_near
        for position in range(table_offsets[item], table_offsets[item + 1]):
            between = table_rows[position]
            factor = weight * scale * half_values[table_bits[position]] * scale
            for other in range(table_offsets[between], table_offsets[between + 1]):
                neighbor = table_rows[other]
                if neighbor == item:
                    continue
                if sums[neighbor] == 0:
                    near[n_near] = neighbor
                    n_near += 1
                sums[neighbor] += factor * half_values[table_bits[other]]
        for index in range(n_near):
            similarity[index], later_share[index] = sums[near[index]], 0
            if index < n_first:
                position = table_offsets[item] + index
                share = table_shares[position] * scale * half_values[table_bits[position]] / similarity[index]
                later_share[index] = np.uint8(np.round(share))
            sums[near[index]] = 0
        entries = columns, similarities, later_shares
        write_nearest(near, similarity, later_share, n_near, item - first_item, offsets, *entries, counts)
