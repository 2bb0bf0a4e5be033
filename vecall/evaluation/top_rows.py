"""The best rows of each user, collected from blocks of items in memory that does not grow with the items.

The rows of a user are a heap whose root is the worst of them, in kernels of numba: nearly all scores of a block are
below the root, and are read and compared once.
"""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.data.ragged import RaggedArray
from vecall.runtime.numba_cache import compile_cached

Keys = NDArray[np.uint64]

_NO_KEY = np.uint64(2**64 - 1)  # sorts behind every key
_SIGN_BIT, _MAX_POSITIVE = np.uint32(2**31), np.uint32(2**31 - 1)
_ROW_BITS, _ROW_MASK = np.uint64(32), np.uint64(2**32 - 1)


class TopRows:
    """The `depth` best of the scored rows that were added for each of B users: score descending, then row ascending.

    A row and its score are packed into a uint64 that ascends in this order: keys are distinct whatever the scores.

    Args:
        n_users: B.
        depth: Rows kept per user, at least 1.
    """

    def __init__(self, n_users: int, depth: int) -> None:
        self._keys: Keys = np.full((n_users, depth), _NO_KEY)  # a heap in each line, the worst key first

    @property
    def thresholds(self) -> Scores:
        """[B, 1] scores of the worst rows; NaN while a user has fewer than `depth` rows."""
        return _unpack_keys(self._keys[:, :1])[1]

    def add(self, users: NDArray[np.int64], rows: Rows, scores: Scores) -> None:
        """Add scored rows.

        Args:
            users: [n] users in 0 .. B - 1.
            rows: [n] rows below 2^32, each added once per user.
            scores: [n] scores without NaN.
        """
        _add_pairs(users, rows, np.ascontiguousarray(scores).view(np.uint32), self._keys)

    def add_block(self, scores: Scores, first: int, seen: RaggedArray) -> bool:
        """Add the rows of a block that are not seen; return whether one of their scores is NaN, which ends it.

        Args:
            scores: [B, n] scores of the rows from `first` on.
            first: Higher than all rows that were added before.
            seen: B ascending lists of rows that are left out.
        """
        scores = np.require(scores, requirements=("C", "W"))  # for which alone the kernel is compiled
        lists = seen.values.astype(np.int64, copy=False), seen.offsets.astype(np.int64, copy=False)
        return bool(_add_block(scores, scores.view(np.uint32), first, *lists, self._keys, self.thresholds))

    def sort(self) -> tuple[Rows, Scores]:
        """Return rows and scores, each [B, depth], best first; row -1 and score NaN after the last of a user."""
        return _unpack_keys(np.sort(self._keys, axis=1))


@compile_cached()
def _replace_worst(keys, user, key):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    position, depth = 0, keys.shape[1]
    while True:
        child = 2 * position + 1
        if child >= depth:
            break
        if child + 1 < depth and keys[user, child + 1] > keys[user, child]:
            child += 1
        if keys[user, child] <= key:
            break
        keys[user, position] = keys[user, child]
        position = child
    keys[user, position] = key


@compile_cached()
def _pack_key(row, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return a key that ascends as scores descend, then as rows ascend: 32 bits of score, 32 bits of row."""
    if bits == _SIGN_BIT:  # -0.0 is 0.0
        bits = np.uint32(0)
    order = bits if bits >= _SIGN_BIT else _MAX_POSITIVE - bits
    return np.uint64(order) << _ROW_BITS | np.uint64(row)


@compile_cached()
def _add_pairs(users, rows, bits, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for index in range(users.shape[0]):
        key = _pack_key(rows[index], bits[index])
        if key < keys[users[index], 0]:
            _replace_worst(keys, users[index], key)


@compile_cached()
def _add_block(scores, bits, first, seen_rows, seen_offsets, keys, thresholds):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    threshold_bits = np.empty(1, dtype=np.uint32)
    threshold_score = threshold_bits.view(np.float32)
    for user in range(scores.shape[0]):
        position, stop = seen_offsets[user], seen_offsets[user + 1]
        position += np.searchsorted(seen_rows[position:stop], first)
        next_seen = seen_rows[position] - first if position < stop else -1
        threshold = thresholds[user, 0]
        for column in range(scores.shape[1]):
            if column == next_seen:
                position += 1
                next_seen = seen_rows[position] - first if position < stop else -1
                continue
            score = scores[user, column]
            if score <= threshold:  # false for NaN, and where there is no threshold yet
                continue
            if np.isnan(score):
                return True
            _replace_worst(keys, user, _pack_key(first + column, bits[user, column]))
            if keys[user, 0] != _NO_KEY:
                order = np.uint32(keys[user, 0] >> _ROW_BITS)
                threshold_bits[0] = order if order >= _SIGN_BIT else _MAX_POSITIVE - order
                threshold = threshold_score[0]
    return False


def _unpack_keys(keys: Keys) -> tuple[Rows, Scores]:
    """Return the rows and scores of keys, -1 and NaN of padding."""
    rows = np.where(keys == _NO_KEY, -1, (keys & _ROW_MASK).astype(np.int64))
    return rows, _invert_float_order((keys >> _ROW_BITS).astype(np.uint32)).view(np.float32)


def _invert_float_order(bits: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Map uint32 that ascend as float32 numbers other than -0.0 descend to the bits of these numbers."""
    return np.where(bits >= _SIGN_BIT, bits, _MAX_POSITIVE - bits)
