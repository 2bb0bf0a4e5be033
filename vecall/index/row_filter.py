"""Which rows may be answers: those that a bitmap allows, without a few excluded ones, and rows beyond the bitmap's."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.index.bitmap import Bitmap
from vecall.index.kernels import make_read_only_view, view_rows
from vecall.runtime.numba_cache import compile_cached

_NO_BITS = np.empty(0, dtype=np.uint8)
_NO_ROWS = np.empty(0, dtype=np.int64)
_MIN_PIECE = 64  # rows that are looked at together

_jit = compile_cached()


class RowFilter:
    """Tells which rows pass. Rows are at least 0; those of a base are below N, further ones from N on.

    Args:
        allowed: Rows of the base that pass; None for all.
        excluded: Distinct rows of the base that do not pass nevertheless, few of them.
        size: N.
        further: [S] whether row N + i passes.
    """

    def __init__(self, allowed: Bitmap | None, excluded: Rows, size: int, further: Mask) -> None:
        table = _NO_ROWS
        if len(excluded):
            table = np.full(4 << len(excluded).bit_length(), -1, dtype=np.int64)  # most probes meet a free slot
            _fill_table(view_rows(excluded), table)
        bits = _NO_BITS if allowed is None else allowed.bits
        self._parts = make_read_only_view(bits), table, size, make_read_only_view(further)

    def mark(self, rows: Rows) -> Mask:
        """Return [n] whether each of the rows [n] passes."""
        mask = np.empty(len(rows), dtype=np.bool_)
        _mark(view_rows(rows), *self._parts, mask)
        return mask

    def find_first(self, rows: Rows, count: int) -> NDArray[np.int64]:
        """Return the positions, ascending, of the first `count` of the rows that pass; fewer where so many do not."""
        positions = np.empty(min(count, len(rows)), dtype=np.int64)
        return positions[: _find_first(view_rows(rows), *self._parts, positions)]

    def select(self, rows: Rows, scores: NDArray[np.float64]) -> tuple[Rows, NDArray[np.float64]]:
        """Return the rows that pass, in their order, and their scores."""
        kept_rows, kept_scores = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.float64)
        count = _select(view_rows(rows), make_read_only_view(scores), *self._parts, kept_rows, kept_scores)
        return kept_rows[:count], kept_scores[:count]


@_jit
def _find_slot(row, table):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the slot of a row in a hash table with linear probing, or the free slot (-1) where it belongs."""
    mask = np.uint64(table.shape[0] - 1)
    slot = (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while table[slot] >= 0 and table[slot] != row:
        slot = (slot + np.uint64(1)) & mask
    return slot


@_jit
def _fill_table(rows, table):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for row in rows:
        table[_find_slot(row, table)] = row


@_jit
def _mark(rows, bits, table, size, further, mask):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    has_bits, has_table, slot_mask = bits.shape[0] > 0, table.shape[0] > 0, np.uint64(table.shape[0] - 1)
    for i in range(rows.shape[0]):
        row = rows[i]
        if row >= size:
            mask[i] = further[row - size]
            continue
        passes = True
        if has_bits:
            passes = (bits[row >> 3] >> np.uint8(row & 7)) & np.uint8(1) != 0
        if passes and has_table:
            slot = (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & slot_mask
            while table[slot] >= 0 and table[slot] != row:
                slot = (slot + np.uint64(1)) & slot_mask
            passes = table[slot] < 0
        mask[i] = passes


@_jit
def _find_first(rows, bits, table, size, further, positions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Mark a piece of the rows at a time, of about as many as are still to be found."""
    count, start = 0, 0
    mask = np.empty(min(rows.shape[0], max(positions.shape[0], _MIN_PIECE)), dtype=np.bool_)
    while start < rows.shape[0] and count < positions.shape[0]:
        end = min(start + mask.shape[0], rows.shape[0])
        _mark(rows[start:end], bits, table, size, further, mask)
        for i in range(start, end):
            if mask[i - start] and count < positions.shape[0]:
                positions[count] = i
                count += 1
        start = end
    return count


@_jit
def _select(rows, scores, bits, table, size, further, kept_rows, kept_scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    mask = np.empty(rows.shape[0], dtype=np.bool_)
    _mark(rows, bits, table, size, further, mask)
    count = 0
    for i in range(rows.shape[0]):
        if mask[i]:
            kept_rows[count], kept_scores[count] = rows[i], scores[i]
            count += 1
    return count


def compile_row_filter() -> None:
    """Compile the kernels, or load them from numba's cache. See `vecall.index.kernels.compile_kernels`."""
    row_filter, rows = RowFilter(None, np.zeros(1, dtype=np.int64), 1, np.empty(0, dtype=np.bool_)), _NO_ROWS
    row_filter.mark(rows)
    row_filter.find_first(rows, 1)
    row_filter.select(rows, np.empty(0))
