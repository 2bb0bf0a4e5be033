"""Exact search: every vector is scored. The reference for the recall of approximate indexes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.errors import DataError, QueryError
from vecall.index.bitmap import Bitmap
from vecall.index.hits import Hits
from vecall.index.kernels import bitmap_to_rows, compute_inner_products, select_top_k
from vecall.index.topk import make_empty_hits, sort_hits

MAX_STORED_VALUE = 65504.0  # largest finite float16
MAX_QUERY_VALUE = 1e29  # D <= 16,384 products of this with MAX_STORED_VALUE still sum to a finite float32

_BLOCK_ELEMENTS = 2**21  # scores or vector elements held in memory at a time: 8 MiB of float32
_QUERY_BATCH_SIZE = 128


def scan(half_vectors: HalfVectors, queries: Vectors, k: int, allowed: Bitmap | None = None) -> Hits:
    """Return the k best of N half-precision vectors for each query, exactly, in bounded memory.

    One query is scored row by row in the calling thread. For several queries a matrix product preselects the rows that
    may be among the k best. The last bits of its scores depend on a row's position in the matrix, so the preselected
    rows are scored again row by row: equal vectors get equal scores either way.

    Args:
        half_vectors: [N, D] stored vectors.
        queries: [B, D] float32, finite.
        k: number of rows per query, at least 1; may exceed N.
        allowed: bitmap of the N rows that may be returned; None allows all. Only allowed rows are read.

    Returns:
        Hits [B, k], padded with row -1, with the float32 inner products with the stored vectors.

    Raises:
        QueryError: the queries, k or `allowed` are invalid.
    """
    check_queries(queries, half_vectors.shape[1], k)
    check_allowed(allowed, len(half_vectors))
    rows = None if allowed is None else bitmap_to_rows(allowed)
    if len(queries) == 1:
        return scan_single_query(half_vectors, queries[0], rows, k)
    hits = make_empty_hits(len(queries), k)
    for start in range(0, len(queries), _QUERY_BATCH_SIZE):
        batch = slice(start, start + _QUERY_BATCH_SIZE)
        _scan_into(Hits(hits.rows[batch], hits.scores[batch]), half_vectors, queries[batch], rows)
    return hits


def scan_single_query(half_vectors: HalfVectors, query: Vectors, rows: Rows | None, k: int) -> Hits:
    """Return the k best rows of one query, with the scores and the order of `scan`.

    Args:
        half_vectors: [N, D] stored vectors.
        query: [D].
        rows: [n] distinct rows to scan; None scans all N.
        k: number of rows, at least 1.

    Returns:
        Hits [1, k], padded with row -1.
    """
    best, scores = select_top_k(compute_inner_products(half_vectors, query, rows), rows, k)
    if len(best) == k:
        return Hits(best[None], scores[None])
    hits = make_empty_hits(1, k)
    hits.rows[0, : len(best)], hits.scores[0, : len(best)] = best, scores
    return hits


def rescore(half_vectors: HalfVectors, queries: Vectors, rows: Rows) -> Hits:
    """Score rows that another search found, and sort them, as `scan` does.

    Args:
        half_vectors: [N, D] stored vectors.
        queries: [B, D].
        rows: [B, k] distinct rows of each query; -1 is padding.

    Returns:
        Hits [B, k].
    """
    hits = make_empty_hits(*rows.shape)
    for b, query in enumerate(queries):
        best = scan_single_query(half_vectors, query, rows[b][rows[b] >= 0], rows.shape[1])
        hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
    return hits


def round_to_half_precision(vectors: Vectors | HalfVectors) -> Vectors:
    """Round vectors to half precision, half to even, and return them as float32.

    faiss rounds halfway cases differently on different machines. Handing it rounded numbers makes every engine on every
    machine store the same values.
    """
    return vectors.astype(np.float16).astype(np.float32)


def check_vectors(vectors: Vectors | HalfVectors) -> None:
    """Check that vectors can be stored.

    Raises:
        DataError: not float32 or float16 [N, D] with N, D >= 1, or a value that is not representable in half precision.
    """
    if vectors.dtype not in (np.float32, np.float16) or vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(
            f"item vectors are {vectors.dtype} {list(vectors.shape)}; expected float32 or float16 [N, D] with at least "
            "one vector and one dimension: convert or reshape the array"
        )
    for start in range(0, len(vectors), step := compute_block_rows(vectors.shape[1])):
        block = vectors[start : start + step]
        invalid = np.argwhere(~(np.abs(block) <= MAX_STORED_VALUE))
        if len(invalid):
            row, axis = invalid[0]
            raise DataError(
                f"item vector {start + row} has {block[row, axis]} in dimension {axis}; expected finite numbers within "
                f"±{MAX_STORED_VALUE:.0f}, the range of half precision: normalise the vectors or drop the item"
            )


def check_queries(queries: Vectors, dim: int, k: int) -> None:
    """Check the queries and k of a search.

    Raises:
        QueryError: queries are not float32 [B, dim], hold a value that is not finite or beyond ±1e29, or k < 1.
    """
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        raise QueryError(
            f"queries are {queries.dtype} {list(queries.shape)}; this index expects float32 [B, {dim}]",
            field="vector",
        )
    if not np.abs(queries).max(initial=0.0) <= MAX_QUERY_VALUE:
        raise QueryError(
            f"a query vector has a value that is not finite or beyond ±{MAX_QUERY_VALUE:g}; expected finite numbers in "
            "that range: check how the vector was computed, for example for a division by zero",
            field="vector",
        )
    if k < 1:
        raise QueryError(f"k is {k}; expected at least 1", field="k")


def check_allowed(allowed: Bitmap | None, size: int) -> None:
    """Check that a bitmap belongs to an index of `size` rows.

    Raises:
        QueryError: the bitmap is over another number of rows.
    """
    if allowed is not None and allowed.size != size:
        raise QueryError(
            f"`allowed` is over {allowed.size} rows; this index has {size} and expects a bitmap over all of them"
        )


def _scan_into(best: Hits, half_vectors: HalfVectors, queries: Vectors, rows: Rows | None) -> None:
    """Write the best of `rows` (None: of all) into `best` [B, k], which is empty."""
    k, dim = best.rows.shape[1], half_vectors.shape[1]
    # Two sums of D products, in any order, differ by at most 2 D u sum |q_i x_i| with u = 2^-24 (Higham, Accuracy and
    # Stability of Numerical Algorithms, 2nd ed., section 3.1), and every |x_i| is at most the largest of the block.
    # D + 1 instead of D covers the rounding of the compared values, and 1.01 the terms in u^2.
    error_per_max = 2 * (dim + 1) * 2.0**-24 * 1.01 * np.abs(queries).sum(axis=1, dtype=np.float64)  # [B]
    for row_block, vectors in _iterate_blocks(half_vectors, rows, compute_block_rows(max(dim, len(queries)))):
        error_bounds = error_per_max * float(max(vectors.max(), -vectors.min()))  # [B]
        products = queries @ vectors.T  # [B, D] x [D, n] -> [B, n]
        for b, query in enumerate(queries):
            positions = _select_candidates(products[b], k, float(best.scores[b, -1]), float(error_bounds[b]))
            if len(positions):
                candidates = row_block[positions]
                scores = compute_inner_products(half_vectors, query, candidates)
                hits = sort_hits(
                    np.concatenate([best.rows[b], candidates])[None], np.concatenate([best.scores[b], scores])[None], k
                )
                best.rows[b], best.scores[b] = hits.rows[0], hits.scores[0]


def _select_candidates(products: Scores, k: int, kth_score: float, error_bound: float) -> NDArray[np.intp]:
    """Positions of all products [n] that may be among the k best overall.

    Args:
        products: [n] scores, each within `error_bound` of the true score.
        k: number of best rows wanted.
        kth_score: k-th best true score so far; -inf if there are fewer.
        error_bound: largest error of a product.
    """
    positions = np.flatnonzero(products >= kth_score - error_bound)
    if len(positions) > k:
        kth_product = float(np.partition(products[positions], len(positions) - k)[len(positions) - k])
        positions = positions[products[positions] >= kth_product - 2 * error_bound]
    return positions


def _iterate_blocks(half_vectors: HalfVectors, rows: Rows | None, block_rows: int) -> Iterator[tuple[Rows, Vectors]]:
    """Yield `rows` (None: all, ascending) with their vectors in float32, `block_rows` at a time: [n] and [n, D]."""
    for start in range(0, len(half_vectors) if rows is None else len(rows), block_rows):
        if rows is None:
            vectors = to_float32(half_vectors[start : start + block_rows])
            yield np.arange(start, start + len(vectors)), vectors
        else:
            yield rows[start : start + block_rows], to_float32(half_vectors[rows[start : start + block_rows]])


def compute_block_rows(values_per_row: int) -> int:
    """Rows that are read at a time, so that a block takes a few MiB."""
    return max(1, _BLOCK_ELEMENTS // values_per_row)


def to_float32(half_vectors: HalfVectors) -> Vectors:
    """Convert [n, D] finite float16 to float32, bit by bit equal to numpy's cast and eight times as fast."""
    bits = half_vectors.view(np.int16).astype(np.int32)
    bits <<= 13  # the fraction grows from 10 to 23 bits
    bits &= ~np.int32(0x70000000)  # clear the copies of the sign in the upper bits of the wider exponent
    numbers = bits.view(np.float32)
    numbers *= np.float32(2.0**112)  # the bias of the exponent grows from 15 to 127
    return numbers
