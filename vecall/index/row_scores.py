"""Scores by row, collected in a hash table: several times as fast as by sorting."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

from vecall.arrays import Mask, Offsets, Rows
from vecall.index.kernels import make_read_only_view, view_rows
from vecall.runtime.numba_cache import compile_cached

intrinsic: Any = typed_intrinsic  # declared for a calling convention that differs from its use here

_jit = compile_cached()  # sums are taken in the order of the values


class RowScores:
    """Collects scores of rows, from several sources.

    Args:
        capacity: The most values that are added.
    """

    def __init__(self, capacity: int) -> None:
        self._positions = np.full(2 << capacity.bit_length(), -1, dtype=np.int32)  # by slot; at most half are used
        self._rows = np.empty(capacity, dtype=np.int64)
        self._scores = np.empty(capacity, dtype=np.float64)
        self._count = 0

    @property
    def rows(self) -> Rows:
        """[n] distinct rows, in the order in which they occurred first."""
        return self._rows[: self._count]

    @property
    def scores(self) -> NDArray[np.float64]:
        """[n] score of each row."""
        return self._scores[: self._count]

    def add(self, rows: Rows, values: NDArray[np.float64]) -> None:
        """Add values [n] to the scores of rows [n], at least 0."""
        views = view_rows(rows), make_read_only_view(values)
        self._count = _add_values(*views, self._positions, self._rows, self._scores, self._count)

    def add_segments(
        self,
        rows: NDArray[np.int32],
        values: NDArray[np.float32 | np.float16],
        segments: tuple[Offsets, Offsets],
        factors: NDArray[np.float64],
    ) -> None:
        """Add values [total] times a factor to the scores of rows [total], for some segments of these arrays.

        Args:
            rows: [total] rows, at least 0.
            values: [total].
            segments: [s] where each starts, and where it ends.
            factors: [s] factor of the values of each, a double, as the products are.
        """
        bits = values.view(np.uint16) if values.dtype == np.float16 else values
        views = make_read_only_view(rows), make_read_only_view(bits)
        self._count = _add_segments(*views, *segments, factors, self._positions, self._rows, self._scores, self._count)

    def count(self, rows: NDArray[np.int32], segments: tuple[Offsets, Offsets]) -> None:
        """Add 1 to the scores of rows [total], at least 0, for some segments of them: starts [s] and ends [s]."""
        view = make_read_only_view(rows)
        self._count = _count_segments(view, *segments, self._positions, self._rows, self._scores, self._count)

    def look_up(self, rows: Rows) -> tuple[Mask, NDArray[np.float64]]:
        """Return whether each of the rows [n] has a score, and its score; 0 where it has none."""
        has_score, scores = np.empty(len(rows), dtype=np.bool_), np.empty(len(rows), dtype=np.float64)
        view = view_rows(rows)
        _look_up(view, self._positions, self._rows, self._scores, has_score, scores)
        return has_score, scores

    def add_ranks(self, rows: Rows, weight: float, constant: float) -> None:
        """Add weight / (constant + rank) to the score of each of the rows [n], whose ranks are 1 .. n."""
        self._fuse(rows, weight, constant, is_sum=True)

    def raise_by_ranks(self, rows: Rows, weight: float) -> None:
        """Raise the score of each of the rows [n], whose ranks are 1 .. n, to weight / rank, which is above 0."""
        self._fuse(rows, weight, 0.0, is_sum=False)

    def _fuse(self, rows: Rows, weight: float, constant: float, *, is_sum: bool) -> None:
        view = view_rows(rows)
        parameters = float(weight), float(constant), is_sum
        self._count = _add_ranks(view, *parameters, self._positions, self._rows, self._scores, self._count)


@intrinsic
def _to_float64(_typing: Any, value: Any) -> Any:  # noqa: ANN401 - numba's protocol
    """Convert a float32, or the bits of a float16, to float64."""

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        number = arguments[0]
        if signature.args[0] == types.uint16:
            number = builder.fpext(builder.bitcast(number, ir.HalfType()), ir.FloatType())
        return builder.fpext(number, ir.DoubleType())

    return types.float64(value), generate


@_jit
def _insert(added_rows, positions, rows, scores, count, found):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the position of each of some rows among `rows`, where new ones are appended with score 0; return the count.

    A hash table with linear probing: `positions` has -1 in free slots. A loop that called a function for each row would
    take ten times as long.
    """
    mask = np.uint64(positions.shape[0] - 1)
    for i in range(added_rows.shape[0]):
        row = np.int64(added_rows[i])
        slot = (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
        while positions[slot] >= 0 and rows[positions[slot]] != row:
            slot = (slot + np.uint64(1)) & mask
        if positions[slot] < 0:
            positions[slot], rows[count], scores[count] = count, row, 0.0
            count += 1
        found[i] = positions[slot]
    return count


@_jit
def _add_values(added_rows, values, positions, rows, scores, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found = np.empty(added_rows.shape[0], dtype=np.int32)
    count = _insert(added_rows, positions, rows, scores, count, found)
    for i in range(found.shape[0]):
        scores[found[i]] += values[i]
    return count


@_jit
def _add_segments(added_rows, values, starts, ends, factors, positions, rows, scores, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for segment in range(starts.shape[0]):
        start, end, factor = starts[segment], ends[segment], factors[segment]
        found = np.empty(end - start, dtype=np.int32)
        count = _insert(added_rows[start:end], positions, rows, scores, count, found)
        for i in range(found.shape[0]):
            scores[found[i]] += _to_float64(values[start + i]) * factor
    return count


@_jit
def _count_segments(added_rows, starts, ends, positions, rows, scores, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for segment in range(starts.shape[0]):
        found = np.empty(ends[segment] - starts[segment], dtype=np.int32)
        count = _insert(added_rows[starts[segment] : ends[segment]], positions, rows, scores, count, found)
        for position in found:
            scores[position] += 1.0
    return count


@_jit
def _add_ranks(added_rows, weight, constant, is_sum, positions, rows, scores, count):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found = np.empty(added_rows.shape[0], dtype=np.int32)
    count = _insert(added_rows, positions, rows, scores, count, found)
    for i in range(found.shape[0]):
        score = weight / (constant + (i + 1))
        if is_sum:
            scores[found[i]] += score
        elif score > scores[found[i]]:
            scores[found[i]] = score
    return count


@_jit
def _look_up(sought_rows, positions, rows, scores, has_score, found_scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    mask = np.uint64(positions.shape[0] - 1)
    for i in range(sought_rows.shape[0]):
        row = sought_rows[i]
        slot = (np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
        while positions[slot] >= 0 and rows[positions[slot]] != row:
            slot = (slot + np.uint64(1)) & mask
        has_score[i] = positions[slot] >= 0
        found_scores[i] = scores[positions[slot]] if positions[slot] >= 0 else 0.0


def compile_row_scores() -> None:
    """Compile the kernels, or load them from numba's cache. See `vecall.index.kernels.compile_kernels`."""
    scores, no_bounds = RowScores(1), np.empty(0, dtype=np.int64)
    scores.add(np.zeros(0, dtype=np.int64), np.empty(0))
    for dtype in (np.float32, np.float16):
        scores.add_segments(np.empty(0, dtype=np.int32), np.empty(0, dtype=dtype), (no_bounds, no_bounds), np.empty(0))
    scores.count(np.empty(0, dtype=np.int32), (no_bounds, no_bounds))
    scores.add_ranks(np.empty(0, dtype=np.int64), 1.0, 1.0)
    scores.look_up(np.empty(0, dtype=np.int64))
