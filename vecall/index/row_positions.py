"""Positions of rows in an array of rows, by hashing: for the few hundred rows of an answer faster than any sort."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.runtime.numba_cache import compile_cached

_jit = compile_cached()


class RowPositions:
    """Finds rows in an array of rows.

    Args:
        rows: [n] distinct rows; those below 0 are never found.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = np.ascontiguousarray(rows, dtype=np.int64)
        self._slots = np.full(2 << len(rows).bit_length(), -1, dtype=np.int32)  # at most half full
        _fill_slots(self._rows, self._slots)

    def find(self, rows: Rows) -> NDArray[np.int64]:
        """Return the position of each of some rows, [len(rows)]; -1 where it is not in the array."""
        positions = np.empty(len(rows), dtype=np.int64)
        _find(self._rows, self._slots, np.ascontiguousarray(rows, dtype=np.int64), positions)
        return positions


@_jit
def _hash(row, slots):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & np.uint64(slots.shape[0] - 1)


@_jit
def _fill_slots(rows, slots):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the positions of the rows into a table of -1, with linear probing; its length is a power of 2."""
    for position in range(rows.shape[0]):
        if rows[position] >= 0:
            slot = _hash(rows[position], slots)
            while slots[slot] >= 0:
                slot = (slot + np.uint64(1)) & np.uint64(slots.shape[0] - 1)
            slots[slot] = position


@_jit
def _find(rows, slots, sought_rows, positions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(sought_rows.shape[0]):
        slot = _hash(sought_rows[i], slots)
        while slots[slot] >= 0 and rows[slots[slot]] != sought_rows[i]:
            slot = (slot + np.uint64(1)) & np.uint64(slots.shape[0] - 1)
        positions[i] = slots[slot]


def compile_row_positions() -> None:
    """Compile the kernels, or load them from numba's cache, before the first request."""
    RowPositions(np.zeros(1, dtype=np.int64)).find(np.zeros(1, dtype=np.int64))
