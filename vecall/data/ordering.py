"""Order of interactions in histories: by user, then time, then position in the file."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vecall.data.id_numbering import Codes

Times = NDArray[np.int64] | NDArray[np.float64]

_DIGIT_BITS = 16  # NumPy sorts 16-bit integers by radix
_BLOCK_ROWS = 2**16  # interactions whose times are sorted together, which fit in the cache


def order_by_user_and_time(users: Codes, times: Times | None) -> NDArray[np.int64]:
    """Return the positions [n] of interactions ordered by user, then time, then position.

    Equal to `np.lexsort((times, users))`, in a fifth of its time at 50 million.

    Args:
        users: [n] Numbers of users, 0 or more.
        times: [n] Times; None if the interactions are in the order of their times.
    """
    order = _order_by_user(users)
    if times is None:
        return order
    ordered_users, ordered_times = users[order], times[order]
    is_same_user = ordered_users[1:] == ordered_users[:-1]
    if not (is_same_user & (ordered_times[1:] < ordered_times[:-1])).any():
        return order
    for block in _split_between_users(is_same_user):
        order[block] = order[block][np.lexsort((ordered_times[block], ordered_users[block]))]
    return order


def _order_by_user(users: Codes) -> NDArray[np.int64]:
    """Return the positions [n] ordered by user, then position: a radix sort of 16 bits at a time."""
    order = np.argsort(users.astype(np.uint16), kind="stable")  # by the lower bits
    if users.max(initial=0) >= 2**_DIGIT_BITS:
        upper = (users >> _DIGIT_BITS).astype(np.uint16)
        order = order[np.argsort(upper[order], kind="stable")]
    return order


def _split_between_users(is_same_user: NDArray[np.bool_]) -> list[slice]:
    """Cut n interactions into blocks of about `_BLOCK_ROWS`, none of which ends within a user.

    Args:
        is_same_user: [n - 1] Whether an interaction is of the same user as the one before.
    """
    user_starts = np.concatenate([[0], np.flatnonzero(~is_same_user) + 1])
    n_interactions = len(is_same_user) + 1
    firsts = np.searchsorted(user_starts, np.arange(0, n_interactions, _BLOCK_ROWS))
    bounds = [*np.unique(user_starts[firsts[firsts < len(user_starts)]]).tolist(), n_interactions]
    return [slice(start, end) for start, end in pairwise(bounds)]
