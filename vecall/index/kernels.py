"""Numba kernels that score stored half-precision rows, converting them in registers without a copy.

Every row is scored by the same loop in the same order, whatever its neighbours: equal vectors get bit-identical scores.
Compiled code is kept in numba's cache. Call `compile_kernels` before the first request, which would otherwise wait
seconds for the compiler.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.index.bitmap import Bitmap
from vecall.runtime.numba_cache import compile_cached

intrinsic: Any = typed_intrinsic  # declared for a calling convention that differs from its use here

_PREFETCH_ROWS = 16  # rows between prefetch and use; makes rows at random addresses 1.5 times as fast
_LAST_BIN = 2**11 - 1  # bins 0 .. 2,047 of a histogram; a mask, since all its bits are set
_FEW_KEYS = 64  # beyond the k smallest that are sorted rather than told apart
_CACHE_LINE_BYTES = 64
# Sums may be reordered to fill the registers; the order is the same for every row.
_FASTMATH_FLAGS = {"reassoc", "contract", "nsz"}


_jit = compile_cached(fastmath=_FASTMATH_FLAGS)


@intrinsic
def half_to_float32(_typing: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001 - numba's protocol
    """Convert the bits of a float16, a uint16, to float32: one vector instruction for many of them."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _prefetch(_typing: Any, array: Any, _offset: Any) -> Any:  # noqa: ANN401 - numba's protocol
    """Prefetch the cache line at a byte offset of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        data = builder.bitcast(view.data, ir.IntType(8).as_pointer())
        address = builder.gep(data, [arguments[1]])
        int32 = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [address.type, int32, int32, int32])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [address.type], function_type)
        builder.call(instruction, [address, int32(0), int32(3), int32(1)])  # read, into all cache levels, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def _count_trailing_zeros(_typing: Any, bits: Any) -> Any:  # noqa: ANN401, ARG001 - numba's protocol
    """Position of the lowest set bit of a number other than 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@_jit
def _dot(half_bits, row, query):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    total = np.float32(0)
    for axis in range(query.shape[0]):
        total += half_to_float32(half_bits[row, axis]) * query[axis]
    return total


@_jit
def _score_rows(half_bits, query, rows, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    row_bytes = 2 * query.shape[0]
    for position in range(rows.shape[0]):
        if position + _PREFETCH_ROWS < rows.shape[0]:
            start = rows[position + _PREFETCH_ROWS] * row_bytes
            for offset in range(0, row_bytes, _CACHE_LINE_BYTES):
                _prefetch(half_bits, start + offset)
        scores[position] = _dot(half_bits, rows[position], query)


@_jit
def _list_rows(bits, rows):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    count = 0
    for byte in range(bits.shape[0]):
        remaining = np.uint64(bits[byte])
        while remaining:
            rows[count] = 8 * byte + np.int64(_count_trailing_zeros(remaining))
            count += 1
            remaining &= remaining - np.uint64(1)


@_jit
def _score_all(half_bits, query, scores):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for row in range(scores.shape[0]):
        scores[row] = _dot(half_bits, row, query)


@_jit
def _collect_top_k_superset(scores, k, positions):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Build a histogram of the scores and collect the positions of those in its top bins."""
    low, high = np.float64(scores.min()), np.float64(scores.max())  # float64: the difference may exceed float32
    scale = np.float64(_LAST_BIN) / max(high - low, 1e-300)
    counts = np.zeros(_LAST_BIN + 1, dtype=np.int64)
    for score in scores:
        counts[int((score - low) * scale) & _LAST_BIN] += 1  # the mask keeps any score, even NaN, within the array
    lowest_bin, count = _LAST_BIN, counts[_LAST_BIN]
    while count < k and lowest_bin > 0:
        lowest_bin -= 1
        count += counts[lowest_bin]
    n_collected = 0
    for position in range(scores.shape[0]):
        if int((scores[position] - low) * scale) & _LAST_BIN >= lowest_bin:
            positions[n_collected] = position
            n_collected += 1
    return n_collected


@_jit
def _collect_sort_keys(scores, bits, rows, k, keys):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write uint64 keys that ascend as scores descend, then as rows ascend: 32 bits of score, 32 bits of row.

    Only the first keys, whose number is returned, may be among the k smallest.
    """
    n = scores.shape[0]
    positions = np.empty(n if n > k else 0, dtype=np.int64)
    count = _collect_top_k_superset(scores, k, positions) if n > k else n
    for i in range(count):
        position = positions[i] if n > k else i
        row = position if rows is None else rows[position]
        keys[i] = np.uint64(_invert_float_order(bits[position])) << np.uint64(32) | np.uint64(row)
    return _keep_smallest(keys[:count], k)


@_jit
def _keep_smallest(keys, k):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Move the k smallest of distinct keys and at most a few others to the front; return their number.

    By histograms of ever smaller ranges around the k-th. Linear bins of scores leave many where a few are far larger.
    """
    start, end = 0, keys.shape[0]  # keys before `start` are among the smallest, those from `end` on are not
    while end - k > _FEW_KEYS:
        low = high = keys[start]
        for i in range(start, end):
            low, high = min(low, keys[i]), max(high, keys[i])
        shift = np.uint64(0)
        while (high - low) >> shift > np.uint64(_LAST_BIN):
            shift += np.uint64(1)
        counts = np.zeros(_LAST_BIN + 1, dtype=np.int64)
        for i in range(start, end):
            counts[np.int64((keys[i] - low) >> shift)] += 1
        last_bin, count = 0, counts[0]
        while start + count < k:
            last_bin += 1
            count += counts[last_bin]
        n_kept = start
        for i in range(start, end):
            if np.int64((keys[i] - low) >> shift) <= last_bin:
                keys[n_kept] = keys[i]
                n_kept += 1
        end = n_kept
        for i in range(start, end):
            if np.int64((keys[i] - low) >> shift) < last_bin:
                keys[start], keys[i] = keys[i], keys[start]
                start += 1
    return end


@_jit
def _unpack_sort_keys(keys, rows, bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(rows.shape[0]):
        rows[i] = np.int64(keys[i] & np.uint64(0xFFFFFFFF))
        bits[i] = _invert_float_order(np.uint32(keys[i] >> np.uint64(32)))


@_jit
def _invert_float_order(bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Map the bits of a float32 to a uint32 that ascends as the float descends; its own inverse. -0.0 becomes 0.0."""
    if bits == np.uint32(0x80000000):
        return np.uint32(0x7FFFFFFF)
    return bits if bits >> np.uint32(31) else np.uint32(0x7FFFFFFF) - bits


@_jit
def _gather_vectors(half_bits, rows, vectors):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    row_bytes = 2 * vectors.shape[1]
    for position in range(rows.shape[0]):
        if position + _PREFETCH_ROWS < rows.shape[0]:
            start = rows[position + _PREFETCH_ROWS] * row_bytes
            for offset in range(0, row_bytes, _CACHE_LINE_BYTES):
                _prefetch(half_bits, start + offset)
        for axis in range(vectors.shape[1]):
            vectors[position, axis] = half_to_float32(half_bits[rows[position], axis])


def make_read_only_view(array: Any) -> Any:  # noqa: ANN401 - an array
    """Read-only view of an array. Numba compiles a kernel once per array type; this gives all inputs the same type."""
    view = array.view()
    view.setflags(write=False)  # half as long as by `flags`
    return view


def view_rows(rows: Rows) -> Rows:
    """Read-only view of rows as kernels take them: contiguous, of 64 bits. Other arrays are copied."""
    view: Rows = make_read_only_view(np.ascontiguousarray(rows, dtype=np.int64))
    return view


def compute_inner_products(half_vectors: HalfVectors, query: Vectors, rows: Rows | None = None) -> Scores:
    """Compute the inner products of one query with stored vectors.

    Args:
        half_vectors: [N, D] stored vectors.
        query: [D].
        rows: [n] rows in 0 .. N - 1, which are not checked; None scores all N.

    Returns:
        [n] or [N] scores.
    """
    scores = np.empty(len(half_vectors) if rows is None else len(rows), dtype=np.float32)
    half_bits = make_read_only_view(half_vectors.view(np.uint16))
    query = make_read_only_view(np.ascontiguousarray(query))
    if rows is None:
        _score_all(half_bits, query, scores)
    else:
        _score_rows(half_bits, query, make_read_only_view(rows), scores)
    return scores


def select_top_k_superset(scores: Scores, k: int) -> NDArray[np.int64]:
    """Positions, ascending, of the k best of n finite scores [n], of all ties with the k-th, and of few others."""
    if len(scores) <= k:
        return np.arange(len(scores))
    positions = np.empty(len(scores), dtype=np.int64)
    return positions[: _collect_top_k_superset(make_read_only_view(scores), k, positions)]


def select_top_k(scores: Scores, rows: Rows | None, k: int) -> tuple[Rows, Scores]:
    """Select the k best of n scored rows, or all n if k exceeds n.

    Args:
        scores: [n], finite.
        rows: [n] distinct rows below 2^32; None is 0 .. n - 1.
        k: number of rows, at least 1.

    Returns:
        Rows and scores, each [min(k, n)], by descending score, then ascending row.
    """
    keys = np.empty(len(scores), dtype=np.uint64)
    count = _collect_sort_keys(
        make_read_only_view(scores),
        make_read_only_view(scores.view(np.uint32)),
        None if rows is None else make_read_only_view(rows),
        k,
        keys,
    )
    keys = keys[:count]
    keys.sort()  # ten times as fast as a sort by two columns
    count = min(k, len(keys))
    best_rows, bits = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.uint32)
    _unpack_sort_keys(make_read_only_view(keys), best_rows, bits)
    return best_rows, bits.view(np.float32)


def gather_vectors(half_vectors: HalfVectors, rows: Rows) -> Vectors:
    """Return the stored vectors [n, D] of rows [n] in 0 .. N - 1, which are not checked, as float32."""
    vectors = np.empty((len(rows), half_vectors.shape[1]), dtype=np.float32)
    _gather_vectors(make_read_only_view(half_vectors.view(np.uint16)), make_read_only_view(rows), vectors)
    return vectors


def bitmap_to_rows(bitmap: Bitmap) -> Rows:
    """List the rows of a bitmap, ascending."""
    rows = np.empty(bitmap.count, dtype=np.int64)
    _list_rows(make_read_only_view(bitmap.bits), rows)
    return rows


def compile_kernels() -> None:
    """Compile all kernels, which takes some seconds, or load them from numba's cache, in half a second."""
    half_vectors = np.zeros((1, 1), dtype=np.float16)
    query = np.zeros(1, dtype=np.float32)
    compute_inner_products(half_vectors, query)
    rows = bitmap_to_rows(Bitmap.full(1))
    select_top_k_superset(compute_inner_products(half_vectors, query, rows), 0)
    select_top_k(np.zeros(1, dtype=np.float32), None, 1)
    select_top_k(np.zeros(1, dtype=np.float32), rows, 1)
    gather_vectors(half_vectors, rows)
