"""Repeats: which interactions to keep of those of the same user, item and kind, and how many there are."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.ragged import RaggedArray

MIN_REPEAT_SHARE = 0.01  # from which on users are said to take items again

_MAX_USERS = 20_000  # whose histories are examined


def select_distinct(users: Rows, items: Rows, kinds: Rows, keep: Literal["first", "last"]) -> NDArray[np.int64]:
    """Return the positions [m], ascending, of the first or last of the interactions with equal user, item and kind.

    Args:
        users: [n] User rows.
        items: [n] Item rows.
        kinds: [n] Numbers of kinds, 0 or more.
        keep: Which to keep.
    """
    n_items, n_kinds = (int(numbers.max(initial=0)) + 1 for numbers in (items, kinds))
    keys = (users.astype(np.int64) * n_items + items) * n_kinds + kinds
    if keep == "first":
        return np.sort(np.unique(keys, return_index=True)[1])
    return np.sort(len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1])


def measure_repeat_share(histories: RaggedArray) -> float:
    """Return the share of the rows of histories that repeat an earlier row of the same history, of a sample of users.

    The sample is evenly spaced by row: at most 20,000 of the users.
    """
    users = np.arange(0, len(histories), max(1, -(-len(histories) // _MAX_USERS)))
    sample = histories.take(users)
    if not len(sample.values):
        return 0.0
    keys = sample.segment_ids * (int(sample.values.max()) + 1) + sample.values
    return (len(keys) - len(np.unique(keys))) / len(keys)
