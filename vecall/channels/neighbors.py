"""Numba kernels that count, for each item, the items near it in all histories."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows, Scores
from vecall.data.ragged import offsets_from_lengths
from vecall.runtime.numba_cache import compile_cached

MAX_SHARE = 255  # a stored share of 1

Entries = tuple[Offsets, NDArray[np.int32], Scores, NDArray[np.uint8], NDArray[np.int64]]
CollectedLists = tuple[Offsets, NDArray[np.int32], Scores, NDArray[np.uint8]]


def group_positions(values: Rows, n_items: int) -> tuple[NDArray[np.int32 | np.int64], Offsets]:
    """Return the [n] positions of `values` grouped by value, ascending within each, and [N + 1] bounds of the groups.

    Args:
        values: [n] rows in 0 .. N - 1.
        n_items: N.
    """
    offsets: Offsets = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=n_items))]).astype(np.int64)
    dtype = np.int32 if len(values) < 2**31 else np.int64
    positions: NDArray[np.int32 | np.int64] = np.empty(len(values), dtype)
    _group_positions(values, offsets[:-1].copy(), positions)
    return positions, offsets


@compile_cached()
def _group_positions(values, cursors, positions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for position in range(values.shape[0]):
        value = values[position]
        positions[cursors[value]] = position
        cursors[value] += 1


def collect_neighbors(
    item_range: tuple[int, int],
    histories: tuple[Rows, NDArray[np.int32], NDArray[np.int32 | np.int64], Offsets],
    weights: tuple[Scores, Scores],
    output: Entries,
) -> None:
    """Write the neighbours of a range of items and their similarities.

    The similarity of i and j is scale[i] · scale[j] · Σ weight[gap] over their pairs in one history. Sums are taken in
    a fixed order, whatever the range: by gap, of the pairs in which j is the later and of the others, then of both.

    Args:
        item_range: First item and last item + 1.
        histories: [n] item of each position, [n] its list, and the positions by item (see `group_positions`).
        weights: [N] scale by item, and [window + 1] weight by gap, of which that of 0 is not used.
        output: [n + 1] bounds of the entries of each of the n items of the range; the entries' columns, values, and
            shares, of `MAX_SHARE`, of the weight in which j is the later, or an empty array if these are not wanted;
            and [n] how many were written, 0 before. Of an item with more neighbours than entries the most similar are
            written.
    """
    _collect_neighbors(*item_range, *histories, *weights, *output)


@compile_cached()
def _add_neighbors(item, direction, values, list_ids, positions, bounds, gap_weights, sums, gap_sums, near_gap, near):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Add the weights of an item's pairs in one direction to `sums[direction]`; return the new length of `near`."""
    first, last, n_near = bounds
    for gap in range(1, gap_weights.shape[0]):
        n_near_gap, is_within = 0, False
        for index in range(first, last):
            position = np.int64(positions[index])
            other = position + gap if direction == 0 else position - gap
            if other < 0 or other >= values.shape[0] or list_ids[other] != list_ids[position]:
                continue
            is_within = True
            neighbor = values[other]
            if neighbor == item:
                continue
            if gap_sums[neighbor] == 0:
                near_gap[n_near_gap] = neighbor
                n_near_gap += 1
            gap_sums[neighbor] += gap_weights[gap]
        for index in range(n_near_gap):
            neighbor = near_gap[index]
            if sums[0, neighbor] == 0 and sums[1, neighbor] == 0:
                near[n_near] = neighbor
                n_near += 1
            sums[direction, neighbor] += gap_sums[neighbor]
            gap_sums[neighbor] = 0
        if not is_within:  # nor for a larger gap
            break
    return n_near


@compile_cached()
def _find_threshold(bits, count, limit):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the `limit`-th largest of the first `count` numbers, or 0 if there are no more than `limit`."""
    threshold = np.uint32(0)
    if count <= limit:
        return threshold
    for bit in range(31, -1, -1):
        candidate = np.uint32(threshold | (np.uint32(1) << np.uint32(bit)))
        reached = 0
        for index in range(count):
            reached += bits[index] >= candidate
        if reached >= limit:
            threshold = candidate
    return threshold


@compile_cached()
def write_nearest(  # type: ignore[no-untyped-def]  # noqa: ANN201
    near,  # noqa: ANN001
    similarity,  # noqa: ANN001
    later_share,  # noqa: ANN001
    n_near,  # noqa: ANN001
    index_in_range,  # noqa: ANN001
    offsets,  # noqa: ANN001
    columns,  # noqa: ANN001
    similarities,  # noqa: ANN001
    later_shares,  # noqa: ANN001
    counts,  # noqa: ANN001
):
    """Write an item's neighbours with similarities above 0, the most similar where there are more than entries.

    The first four arguments are the neighbours, with similarity and share; of the others, see `collect_neighbors`.
    """
    similarity_bits = similarity.view(np.uint32)  # of positive numbers, so in the same order
    start, limit = offsets[index_in_range], offsets[index_in_range + 1] - offsets[index_in_range]
    threshold = _find_threshold(similarity_bits, n_near, limit)
    n_ties = limit  # less those above the threshold: entries left for those that equal it
    for index in range(n_near):
        n_ties -= similarity_bits[index] > threshold
    for index in range(n_near):
        if similarity_bits[index] < threshold:
            continue
        if similarity_bits[index] == threshold:
            if n_ties == 0:
                continue
            n_ties -= 1
        entry = start + counts[index_in_range]
        columns[entry], similarities[entry] = near[index], similarity[index]
        if later_shares.shape[0]:
            later_shares[entry] = later_share[index]
        counts[index_in_range] += 1


@compile_cached()
def _collect_neighbors(  # type: ignore[no-untyped-def]  # noqa: ANN202
    first_item,  # noqa: ANN001
    last_item,  # noqa: ANN001
    values,  # noqa: ANN001
    list_ids,  # noqa: ANN001
    positions,  # noqa: ANN001
    position_offsets,  # noqa: ANN001
    item_scale,  # noqa: ANN001
    gap_weights,  # noqa: ANN001
    offsets,  # noqa: ANN001
    columns,  # noqa: ANN001
    similarities,  # noqa: ANN001
    later_shares,  # noqa: ANN001
    counts,  # noqa: ANN001
):
    n_items = item_scale.shape[0]
    sums = np.zeros((2, n_items), dtype=np.float32)
    gap_sums = np.zeros(n_items, dtype=np.float32)
    near_gap, near = np.empty(n_items, dtype=np.int32), np.empty(n_items, dtype=np.int32)
    similarity, later_share = np.empty(n_items, dtype=np.float32), np.empty(n_items, dtype=np.uint8)
    for item in range(first_item, last_item):
        n_near = 0
        for direction in range(2):
            bounds = (position_offsets[item], position_offsets[item + 1], n_near)
            n_near = _add_neighbors(
                item, direction, values, list_ids, positions, bounds, gap_weights, sums, gap_sums, near_gap, near
            )
        for index in range(n_near):
            neighbor = near[index]
            near_weight = sums[0, neighbor] + sums[1, neighbor]
            similarity[index] = (item_scale[item] * near_weight) * item_scale[neighbor]
            later_share[index] = np.uint8(np.round(MAX_SHARE * sums[0, neighbor] / near_weight))
            sums[0, neighbor] = 0
            sums[1, neighbor] = 0
        entries = columns, similarities, later_shares
        write_nearest(near, similarity, later_share, n_near, item - first_item, offsets, *entries, counts)


def collect_lists(limits: NDArray[np.int64], collect: Callable[[Entries], None]) -> CollectedLists:
    """Return bounds [n + 1], columns, values and shares [total] of n items of which a kernel writes the entries.

    Args:
        limits: [n] the most entries of each item.
        collect: Writes them, see the argument `output` of `collect_neighbors`.
    """
    offsets = offsets_from_lengths(limits)
    columns, values = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1], dtype=np.float32)
    later_shares, counts = np.empty(offsets[-1], dtype=np.uint8), np.zeros(len(limits), dtype=np.int64)
    collect((offsets, columns, values, later_shares, counts))
    compact = compact_rows(offsets, (columns, values, later_shares), counts)
    total = compact[-1]
    return compact, columns[:total], values[:total], later_shares[:total]


def compact_rows(offsets: Offsets, entries: Sequence[NDArray[Any]], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Move the entries of all rows together, in place; return the [N + 1] bounds of the rows.

    Args:
        offsets: [N + 1] bounds of each row's entries.
        entries: Arrays with a number per entry, such as its column.
        counts: [N] entries in use of each row, at its start.
    """
    compact: Offsets = np.concatenate([[0], np.cumsum(counts)])
    for numbers in entries:
        _compact_rows(offsets, numbers, compact)
    return compact.astype(np.int32) if compact[-1] < 2**31 else compact


@compile_cached()
def _compact_rows(offsets, numbers, compact):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for row in range(compact.shape[0] - 1):
        for index in range(compact[row + 1] - compact[row]):
            numbers[compact[row] + index] = numbers[offsets[row] + index]
