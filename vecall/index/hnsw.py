"""Approximate search on a navigable graph: faiss's HNSW over vectors in half precision."""

from pathlib import Path
from typing import Any, Self

import faiss as typed_faiss

from vecall import progress
from vecall.arrays import HalfVectors, Vectors
from vecall.index.approximate import ApproximateIndex
from vecall.index.base import Hits, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.exact import check_allowed, check_queries, check_vectors, rescore, round_to_half_precision
from vecall.index.faiss_adapter import build_id_selector, use_faiss_threads, write_faiss_index

faiss: Any = typed_faiss  # its type stubs lack half of what is used here


class HnswIndex(ApproximateIndex):
    """A graph over N vectors; the vectors themselves lie in it once, as `ExactIndex` stores them.

    Args:
        graph: a `faiss.IndexHNSWSQ` of half-precision numbers by inner product. Its `efSearch`, saved with
            it, is the default effort.
    """

    def __init__(self, graph: Any) -> None:  # noqa: ANN401 - as above
        self._graph = graph  # owns the storage
        super().__init__(faiss.downcast_index(graph.storage))
        self.ef = int(graph.hnsw.efSearch)

    @classmethod
    def build(
        cls,
        vectors: Vectors | HalfVectors,
        *,
        m: int = 16,
        ef_construction: int = 200,
        ef: int = 50,
        threads: int | None = None,
    ) -> Self:
        """A graph over a copy of [N, D] float32 or float16 vectors.

        With one thread equal vectors make an equal graph; with more the graph depends on their timing.

        Args:
            vectors: [N, D], finite.
            m: links per vector and level (twice as many on the lowest), at least 2.
            ef_construction: places looked at for each vector's links.
            ef: default effort of a search.
            threads: threads to build with; None is as many as OpenMP gives the calling thread.

        Raises:
            DataError: the array is empty, of another type or shape, or holds what half precision cannot.
        """
        check_vectors(vectors)
        n, dim = vectors.shape
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = ef_construction
        graph.hnsw.efSearch = ef
        codes = faiss.downcast_index(graph.storage).codes
        codes.resize(2 * dim * n)  # once, or the growing storage would hold up to twice its size
        codes.clear()
        step = max(4096, -(-n // 20))
        with use_faiss_threads(threads), progress.track("building graph", n) as advance:
            for start in range(0, n, step):
                part = round_to_half_precision(vectors[start : start + step])
                graph.add(part)
                advance(len(part))
        return cls(graph)

    def search(
        self, queries: Vectors, k: int, *, search_params: SearchParams | None = None, allowed: Bitmap | None = None
    ) -> Hits:
        """About the k best rows for each query, with exact scores. See `Index.search`.

        One query is searched by the calling thread alone. A batch is spread over as many threads as OpenMP
        gives the calling thread: all cores, unless `faiss.omp_set_num_threads` was called in it.

        Args:
            queries: [B, D], finite.
            k: 1 <= k; more than N gives N answers and places with row -1.
            search_params: its width is ef, places of the graph kept in sight, never fewer than k. None is the index's `ef`.
            allowed: rows that may be answers; the others still lead to them.

        Raises:
            QueryError: the queries, k or `allowed` are not as said.
        """
        check_queries(queries, self.dim, k)
        check_allowed(allowed, self.size)
        ef = max(self.ef if search_params is None else search_params.width, k)
        if ef >= self.size or not len(queries):  # the graph would look at everything
            return self.search_exact(queries, k, allowed=allowed)
        # Per call: attributes of the index are shared.
        settings = faiss.SearchParametersHNSW(efSearch=ef, sel=build_id_selector(allowed))
        with use_faiss_threads(1 if len(queries) == 1 else None):
            _, rows = self._graph.search(queries, k, params=settings)  # [B, k]
        hits = rescore(self._exact_index.half_vectors, queries, rows)
        return self._exact_index.fill_missing_hits(hits, queries, allowed)

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load`."""
        write_faiss_index(self._graph, path)
