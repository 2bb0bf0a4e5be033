"""Which interactions to keep of those of the same user, item and kind."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows


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
