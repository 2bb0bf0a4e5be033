"""Building of the channel `similar` from histories: for each item the items that the same users took near in time."""

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vecall.arrays import Rows, Scores
from vecall.channels.item_pairs import (
    BYTES_PER_INTERACTION,
    BYTES_PER_ITEM,
    BYTES_PER_ITEM_AND_THREAD,
    ItemPairs,
    count_threads,
    divide_items,
    weigh_gaps,
)
from vecall.channels.neighbors import CollectedLists
from vecall.channels.second_order import SecondOrderPairs
from vecall.channels.similar_items import SIMILARITY_SCALE, SimilarItems, weigh_seeds
from vecall.data.ragged import RaggedArray, offsets_from_lengths

MAX_NEIGHBORS = 100  # of an item of a large catalogue
_MAX_NEIGHBORS_OF_SMALL = 1_000  # of an item of a catalogue whose whole table stays small
_SMALL_TABLE_ENTRIES = 2 * 10**7
WINDOW = 50  # largest gap in positions
_MAX_RANGE_ITEMS = 2**15  # whose neighbours a thread has in memory; at most 2^16, see `_sort_neighbors`
_BYTES_PER_RANGE = 56 * MAX_NEIGHBORS * _MAX_RANGE_ITEMS
_ENTRY_DTYPES = (np.int32, np.float16, np.uint8)  # of rows, scores and later shares
_MIN_STORED, _MAX_STORED = float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max)


def estimate_build_bytes(n_interactions: int, n_items: int) -> int:
    """Return about the bytes of memory that building needs: 0.9 GiB for 1 M items of 20 M interactions on 2 cores.

    The table itself, at most 140 MB or 7 · 100 · N bytes, is written to a file while it is built and not among them.
    """
    per_item = BYTES_PER_ITEM + BYTES_PER_ITEM_AND_THREAD * count_threads()
    return BYTES_PER_INTERACTION * n_interactions + per_item * n_items + _BYTES_PER_RANGE * count_threads()


def limit_neighbors(n_items: int) -> int:
    """Return how many neighbours an item keeps: 100 from 200,000 items on, 1,000 up to 20,000 items."""
    return max(MAX_NEIGHBORS, min(_MAX_NEIGHBORS_OF_SMALL, _SMALL_TABLE_ENTRIES // max(n_items, 1)))


def build_similar_items(
    histories: RaggedArray,
    n_items: int,
    *,
    has_order: bool = True,
    second_order: float = 0.0,
    scratch_dir: Path | None = None,
) -> SimilarItems | None:
    """Find for each item its nearest by s(i, j) = near(i, j) / √(n_i · n_j), as the co-occurrence baseline does.

    An item has as many neighbours as `limit_neighbors` allows.

    near(i, j), i ≠ j, is the sum of 1 / √gap over all pairs of i and j in one history that are at most 50 positions
    apart, in either order, and n is the number of users of an item. Positions also count where interactions have no
    times: on three such data sets, counting all pairs alike found fewer held-out items.

    Args:
        histories: A list of item rows per user, oldest first.
        n_items: N.
        has_order: Whether what came last says most of what comes next, see `weigh_seeds`.
        second_order: Weight of Σ_k s(i, k) · s(k, j), which is added to s(i, j); 0 for none. The sums are those of the
            neighbours that are kept.
        scratch_dir: Where the files without a name lie that hold the table; None for the system's directory of
            temporary files.

    Returns:
        The neighbours; None where no two items are in one history.

    Raises:
        OSError: The files cannot be written.
    """
    max_neighbors = limit_neighbors(n_items)
    max_range_items = _MAX_RANGE_ITEMS * MAX_NEIGHBORS // max_neighbors
    pairs = ItemPairs(histories, n_items, weigh_gaps(WINDOW))
    seed_weights = weigh_seeds(has_order=has_order)

    def collect(item_range: tuple[int, int]) -> CollectedLists:
        return pairs.collect(item_range, np.minimum(pairs.bound_neighbors(item_range), max_neighbors))

    similar = _build_table(collect, pairs.divide_items(max_range_items), seed_weights, scratch_dir)
    if similar is None or not second_order:
        return similar
    paths = SecondOrderPairs(similar, second_order)
    ranges = divide_items(similar.offsets, max_range_items)
    return _build_table(partial(paths.collect, limit=max_neighbors), ranges, seed_weights, scratch_dir)


def _build_table(
    collect: Callable[[tuple[int, int]], CollectedLists],
    ranges: Sequence[tuple[int, int]],
    seed_weights: NDArray[np.float64],
    scratch_dir: Path | None,
) -> SimilarItems | None:
    """Build a table in files without a name, range by range in several threads; None if all lists are empty.

    Args:
        collect: Returns bounds, rows, similarities and later shares of a range of items.
        ranges: First item and last item + 1 of each, ascending.
        seed_weights: Of the table.
        scratch_dir: Where the files lie.
    """

    def collect_sorted(item_range: tuple[int, int]) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
        offsets, rows, similarities, later_shares = collect(item_range)
        lengths = np.diff(offsets)
        return lengths, _sort_neighbors(lengths, rows, similarities, later_shares)

    lengths = []
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=scratch_dir)) for _ in _ENTRY_DTYPES]
        with ThreadPoolExecutor(count_threads()) as pool:
            for range_lengths, entries in pool.map(collect_sorted, ranges):
                lengths.append(range_lengths)
                for file, numbers in zip(files, entries, strict=True):
                    file.write(numbers.data)
        offsets = offsets_from_lengths(np.concatenate([*lengths, np.empty(0, dtype=np.int64)]))
        if not offsets[-1]:
            return None
        rows, scores, later_shares = map(_map_file, files, _ENTRY_DTYPES)
        return SimilarItems(offsets, rows, scores, later_shares, seed_weights)


def _sort_neighbors(
    lengths: NDArray[np.int64], rows: Rows, similarities: Scores, later_shares: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.uint8]]:
    """Sort each of n <= 2^16 lists by descending stored score, then ascending row.

    Args:
        lengths: [n] Lengths of the lists.
        rows: [total] Rows of neighbours.
        similarities: [total] Their similarities.
        later_shares: [total] Of each.

    Returns:
        Rows, stored scores and later shares, [total].
    """
    # Far pairs of popular items and items that one user took again and again would leave the range of float16.
    stored = np.clip(similarities * SIMILARITY_SCALE, _MIN_STORED, _MAX_STORED).astype(np.float16)
    # The bits of positive floats ascend with them. A key is 16 bits of the list, 16 of the score, 32 of the row.
    owners = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    keys = owners << np.uint64(48) | (~stored.view(np.uint16)).astype(np.uint64) << np.uint64(32)
    keys |= rows.astype(np.uint64)
    order = keys.argsort()
    return rows[order], stored[order], later_shares[order]


def _map_file(file: IO[bytes], dtype: DTypeLike) -> NDArray[Any]:
    """Map a file, which may be closed then, as an array."""
    file.flush()
    return np.memmap(file, dtype, mode="r").view(np.ndarray)
