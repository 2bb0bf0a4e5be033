"""The best rows of each user, collected from blocks of items in memory that does not grow with the items."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores

Keys = NDArray[np.uint64]

_NO_KEY = np.uint64(2**64 - 1)  # sorts behind every key
_SIGN_BIT, _MAX_POSITIVE = np.uint32(2**31), np.uint32(2**31 - 1)


class TopRows:
    """The `depth` best of the scored rows that were added for each of B users: score descending, then row ascending.

    A row and its score are packed into a uint64 that ascends in this order. So keys are distinct whatever the scores,
    and a partition of numbers keeps exactly the best.

    Args:
        n_users: B.
        depth: Rows kept per user, at least 1.

    Attributes:
        thresholds: [B, 1] scores that a row must exceed to be kept, if it is above all rows that were added; NaN while
            a user has fewer than `depth` rows. They may lag behind the scores that were added.
    """

    def __init__(self, n_users: int, depth: int) -> None:
        self._depth = depth
        self._keys: Keys = np.full((n_users, 2 * depth), _NO_KEY)
        self._counts = np.zeros(n_users, dtype=np.int64)  # keys of each user, at the left of its line
        self.thresholds: Scores = np.full((n_users, 1), np.nan, dtype=np.float32)

    def add(self, users: NDArray[np.int64], rows: Rows, scores: Scores) -> None:
        """Add scored rows.

        Args:
            users: [n] users in 0 .. B - 1, ascending.
            rows: [n] rows below 2^32, each added once per user.
            scores: [n] scores without NaN.
        """
        added = np.bincount(users, minlength=len(self._counts))
        if (self._counts + added).max(initial=0) > self._keys.shape[1]:
            self._drop_all_but_best()
            shortage = int((self._counts + added).max()) - self._keys.shape[1]
            if shortage > 0:
                padding = np.full((len(self._keys), shortage), _NO_KEY)
                self._keys = np.concatenate([self._keys, padding], axis=1)
        columns = np.arange(len(users)) + (self._counts - np.cumsum(added) + added)[users]
        self._keys[users, columns] = _pack_keys(rows, scores)
        self._counts += added
        if self._counts.max(initial=0) >= 2 * self._depth:
            self._drop_all_but_best()

    def sort(self) -> tuple[Rows, Scores]:
        """Return rows and scores, each [B, depth], best first; row -1 and score NaN after the last of a user."""
        self._drop_all_but_best()
        return _unpack_keys(np.sort(self._keys[:, : self._depth], axis=1))

    def _drop_all_but_best(self) -> None:
        best = np.partition(self._keys, self._depth - 1, axis=1)[:, : self._depth]
        self._counts = np.minimum(self._counts, self._depth)
        is_full = self._counts == self._depth
        if not is_full.all():
            best.sort(axis=1)  # padding to the right
        self._keys = np.full((len(best), 2 * self._depth), _NO_KEY)
        self._keys[:, : self._depth] = best
        worst_scores = _unpack_keys(best.max(axis=1))[1]
        self.thresholds = np.where(is_full, worst_scores, np.float32(np.nan))[:, None]


def _pack_keys(rows: Rows, scores: Scores) -> Keys:
    """Return keys that ascend as scores descend, then as rows ascend: 32 bits of score, 32 bits of row."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into 0.0
    return _invert_float_order(bits).astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64)


def _unpack_keys(keys: Keys) -> tuple[Rows, Scores]:
    """Return the rows and scores of keys, -1 and NaN of padding."""
    rows = np.where(keys == _NO_KEY, -1, (keys & np.uint64(2**32 - 1)).astype(np.int64))
    return rows, _invert_float_order((keys >> np.uint64(32)).astype(np.uint32)).view(np.float32)


def _invert_float_order(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Map the bits of float32 numbers other than -0.0 to uint32 that ascend as they descend; its own inverse."""
    return np.where(bits >= _SIGN_BIT, bits, _MAX_POSITIVE - bits)
