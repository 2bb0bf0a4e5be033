"""Scoring stored half-precision rows, compiled by numba: they are widened in registers, nothing is copied.

Each row is scored by one loop of one order, whatever stands beside it: equal vectors get equal scores to the bit.
The compiled code is kept in numba's cache; call `warm` before the first request, which would wait seconds for it.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.index.bitmap import Bitmap

intrinsic: Any = typed_intrinsic  # its type is that of another protocol

_PREFETCH_ROWS = 16  # rows that are asked of the memory before their turn; random rows come 1.5 times as fast
_LAST_BIN = 2**11 - 1  # of the scale, from 0, that tells the best scores from the others; all its bits are set
_CACHE_LINE_BYTES = 64  # bytes that memory hands over at once
# Sums may be taken in an order that fills the registers; it is the same for every row.
_FASTMATH_FLAGS = {"reassoc", "contract", "nsz"}


def _jit(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - numba's dispatchers have no type
    try:
        return numba.njit(nogil=True, fastmath=_FASTMATH_FLAGS, cache=True)(function)
    except (RuntimeError, NumbaError):  # neither here nor at home may a cache be written
        return numba.njit(nogil=True, fastmath=_FASTMATH_FLAGS)(function)


@intrinsic
def _half_to_float32(_typing: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001 - numba's protocol
    """Uint16 that holds a half as a float32: one instruction for many of them at once."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _prefetch(_typing: Any, array: Any, _offset: Any) -> Any:  # noqa: ANN401 - numba's protocol
    """Ask the memory for the line at a byte of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        data = builder.bitcast(view.data, ir.IntType(8).as_pointer())
        place = builder.gep(data, [arguments[1]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(instruction, [place, number(0), number(3), number(1)])  # for reading, into every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _count_trailing_zeros(_typing: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001 - numba's protocol
    """Place of the lowest bit that is set, of a number that is not 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@_jit
def _dot(half_bits, row, query):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for axis in range(query.shape[0]):
        total += _half_to_float32(half_bits[row, axis]) * query[axis]
    return total


@_jit
def _score_rows(half_bits, query, rows, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    width = 2 * query.shape[0]
    for place in range(rows.shape[0]):
        if place + _PREFETCH_ROWS < rows.shape[0]:
            start = rows[place + _PREFETCH_ROWS] * width
            for line in range(0, width, _CACHE_LINE_BYTES):
                _prefetch(half_bits, start + line)
        scores[place] = _dot(half_bits, rows[place], query)


@_jit
def _list_rows(bits, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found = 0
    for byte in range(bits.shape[0]):
        left = np.uint64(bits[byte])
        while left:
            rows[found] = 8 * byte + np.int64(_count_trailing_zeros(left))
            found += 1
            left &= left - np.uint64(1)


@_jit
def _score_all(half_bits, query, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for row in range(scores.shape[0]):
        scores[row] = _dot(half_bits, row, query)


@_jit
def _collect_top_k_superset(scores, k, positions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Count how many scores fall into each of equal steps from the lowest to the highest, then take the top steps."""
    low, high = np.float64(scores.min()), np.float64(scores.max())  # a difference of float32 may be beyond float32
    scale = np.float64(_LAST_BIN) / max(high - low, 1e-300)
    counts = np.zeros(_LAST_BIN + 1, dtype=np.int64)
    for score in scores:
        counts[int((score - low) * scale) & _LAST_BIN] += 1  # whatever the score is, that step exists
    step, above = _LAST_BIN, counts[_LAST_BIN]
    while above < k and step > 0:
        step -= 1
        above += counts[step]
    found = 0
    for place in range(scores.shape[0]):
        if int((scores[place] - low) * scale) & _LAST_BIN >= step:
            positions[found] = place
            found += 1
    return found


@_jit
def _pack_sort_keys(bits, rows, positions, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Numbers that ascend as scores descend, then as rows ascend: 32 bits of either."""
    for at in range(positions.shape[0]):
        place = positions[at]
        row = place if rows is None else rows[place]
        keys[at] = np.uint64(_invert_float_order(bits[place])) << np.uint64(32) | np.uint64(row)


@_jit
def _unpack_sort_keys(keys, rows, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for at in range(rows.shape[0]):
        rows[at] = np.int64(keys[at] & np.uint64(0xFFFFFFFF))
        bits[at] = _invert_float_order(np.uint32(keys[at] >> np.uint64(32)))


@_jit
def _invert_float_order(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """A float32's bits as a number that ascends as it descends, and back; both zeros are one."""
    if bits == np.uint32(0x80000000):
        return np.uint32(0x7FFFFFFF)
    return bits if bits >> np.uint32(31) else np.uint32(0x7FFFFFFF) - bits


def _make_read_only_view(array: Any) -> Any:  # noqa: ANN401 - an array
    """The same numbers, never to be written: to numba, which compiles anew for others, all arrays are of one type."""
    view = array.view()
    view.flags.writeable = False
    return view


def compute_inner_products(half_vectors: HalfVectors, query: Vectors, rows: Rows | None = None) -> Scores:
    """Inner products of one query [D] with rows of [N, D] stored vectors, or with all of them.

    Rows are not checked: each must be in 0 .. N - 1.
    """
    scores = np.empty(len(half_vectors) if rows is None else len(rows), dtype=np.float32)
    bits, asked = _make_read_only_view(half_vectors.view(np.uint16)), _make_read_only_view(np.ascontiguousarray(query))
    if rows is None:
        _score_all(bits, asked, scores)
    else:
        _score_rows(bits, asked, _make_read_only_view(rows), scores)
    return scores


def select_top_k_superset(scores: Scores, k: int) -> NDArray[np.int64]:
    """Places of all scores [n] that may be among the k best, ascending: those, their ties, and few others.

    Scores must be finite.
    """
    if len(scores) <= k:
        return np.arange(len(scores))
    places = np.empty(len(scores), dtype=np.int64)
    return places[: _collect_top_k_superset(_make_read_only_view(scores), k, places)]


def select_top_k(scores: Scores, rows: Rows | None, k: int) -> tuple[Rows, Scores]:
    """The k best of n scored rows, or all, by score descending, then row ascending.

    Args:
        scores: [n], finite.
        rows: [n], distinct, below 2^32; None: 0 .. n - 1.
        k: at least 1.
    """
    near = select_top_k_superset(scores, k)
    keys = np.empty(len(near), dtype=np.uint64)
    _pack_sort_keys(
        _make_read_only_view(scores.view(np.uint32)),
        None if rows is None else _make_read_only_view(rows),
        _make_read_only_view(near),
        keys,
    )
    keys.sort()  # one sort of whole numbers, where one by two columns takes ten times as long
    found = min(k, len(keys))
    best, bits = np.empty(found, dtype=np.int64), np.empty(found, dtype=np.uint32)
    _unpack_sort_keys(_make_read_only_view(keys), best, bits)
    return best, bits.view(np.float32)


def bitmap_to_rows(bitmap: Bitmap) -> Rows:
    """The rows in a bitmap, ascending."""
    rows = np.empty(bitmap.count, dtype=np.int64)
    _list_rows(_make_read_only_view(bitmap.bits), rows)
    return rows


def compile_kernels() -> None:
    """Compile everything, or read it from numba's cache: some seconds, or a half."""
    codes = np.zeros((1, 1), dtype=np.float16)
    query = np.zeros(1, dtype=np.float32)
    compute_inner_products(codes, query)
    rows = bitmap_to_rows(Bitmap.full(1))
    select_top_k_superset(compute_inner_products(codes, query, rows), 0)
    select_top_k(np.zeros(1, dtype=np.float32), None, 1)
    select_top_k(np.zeros(1, dtype=np.float32), rows, 1)
