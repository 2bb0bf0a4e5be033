"""Approximate search in inverted lists (IVF): short codes select candidates, which are then scored exactly.

The vectors are grouped around centroids, one inverted list each. A vector's residual, its difference from the centroid,
is product-quantized to 4 bits per dimension, so that faiss compares 32 codes at a time in registers (Jégou, Douze,
Schmid: Product Quantization for Nearest Neighbor Search, 2011; André, Kermarrec, Le Scouarnec: Cache locality is not
enough, 2015). Codes are longer than is common: fewer candidates then need exact scores, whose cost is the latency of
memory.
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
from vecall.index.coarse_quantizer import build_coarse_quantizer, choose_nlist, train_centroids
from vecall.index.exact import ExactIndex, check_allowed, check_queries, check_vectors, scan_single_query
from vecall.index.faiss_adapter import build_id_selector, use_faiss_threads, write_faiss_index
from vecall.index.sampling import sample_rows
from vecall.index.topk import make_empty_hits

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_PQ_BITS = 4  # per dimension
_FASTSCAN_BLOCK_SIZE = 32  # codes compared at a time
_PQ_TRAINING_ROWS = 2**14  # vectors that the codebooks are trained on
_ADD_CHUNK_ROWS = 2**17  # vectors added at a time
_DEFAULT_NPROBE = 64  # of an index that was not tuned
_DEFAULT_RERANK_FACTOR = 3  # rerank depth of an index that was not tuned, as a multiple of k


class IvfPqIndex(ApproximateIndex):
    """Inverted lists over N vectors, which are stored once beside them, as by `ExactIndex`.

    Args:
        faiss_index: `faiss.IndexRefine` over an `IndexIVFPQFastScan` of residuals by inner product; its refine index is
            an `IndexScalarQuantizer` in half precision.

    Attributes:
        nlist: number of inverted lists.
    """

    def __init__(self, faiss_index: Any) -> None:  # noqa: ANN401 - a faiss object
        self._faiss_index = faiss_index  # owns the two indexes below
        self._ivf_index = faiss.downcast_index(faiss_index.base_index)
        super().__init__(faiss.downcast_index(faiss_index.refine_index))
        self.nlist = int(self._ivf_index.nlist)
        self._centroids: Vectors = faiss.downcast_index(self._ivf_index.quantizer).reconstruct_n(0, self.nlist)
        self._half_centroids = self._centroids.astype(np.float16)

    @classmethod
    def build(
        cls, vectors: Vectors | HalfVectors, *, nlist: int | None = None, seed: int = 0, threads: int | None = None
    ) -> Self:
        """Build inverted lists over a copy of [N, D] float32 or float16 vectors.

        Args:
            vectors: [N, D], finite; read in chunks, so the array may be memory-mapped.
            nlist: number of inverted lists, at most N; None is about 2 sqrt(N).
            seed: seed of the samples that centroids and codebooks are trained on.
            threads: number of threads; None uses as many as OpenMP allows the calling thread.

        Raises:
            DataError: the array is empty, of a wrong type or shape, or not representable in half precision.
        """
        check_vectors(vectors)
        with use_faiss_threads(threads):
            exact_index = ExactIndex.build(vectors)
            n = exact_index.size
            centroids = train_centroids(exact_index, min(n, nlist or choose_nlist(n)), seed=seed)
            ivf_index = _build_ivf_index(exact_index, centroids, seed)
        faiss_index = faiss.IndexRefine(ivf_index, exact_index.detach_faiss_index())
        ivf_index.this.disown()
        faiss_index.own_fields = faiss_index.own_refine_index = True
        return cls(faiss_index)

    def search(
        self, queries: Vectors, k: int, *, search_params: SearchParams | None = None, allowed: Bitmap | None = None
    ) -> Hits:
        """Return approximately the k best rows of each query, with exact scores. See `Index.search`.

        One query is searched in the calling thread. A batch is spread over as many threads as OpenMP allows the calling
        thread.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: `width` is nprobe; `rerank_depth` is raised to k if it is lower.
            allowed: bitmap of the rows that may be returned; only these are scored.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
        """
        check_queries(queries, self.dim, k)
        check_allowed(allowed, self.size)
        params = search_params or SearchParams(_DEFAULT_NPROBE, _DEFAULT_RERANK_FACTOR * k)
        depth = min(max(params.rerank_depth, k), self.size if allowed is None else allowed.count)
        if depth >= self.size or not depth or not len(queries):
            return self.search_exact(queries, k, allowed=allowed)
        hits = make_empty_hits(len(queries), k)
        for b, candidates in enumerate(self.search_candidates(queries, SearchParams(params.width, depth), allowed)):
            best = scan_single_query(self._exact_index.half_vectors, queries[b], candidates[candidates >= 0], k)
            hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
        return self._exact_index.fill_missing_hits(hits, queries, allowed)

    def search_candidates(self, queries: Vectors, search_params: SearchParams, allowed: Bitmap | None = None) -> Rows:
        """Select candidates by their codes.

        Args:
            queries: [B, D], finite.
            search_params: nprobe and the number of candidates.
            allowed: bitmap of the rows that may be candidates; None allows all.

        Returns:
            [B, rerank_depth] rows, best code first, padded with -1 where the scanned lists hold fewer.
        """
        nprobe = min(search_params.width, self.nlist)
        lists = np.empty((len(queries), nprobe), dtype=np.int64)
        products = np.empty((len(queries), nprobe), dtype=np.float32)
        for b, query in enumerate(queries):  # query by query: a batch would need [B, nprobe, D] numbers
            lists[b] = scan_single_query(self._half_centroids, query, None, nprobe).rows[0]
            np.vecdot(self._centroids[lists[b]], query, out=products[b])
        contiguous_queries = np.ascontiguousarray(queries)
        scores = np.empty((len(queries), search_params.rerank_depth), dtype=np.float32)
        rows = np.empty((len(queries), search_params.rerank_depth), dtype=np.int64)
        # Passed with the call, because threads share the attributes of the index.
        params = faiss.SearchParametersIVF(nprobe=nprobe, sel=build_id_selector(allowed))
        with use_faiss_threads(1 if len(queries) == 1 else None):
            # faiss's own search selects the lists more slowly, centroid by centroid, or by a graph that misses some.
            self._ivf_index.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(contiguous_queries),
                search_params.rerank_depth,
                *map(faiss.swig_ptr, (lists, products, scores, rows)),
                False,
                params,
            )
        return rows

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load_index`."""
        write_faiss_index(self._faiss_index, path)


def _build_ivf_index(exact_index: ExactIndex, centroids: Vectors, seed: int) -> Any:  # noqa: ANN401 - a faiss object
    """Train the codes and fill the inverted lists: a `faiss.IndexIVFPQFastScan` that owns its flat quantizer."""
    n, dim = exact_index.size, exact_index.dim
    flat_quantizer = faiss.IndexFlatIP(dim)
    flat_quantizer.add(centroids)
    ivf_index = faiss.IndexIVFPQFastScan(
        flat_quantizer, dim, len(centroids), dim, _PQ_BITS, faiss.METRIC_INNER_PRODUCT, _FASTSCAN_BLOCK_SIZE
    )
    ivf_index.by_residual = True  # codes of the vectors themselves are too coarse
    build_quantizer = build_coarse_quantizer(centroids)  # fills the lists faster where centroids are many
    ivf_index.quantizer = build_quantizer
    ivf_index.pq.cp.min_points_per_centroid = 1  # silences faiss's warning about few training vectors
    rows = sample_rows(n, _PQ_TRAINING_ROWS, seed)
    ivf_index.train(exact_index.get_vectors(np.resize(rows, max(len(rows), 2**_PQ_BITS))))  # faiss's minimum
    step = max(_ADD_CHUNK_ROWS, -(-n // 50))
    with progress.track("filling IVF lists", n) as advance:
        for start in range(0, n, step):
            chunk = exact_index.get_vectors(np.arange(start, min(n, start + step)))
            ivf_index.add(chunk)
            advance(len(chunk))
    ivf_index.quantizer = flat_quantizer
    ivf_index.own_fields = True
    flat_quantizer.this.disown()
    return ivf_index
