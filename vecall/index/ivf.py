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
from vecall.index.approximate import OverStored
from vecall.index.base import Codes, Effort, Hits, Rows, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.coarse_quantizer import find_centroids, nearest_finder, sample_rows, usual_cells
from vecall.index.exact import ExactIndex, best_of_one, check_allowed, check_queries, check_vectors
from vecall.index.faiss_adapter import openmp, selector, write_file
from vecall.index.topk import nothing

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_BITS = 4  # of a code, for each dimension
_TOGETHER = 32  # codes compared at a time
_CODED_ON = 2**14  # vectors that the codes are trained on
_CHUNK = 2**17  # vectors added at a time
_PROBES, _DEPTH = 64, 3  # where nothing was tuned: cells scanned, rows scored exactly as a multiple of k


class CellsIndex(OverStored):
    """Cells over N vectors; the vectors themselves lie beside them once, as `ExactIndex` stores them.

    Args:
        refined: a `faiss.IndexRefine` over an `IndexIVFPQFastScan` of residuals by inner product, whose refining
            index is an `IndexScalarQuantizer` of half-precision numbers.

    Attributes:
        cells: how many there are.
    """

    def __init__(self, refined: Any) -> None:  # noqa: ANN401 - as above
        self._refined = refined  # owns both
        self._lists = faiss.downcast_index(refined.base_index)
        super().__init__(faiss.downcast_index(refined.refine_index))
        self.cells = int(self._lists.nlist)
        self._centroids: Vectors = faiss.downcast_index(self._lists.quantizer).reconstruct_n(0, self.cells)
        self._half_centroids = self._centroids.astype(np.float16)

    @classmethod
    def build(
        cls, vectors: Vectors | Codes, *, cells: int | None = None, seed: int = 0, threads: int | None = None
    ) -> Self:
        """Cells over a copy of [N, D] float32 or float16 vectors.

        Args:
            vectors: [N, D], finite; read in pieces, so they may be mapped from a file.
            cells: how many, at most N; None is about 2 sqrt(N).
            seed: of the samples that centroids and codes are found on.
            threads: threads to build with; None is as many as OpenMP gives the calling thread.

        Raises:
            DataError: the array is empty, of another type or shape, or holds what half precision cannot.
        """
        check_vectors(vectors)
        with openmp(threads):
            stored = ExactIndex.build(vectors)
            centroids = find_centroids(stored, min(stored.size, cells or usual_cells(stored.size)), seed=seed)
            lists = _filled_lists(stored, centroids, seed)
        refined = faiss.IndexRefine(lists, stored.release())
        lists.this.disown()
        refined.own_fields = refined.own_refine_index = True
        return cls(refined)

    def search(self, queries: Vectors, k: int, *, effort: Effort | None = None, allowed: Bitmap | None = None) -> Hits:
        """About the k best rows for each query, with exact scores. See `Index.search`.

        One query is searched by the calling thread alone. A batch is spread over as many threads as OpenMP
        gives the calling thread.

        Args:
            queries: [B, D], finite.
            k: 1 <= k; more than N gives N answers and places with row -1.
            effort: cells scanned, and rows scored exactly, never fewer than k.
            allowed: rows that may be answers; only these are scored.

        Raises:
            QueryError: the queries, k or `allowed` are not as said.
        """
        check_queries(queries, self.dim, k)
        check_allowed(allowed, self.size)
        tried = effort or Effort(_PROBES, _DEPTH * k)
        depth = min(max(tried.depth, k), self.size if allowed is None else allowed.count)
        if depth >= self.size or not depth or not len(queries):
            return self.search_exact(queries, k, allowed=allowed)
        hits = nothing(len(queries), k)
        for b, found in enumerate(self.candidates(queries, Effort(tried.width, depth), allowed)):
            best = best_of_one(self._stored.codes, queries[b], found[found >= 0], k)
            hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
        return self._stored.filled(hits, queries, allowed)

    def candidates(self, queries: Vectors, effort: Effort, allowed: Bitmap | None = None) -> Rows:
        """[B, depth] rows by their short codes, best first; -1 where the cells held no more."""
        probes = min(effort.width, self.cells)
        near = np.empty((len(queries), probes), dtype=np.int64)
        products = np.empty((len(queries), probes), dtype=np.float32)
        for b, query in enumerate(queries):  # all at once would take [B, probes, D] numbers
            near[b] = best_of_one(self._half_centroids, query, None, probes).rows[0]
            np.vecdot(self._centroids[near[b]], query, out=products[b])
        asked = np.ascontiguousarray(queries)
        scores = np.empty((len(queries), effort.depth), dtype=np.float32)
        rows = np.empty((len(queries), effort.depth), dtype=np.int64)
        settings = faiss.SearchParametersIVF(nprobe=probes, sel=selector(allowed))  # per call: attributes are shared
        arrays = map(faiss.swig_ptr, (near, products, scores, rows))
        with openmp(1 if len(queries) == 1 else None):
            # faiss's own search would compare the query with centroids one by one, or by a graph that misses some.
            self._lists.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(asked),
                effort.depth,
                *arrays,
                False,
                settings,
            )
        return rows

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load`."""
        write_file(self._refined, path)


def _filled_lists(stored: ExactIndex, centroids: Vectors, seed: int) -> Any:  # noqa: ANN401 - as above
    n, dim = stored.size, stored.dim
    flat = faiss.IndexFlatIP(dim)
    flat.add(centroids)
    lists = faiss.IndexIVFPQFastScan(flat, dim, len(centroids), dim, _BITS, faiss.METRIC_INNER_PRODUCT, _TOGETHER)
    lists.by_residual = True  # codes of the vectors themselves are too coarse
    finder = nearest_finder(centroids)
    lists.quantizer = finder
    lists.pq.cp.min_points_per_centroid = 1  # few vectors are no news
    rows = sample_rows(n, _CODED_ON, seed)
    lists.train(stored.vectors(np.resize(rows, max(len(rows), 2**_BITS))))  # faiss takes no fewer
    step = max(_CHUNK, -(-n // 50))
    with progress.task("filling cells", n) as advance:
        for start in range(0, n, step):
            part = stored.vectors(np.arange(start, min(n, start + step)))
            lists.add(part)
            advance(len(part))
    lists.quantizer = flat
    lists.own_fields = True
    flat.this.disown()
    return lists
