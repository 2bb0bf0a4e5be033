"""Exact search: every stored vector is scored. The oracle that faster indexes are held against."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.errors import DataError, QueryError
from vecall.index.base import MAX_QUERY_VALUE, MAX_STORED_VALUE, Hits, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.faiss_adapter import write_faiss_index
from vecall.index.kernels import bitmap_to_rows, compute_inner_products, select_top_k
from vecall.index.topk import make_empty_hits, sort_hits

_BLOCK_ELEMENTS = 2**21  # numbers scored or widened at a time: 8 MiB of float32
_QUERY_BATCH_SIZE = 128  # queries scored at a time


class ExactIndex:
    """N vectors in half precision, held once, in faiss's flat file format.

    Args:
        flat_index: a `faiss.IndexScalarQuantizer` of half-precision numbers by inner product.
    """

    def __init__(self, flat_index: Any) -> None:  # noqa: ANN401 - faiss's stubs lack half of it
        self._flat_index = flat_index  # owns the memory that `codes` looks into
        raw = faiss.rev_swig_ptr(flat_index.codes.data(), flat_index.codes.size())
        self.half_vectors: HalfVectors = raw.view(np.float16).reshape(flat_index.ntotal, flat_index.d)
        self.half_vectors.flags.writeable = False

    @classmethod
    def build(cls, vectors: Vectors | HalfVectors) -> Self:
        """Store a copy of [N, D] float32 or float16 vectors in half precision.

        Raises:
            DataError: the array is empty, of another type or shape, or holds what half precision cannot.
        """
        check_vectors(vectors)
        n, dim = vectors.shape
        flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        flat.codes.resize(n * flat.code_size)  # filled here, not by flat.add: see `rounded`
        flat.ntotal = n
        codes = faiss.rev_swig_ptr(flat.codes.data(), flat.codes.size()).view(np.float16)
        codes.reshape(n, dim)[:] = vectors
        return cls(flat)

    @property
    def size(self) -> int:
        """N, the number of vectors."""
        return len(self.half_vectors)

    @property
    def dim(self) -> int:
        """D, the dimension of a vector."""
        return int(self.half_vectors.shape[1])

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,  # noqa: ARG002
        allowed: Bitmap | None = None,
    ) -> Hits:
        """The k best rows for each query; `search_params` changes nothing. See `Index.search`."""
        return scan(self.half_vectors, queries, k, allowed)

    def search_exact(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None) -> Hits:
        """The k best rows among those `allowed`. See `scan`."""
        return scan(self.half_vectors, queries, k, allowed)

    def score(self, query: Vectors, rows: Rows) -> Scores:
        """[n] inner products of one query [D] with the stored vectors of some rows. See `Index.scores`."""
        return compute_inner_products(self.half_vectors, query, np.ascontiguousarray(rows))

    def fill_missing_hits(self, hits: Hits, queries: Vectors, allowed: Bitmap | None) -> Hits:
        """An approximate answer, exact for those queries where places without a row are left for no reason.

        Among many equal vectors a graph falls apart; under a bitmap a search may not reach what is allowed.
        """
        places = min(hits.rows.shape[1], self.size if allowed is None else allowed.count)
        if not places or not len(hits.rows):
            return hits
        short = np.flatnonzero(hits.rows[:, places - 1] < 0)
        if len(short):
            exact = self.search_exact(queries[short], hits.rows.shape[1], allowed=allowed)
            hits.rows[short], hits.scores[short] = exact.rows, exact.scores
        return hits

    def get_vectors(self, rows: Rows) -> Vectors:
        """[len(rows), D] stored vectors, as float32.

        Raises:
            QueryError: a row is not in 0 .. N - 1.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.size):
            raise QueryError(
                f"rows reach from {rows.min()} to {rows.max()}; this index has rows 0 to {self.size - 1} "
                "(-1 is a place without an answer)"
            )
        return to_float32(self.half_vectors[rows])

    def detach_faiss_index(self) -> Any:  # noqa: ANN401 - an index of faiss
        """The native index, which now belongs to the caller; this object must no longer be used."""
        self._flat_index.this.disown()
        return self._flat_index

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load`."""
        write_faiss_index(self._flat_index, path)


def scan(half_vectors: HalfVectors, queries: Vectors, k: int, allowed: Bitmap | None = None) -> Hits:
    """The k best of N half-precision vectors for each query, exactly, in bounded memory.

    One query is scored row by row, in the calling thread. For many a matrix product finds the rows that may be
    among the k best. Its last bits depend on where in the matrix a row stands, so these rows are scored again one
    by one: equal vectors get equal scores, by either way.

    Args:
        half_vectors: [N, D] stored vectors.
        queries: [B, D] float32, finite.
        k: 1 <= k; more than there are rows gives places with row -1.
        allowed: of the N rows, those that may be answers; None is all. Only these are read.

    Returns:
        [B, k] hits whose scores are the float32 inner products with the stored vectors.

    Raises:
        QueryError: the queries, k or `allowed` are not as said.
    """
    check_queries(queries, half_vectors.shape[1], k)
    check_allowed(allowed, len(half_vectors))
    rows = None if allowed is None else bitmap_to_rows(allowed)
    if len(queries) == 1:
        return scan_one_query(half_vectors, queries[0], rows, k)
    hits = make_empty_hits(len(queries), k)
    for start in range(0, len(queries), _QUERY_BATCH_SIZE):
        part = slice(start, start + _QUERY_BATCH_SIZE)
        _scan_into(Hits(hits.rows[part], hits.scores[part]), half_vectors, queries[part], rows)
    return hits


def scan_one_query(half_vectors: HalfVectors, query: Vectors, rows: Rows | None, k: int) -> Hits:
    """[1, k] the best of some distinct rows, None: of all, for one query [D]; scores and order are those of `scan`."""
    best, scores = select_top_k(compute_inner_products(half_vectors, query, rows), rows, k)
    if len(best) == k:
        return Hits(best[None], scores[None])
    hits = make_empty_hits(1, k)
    hits.rows[0, : len(best)], hits.scores[0, : len(best)] = best, scores
    return hits


def rescore(half_vectors: HalfVectors, queries: Vectors, rows: Rows) -> Hits:
    """[B, k] rows found by other means (-1: none), with the scores and the order of `scan`."""
    hits = make_empty_hits(*rows.shape)
    for b, query in enumerate(queries):
        best = scan_one_query(half_vectors, query, rows[b][rows[b] >= 0], rows.shape[1])
        hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
    return hits


def round_to_half_precision(vectors: Vectors | HalfVectors) -> Vectors:
    """Float32 vectors rounded to half precision, half to even.

    faiss rounds a number halfway between two others by the machine it runs on. It is handed rounded
    numbers, so that every engine on every machine stores the same.
    """
    return vectors.astype(np.float16).astype(np.float32)


def check_vectors(vectors: Vectors | HalfVectors) -> None:
    """Refuse what cannot be stored.

    Raises:
        DataError: not float32 or float16 [N, D] with N, D >= 1, or a number that half precision does not hold.
    """
    if vectors.dtype not in (np.float32, np.float16) or vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(
            f"item vectors are {vectors.dtype} {list(vectors.shape)}; expected float32 or float16 [N, D] of at least "
            "one vector and one dimension"
        )
    for start in range(0, len(vectors), step := _compute_block_rows(vectors.shape[1])):
        block = vectors[start : start + step]
        bad = np.argwhere(~(np.abs(block) <= MAX_STORED_VALUE))
        if len(bad):
            row, axis = bad[0]
            raise DataError(
                f"item vector {start + row} holds {block[row, axis]} at {axis}; expected finite numbers within "
                f"±{MAX_STORED_VALUE:.0f}, which half precision can hold: normalise the vectors or drop the item"
            )


def check_queries(queries: Vectors, dim: int, k: int) -> None:
    """Refuse what cannot be searched for.

    Raises:
        QueryError: not float32 [B, dim], a number that is not finite or beyond ±1e29, or k < 1.
    """
    if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != dim:
        raise QueryError(
            f"queries are {queries.dtype} {list(queries.shape)}; this index expects float32 [B, {dim}]",
            field="vector",
        )
    if not np.abs(queries).max(initial=0.0) <= MAX_QUERY_VALUE:
        raise QueryError(
            f"a query holds a number that is not finite, or beyond ±{MAX_QUERY_VALUE:g}; expected finite "
            "numbers: look for a division by zero where the query was made",
            field="vector",
        )
    if k < 1:
        raise QueryError(f"k is {k}; expected at least 1", field="k")


def check_allowed(allowed: Bitmap | None, size: int) -> None:
    """Refuse a bitmap of another index.

    Raises:
        QueryError: it is not over `size` rows.
    """
    if allowed is not None and allowed.size != size:
        raise QueryError(f"`allowed` is over {allowed.size} rows; this index has {size}, and expects one bit for each")


def _scan_into(best: Hits, half_vectors: HalfVectors, queries: Vectors, rows: Rows | None) -> None:
    """Fill `best` [B, k], which starts empty, from all allowed rows."""
    k, dim = best.rows.shape[1], half_vectors.shape[1]
    # Two sums of D products, in whatever order, differ by at most 2 D u sum |q_i x_i|, u = 2^-24 (Higham,
    # Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), and |x_i| <= the largest. One
    # more than D pays for rounding what is compared, 1.01 for terms in u^2.
    spread = 2 * (dim + 1) * 2.0**-24 * 1.01 * np.abs(queries).sum(axis=1, dtype=np.float64)
    for part, vectors in _iterate_blocks(half_vectors, rows, _compute_block_rows(max(dim, len(queries)))):
        doubts = spread * float(max(vectors.max(), -vectors.min()))
        products = queries @ vectors.T  # [B, rows]
        for b, query in enumerate(queries):
            near = _select_candidates(products[b], k, float(best.scores[b, -1]), float(doubts[b]))
            if len(near):
                hits = sort_hits(
                    np.concatenate([best.rows[b], part[near]])[None],
                    np.concatenate([best.scores[b], compute_inner_products(half_vectors, query, part[near])])[None],
                    k,
                )
                best.rows[b], best.scores[b] = hits.rows[0], hits.scores[0]


def _select_candidates(products: Scores, k: int, kth_score: float, error_bound: float) -> NDArray[np.intp]:
    """Places of all `products` that may be among the k best, each known up to `doubt`, and above `kth_score`."""
    near = np.flatnonzero(products >= kth_score - error_bound)
    if len(near) > k:
        here = float(np.partition(products[near], len(near) - k)[len(near) - k])
        near = near[products[near] >= here - 2 * error_bound]
    return near


def _iterate_blocks(half_vectors: HalfVectors, rows: Rows | None, block_rows: int) -> Iterator[tuple[Rows, Vectors]]:
    """Rows, None: all, in ascending order, and their vectors, `block_rows` at a time."""
    for start in range(0, len(half_vectors) if rows is None else len(rows), block_rows):
        if rows is None:
            vectors = to_float32(half_vectors[start : start + block_rows])
            yield np.arange(start, start + len(vectors)), vectors
        else:
            yield rows[start : start + block_rows], to_float32(half_vectors[rows[start : start + block_rows]])


def _compute_block_rows(values_per_row: int) -> int:
    return max(1, _BLOCK_ELEMENTS // values_per_row)


def to_float32(half_vectors: HalfVectors) -> Vectors:
    """[n, D] finite float16 as float32, to the bit; eight times as fast as numpy's own cast."""
    bits = half_vectors.view(np.int16).astype(np.int32)
    bits <<= 13  # ten bits of fraction become 23
    bits &= ~np.int32(0x70000000)  # copies of the sign, where the longer exponent has its upper bits
    numbers = bits.view(np.float32)
    numbers *= np.float32(2.0**112)  # exponents count from -127, no longer from -15
    return numbers
