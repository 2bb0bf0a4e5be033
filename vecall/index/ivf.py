"""Approximate search in cells: a few of them are scanned by short codes, and the best found is scored exactly.

The vectors are grouped around centroids. What a vector differs from its centroid by is kept in 4 bits a dimension, so
that faiss compares 32 vectors at a time in registers (Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor
Search, 2011; André, Kermarrec, Le Scouarnec: Cache locality is not enough, 2015). A code a little longer than usual
leaves few rows to be scored by their stored vectors, and those are what memory is waited for.
"""

from pathlib import Path
from typing import Any, Self

import faiss as typed_faiss
import numpy as np

from vecall import progress
from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index.approximate import ApproximateIndex
from vecall.index.base import Hits, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.coarse_quantizer import build_coarse_quantizer, choose_nlist, sample_rows, train_centroids
from vecall.index.exact import ExactIndex, check_allowed, check_queries, check_vectors, scan_one_query
from vecall.index.faiss_adapter import build_id_selector, use_faiss_threads, write_faiss_index
from vecall.index.topk import make_empty_hits

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_PQ_BITS = 4  # of a code, for each dimension
_FASTSCAN_BLOCK_SIZE = 32  # codes compared at a time
_PQ_TRAINING_ROWS = 2**14  # vectors that the codes are trained on
_ADD_CHUNK_ROWS = 2**17  # vectors added at a time
_DEFAULT_NPROBE, _DEFAULT_RERANK_FACTOR = (
    64,
    3,
)  # where nothing was tuned: cells scanned, rows scored exactly as a multiple of k


class IvfPqIndex(ApproximateIndex):
    """Cells over N vectors; the vectors themselves lie beside them once, as `ExactIndex` stores them.

    Args:
        faiss_index: a `faiss.IndexRefine` over an `IndexIVFPQFastScan` of residuals by inner product, whose refining
            index is an `IndexScalarQuantizer` of half-precision numbers.

    Attributes:
        nlist: how many there are.
    """

    def __init__(self, faiss_index: Any) -> None:  # noqa: ANN401 - as above
        self._faiss_index = faiss_index  # owns both
        self._ivf_index = faiss.downcast_index(faiss_index.base_index)
        super().__init__(faiss.downcast_index(faiss_index.refine_index))
        self.nlist = int(self._ivf_index.nlist)
        self._centroids: Vectors = faiss.downcast_index(self._ivf_index.quantizer).reconstruct_n(0, self.nlist)
        self._half_centroids = self._centroids.astype(np.float16)

    @classmethod
    def build(
        cls, vectors: Vectors | HalfVectors, *, nlist: int | None = None, seed: int = 0, threads: int | None = None
    ) -> Self:
        """Cells over a copy of [N, D] float32 or float16 vectors.

        Args:
            vectors: [N, D], finite; read in pieces, so they may be mapped from a file.
            nlist: how many, at most N; None is about 2 sqrt(N).
            seed: of the samples that centroids and codes are found on.
            threads: threads to build with; None is as many as OpenMP gives the calling thread.

        Raises:
            DataError: the array is empty, of another type or shape, or holds what half precision cannot.
        """
        check_vectors(vectors)
        with use_faiss_threads(threads):
            stored = ExactIndex.build(vectors)
            centroids = train_centroids(stored, min(stored.size, nlist or choose_nlist(stored.size)), seed=seed)
            lists = _build_ivf_index(stored, centroids, seed)
        refined = faiss.IndexRefine(lists, stored.detach_faiss_index())
        lists.this.disown()
        refined.own_fields = refined.own_refine_index = True
        return cls(refined)

    def search(
        self, queries: Vectors, k: int, *, search_params: SearchParams | None = None, allowed: Bitmap | None = None
    ) -> Hits:
        """About the k best rows for each query, with exact scores. See `Index.search`.

        One query is searched by the calling thread alone. A batch is spread over as many threads as OpenMP
        gives the calling thread.

        Args:
            queries: [B, D], finite.
            k: 1 <= k; more than N gives N answers and places with row -1.
            search_params: cells scanned, and rows scored exactly, never fewer than k.
            allowed: rows that may be answers; only these are scored.

        Raises:
            QueryError: the queries, k or `allowed` are not as said.
        """
        check_queries(queries, self.dim, k)
        check_allowed(allowed, self.size)
        tried = search_params or SearchParams(_DEFAULT_NPROBE, _DEFAULT_RERANK_FACTOR * k)
        depth = min(max(tried.rerank_depth, k), self.size if allowed is None else allowed.count)
        if depth >= self.size or not depth or not len(queries):
            return self.search_exact(queries, k, allowed=allowed)
        hits = make_empty_hits(len(queries), k)
        for b, found in enumerate(self.search_candidates(queries, SearchParams(tried.width, depth), allowed)):
            best = scan_one_query(self._exact_index.half_vectors, queries[b], found[found >= 0], k)
            hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
        return self._exact_index.fill_missing_hits(hits, queries, allowed)

    def search_candidates(self, queries: Vectors, search_params: SearchParams, allowed: Bitmap | None = None) -> Rows:
        """[B, depth] rows by their short codes, best first; -1 where the cells held no more."""
        probes = min(search_params.width, self.nlist)
        near = np.empty((len(queries), probes), dtype=np.int64)
        products = np.empty((len(queries), probes), dtype=np.float32)
        for b, query in enumerate(queries):  # all at once would take [B, probes, D] numbers
            near[b] = scan_one_query(self._half_centroids, query, None, probes).rows[0]
            np.vecdot(self._centroids[near[b]], query, out=products[b])
        asked = np.ascontiguousarray(queries)
        scores = np.empty((len(queries), search_params.rerank_depth), dtype=np.float32)
        rows = np.empty((len(queries), search_params.rerank_depth), dtype=np.int64)
        settings = faiss.SearchParametersIVF(
            nprobe=probes, sel=build_id_selector(allowed)
        )  # per call: attributes are shared
        arrays = map(faiss.swig_ptr, (near, products, scores, rows))
        with use_faiss_threads(1 if len(queries) == 1 else None):
            # faiss's own search would compare the query with centroids one by one, or by a graph that misses some.
            self._ivf_index.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(asked),
                search_params.rerank_depth,
                *arrays,
                False,
                settings,
            )
        return rows

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load`."""
        write_faiss_index(self._faiss_index, path)


def _build_ivf_index(exact_index: ExactIndex, centroids: Vectors, seed: int) -> Any:  # noqa: ANN401 - as above
    n, dim = exact_index.size, exact_index.dim
    flat = faiss.IndexFlatIP(dim)
    flat.add(centroids)
    lists = faiss.IndexIVFPQFastScan(
        flat, dim, len(centroids), dim, _PQ_BITS, faiss.METRIC_INNER_PRODUCT, _FASTSCAN_BLOCK_SIZE
    )
    lists.by_residual = True  # codes of the vectors themselves are too coarse
    finder = build_coarse_quantizer(centroids)
    lists.quantizer = finder
    lists.pq.cp.min_points_per_centroid = 1  # few vectors are no news
    rows = sample_rows(n, _PQ_TRAINING_ROWS, seed)
    lists.train(exact_index.get_vectors(np.resize(rows, max(len(rows), 2**_PQ_BITS))))  # faiss takes no fewer
    step = max(_ADD_CHUNK_ROWS, -(-n // 50))
    with progress.track("filling IVF lists", n) as advance:
        for start in range(0, n, step):
            part = exact_index.get_vectors(np.arange(start, min(n, start + step)))
            lists.add(part)
            advance(len(part))
    lists.quantizer = flat
    lists.own_fields = True
    flat.this.disown()
    return lists
