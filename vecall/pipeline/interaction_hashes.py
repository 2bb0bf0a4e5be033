"""Hashes of interactions by their values: equal for the same interaction in runs whose tables spell it differently."""

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.dataset import Dataset
from vecall.data.hashing import Hashes, hash_bytes, mix_bits, pack_column
from vecall.data.id_map import IdMap
from vecall.data.interactions import Interactions
from vecall.data.timestamps import NS_PER_UNIT

# What is hashed beside user and item: the time in microseconds since 1970, the number in the time column where its unit
# is not known, or without such a column the number of earlier interactions of the same user with the same item.
TimeKey = Literal["microseconds", "numbers", "occurrences"]

_CHUNK_ROWS = 2**20  # interactions or ids hashed at a time, to bound memory
_MAX_INT64_FLOAT = 2.0**63


def get_time_key(dataset: Dataset) -> TimeKey:
    """Return what tells apart interactions of the same user with the same item."""
    if not dataset.has_timestamps:
        return "occurrences"
    return "numbers" if dataset.interactions.time_unit is None else "microseconds"


def can_hash_times(dataset: Dataset, time_key: TimeKey) -> bool:
    """Return whether a dataset has what `hash_positives` needs."""
    own = get_time_key(dataset)
    is_number = own == "numbers" or (own == "microseconds" and not dataset.interactions.has_datetimes)
    return time_key in (own, "occurrences") or (time_key == "numbers" and is_number)


def hash_positives(dataset: Dataset, time_key: TimeKey) -> Hashes:
    """Hash each positive interaction by user, item and time; 1, 1.0 and "1" are the same id or time.

    Args:
        dataset: The tables, for which `can_hash_times` is true.
        time_key: What stands for the time.

    Returns:
        [P] hashes of the P positives, in their order.
    """
    positives = dataset.interactions.positives
    user_hashes, item_hashes = _hash_ids(dataset.catalogue.users), _hash_ids(dataset.catalogue.items)
    times = _compute_time_keys(positives, len(item_hashes), time_key)
    hashes = np.empty(len(times), dtype=np.uint64)
    for start in range(0, len(hashes), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        pair_hashes = mix_bits(user_hashes[positives.users[chunk]]) ^ item_hashes[positives.items[chunk]]
        hashes[chunk] = mix_bits(mix_bits(pair_hashes) ^ times[chunk])
    return hashes


def _hash_ids(ids: IdMap) -> Hashes:
    """Return [N] hashes of the texts of ids: another run may have read the same column as the other type."""
    if ids.id_type == "string":
        return ids.hash_ids()
    column = ids.to_column()
    starts = range(0, len(column), _CHUNK_ROWS)
    chunks = [hash_bytes(*pack_column(column.slice(start, _CHUNK_ROWS).cast(pl.String))) for start in starts]
    return np.concatenate([np.empty(0, dtype=np.uint64), *chunks])


def _compute_time_keys(positives: Interactions, n_items: int, time_key: TimeKey) -> NDArray[np.uint64]:
    if time_key == "occurrences":
        return _count_earlier_occurrences(positives.users.astype(np.int64) * n_items + positives.items)
    times = positives.times
    if time_key == "microseconds":
        ns_per_unit, ns_per_micro = NS_PER_UNIT[positives.time_unit or "us"], NS_PER_UNIT["us"]
        if times.dtype == np.int64:
            # Times of a known unit lie in the years 1 to 9999, which do not overflow.
            return (times // ns_per_micro if ns_per_unit == 1 else times * (ns_per_unit // ns_per_micro)).view(
                np.uint64
            )
        return np.rint(times * (ns_per_unit / ns_per_micro)).astype(np.int64).view(np.uint64)
    if times.dtype == np.int64:
        return np.ascontiguousarray(times).view(np.uint64)
    is_integral = (times == np.floor(times)) & (np.abs(times) < _MAX_INT64_FLOAT)
    integers = np.where(is_integral, times, 0.0).astype(np.int64).view(np.uint64)
    return np.where(is_integral, integers, np.ascontiguousarray(times).view(np.uint64))


def _count_earlier_occurrences(pairs: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Count for each of [n] values how many equal values precede it."""
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    first_equal = np.searchsorted(ordered, ordered)
    counts = np.empty(len(pairs), dtype=np.uint64)
    counts[order] = np.arange(len(pairs)) - first_equal
    return counts
