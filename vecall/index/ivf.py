"""Approximate search in inverted lists (IVF): short codes select candidates, which are then scored exactly.

The vectors are grouped around centroids, one inverted list each. A vector's residual, its difference from the centroid,
is product-quantized to 4 bits per dimension, so that faiss compares 32 codes at a time in registers (Jégou, Douze,
Schmid: Product Quantization for Nearest Neighbor Search, 2011; André, Kermarrec, Le Scouarnec: Cache locality is not
enough, 2015). Codes are longer than is common: fewer candidates then need exact scores, whose cost is the latency of
memory.
"""

import math
from pathlib import Path
from typing import Any, Self

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.coarse_quantizer import build_coarse_quantizer, choose_nlist, train_centroids
from vecall.index.faiss_adapter import build_flat_index, build_id_selector, use_faiss_threads, view_flat_vectors
from vecall.index.faiss_files import is_half_precision, make_structure_error, read_faiss_index, write_faiss_index
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.kernels import bitmap_to_rows, compute_inner_products
from vecall.index.list_selection import compile_list_selection, select_lists
from vecall.index.sampling import sample_rows
from vecall.index.scan import check_allowed, check_queries, scan_single_query
from vecall.index.stored_vectors import StoredVectors
from vecall.index.topk import make_empty_hits

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_PQ_BITS = 4  # per dimension
_FASTSCAN_BLOCK_SIZE = 32  # codes compared at a time
_PQ_TRAINING_ROWS = 2**14  # vectors that the codebooks are trained on
_ADD_CHUNK_ROWS = 2**17  # vectors added at a time
_RESIDUAL_SAMPLE_ROWS = 20_000  # vectors that tell how far vectors lie from their centroids
_DEFAULT_NPROBE = 64  # of an index that was not tuned
_DEFAULT_RERANK_FACTOR = 3  # rerank depth of an index that was not tuned, as a multiple of k


class IvfPqIndex:
    """Inverted lists over N vectors, which are stored once beside them, as by `ExactIndex`.

    Args:
        faiss_index: `faiss.IndexRefine` over an `IndexIVFPQFastScan` of residuals by inner product; its refine index is
            an `IndexScalarQuantizer` in half precision.

    Attributes:
        vectors: the stored vectors.
        nlist: number of inverted lists.
    """

    def __init__(self, faiss_index: Any) -> None:  # noqa: ANN401 - a faiss object
        self._faiss_index = faiss_index  # owns the two indexes below
        self._ivf_index = faiss.downcast_index(faiss_index.base_index)
        flat_index = faiss.downcast_index(faiss_index.refine_index)
        self.vectors = StoredVectors(view_flat_vectors(flat_index), owner=faiss_index)
        self.nlist = int(self._ivf_index.nlist)
        self._centroids: Vectors = faiss.downcast_index(self._ivf_index.quantizer).reconstruct_n(0, self.nlist)
        self._half_centroids = self._centroids.astype(np.float16)
        # Computed and compiled now, so that no request waits for it.
        self._list_by_row = _list_by_row(self._ivf_index)
        self._list_sizes: NDArray[np.int64] = np.bincount(self._list_by_row, minlength=self.nlist)
        self._residual_deviation = self._measure_residual_deviation()
        compile_list_selection()

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
        with use_faiss_threads(threads):
            flat_index = build_flat_index(vectors)
            stored_vectors = StoredVectors(view_flat_vectors(flat_index), owner=flat_index)
            n = stored_vectors.size
            centroids = train_centroids(stored_vectors, min(n, nlist or choose_nlist(n)), seed=seed)
            ivf_index = _build_ivf_index(stored_vectors, centroids, seed)
        faiss_index = faiss.IndexRefine(ivf_index, flat_index)
        ivf_index.this.disown()
        flat_index.this.disown()
        faiss_index.own_fields = faiss_index.own_refine_index = True
        return cls(faiss_index)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the lists from a file of which the sha256 has been checked, and map its vectors into memory.

        Raises:
            InvalidReleaseError: the file is missing, or holds another structure.
        """
        faiss_index = read_faiss_index(path, mapped=True)
        if not isinstance(faiss_index, faiss.IndexRefine) or not _is_ivf_pq(faiss_index):
            raise make_structure_error(path, faiss_index, "an IVF index")
        index = cls(faiss_index)
        index.vectors.prefault()
        return index

    @property
    def max_width(self) -> int:
        """Number of inverted lists."""
        return self.nlist

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,
    ) -> Hits:
        """Return approximately the k best rows of each query, with exact scores. See `Index.search`.

        One query is searched in the calling thread. A batch is spread over as many threads as OpenMP allows the calling
        thread.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: `width` is nprobe; `rerank_depth` is raised to k if it is lower.
            allowed: bitmap of the rows that may be returned; only these are scored.
            lists: inverted lists to scan for every query; None scans those of `search_params`.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
        """
        check_queries(queries, self.vectors.dim, k)
        check_allowed(allowed, self.vectors.size)
        params = search_params or SearchParams(_DEFAULT_NPROBE, _DEFAULT_RERANK_FACTOR * k)
        depth = min(max(params.rerank_depth, k), self.vectors.size if allowed is None else allowed.count)
        if depth >= self.vectors.size or not depth or not len(queries):
            return self.vectors.search_exact(queries, k, allowed=allowed)
        hits = make_empty_hits(len(queries), k)
        params = params._replace(rerank_depth=depth)
        for b, candidates in enumerate(self.search_candidates(queries, k, params, allowed, lists)):
            best = scan_single_query(self.vectors.half_vectors, queries[b], candidates[candidates >= 0], k)
            hits.rows[b], hits.scores[b] = best.rows[0], best.scores[0]
        return self.vectors.fill_missing_hits(hits, queries, allowed)

    def search_candidates(
        self,
        queries: Vectors,
        k: int,
        search_params: SearchParams,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,
    ) -> Rows:
        """Select candidates by their codes.

        Args:
            queries: [B, D], finite.
            k: number of rows that the candidates are for; with `spread` it determines the lists.
            search_params: lists to scan, and the number of candidates.
            allowed: bitmap of the rows that may be candidates; None allows all.
            lists: inverted lists to scan for every query; None scans those of `search_params`.

        Returns:
            [B, rerank_depth] rows, best code first, padded with -1 where the scanned lists hold fewer.
        """
        if lists is None:
            lists_by_query = self._list_nearest(queries, k, search_params, allowed)
        else:
            lists_by_query = [lists] * len(queries)
        nprobe = max(1, max(map(len, lists_by_query), default=1))
        probed = np.full((len(queries), nprobe), -1, dtype=np.int64)  # faiss skips -1
        products = np.zeros((len(queries), nprobe), dtype=np.float32)
        for b, query_lists in enumerate(lists_by_query):
            probed[b, : len(query_lists)] = query_lists
            np.vecdot(self._centroids[query_lists], queries[b], out=products[b, : len(query_lists)])
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
                *map(faiss.swig_ptr, (probed, products, scores, rows)),
                False,
                params,
            )
        return rows

    def _list_nearest(
        self, queries: Vectors, k: int, search_params: SearchParams, allowed: Bitmap | None
    ) -> list[Rows]:
        """Return for each query the lists to scan."""
        if not search_params.spread:
            nprobe = min(search_params.width, self.nlist)
            return [scan_single_query(self._half_centroids, query, None, nprobe).rows[0] for query in queries]
        counts = self._list_sizes if allowed is None else self._count_allowed(allowed)
        return [self._select_lists(query, counts, k, 0, search_params.spread) for query in queries]

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Count the rows that a filter allows in each inverted list. See `Index.profile_filter`."""
        return FilterProfile(allowed, self._count_allowed(allowed))

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch:
        """Choose the lists to scan; without `spread`, they are left to the search. See `Index.adapt`."""
        if not search_params.spread:
            return AdaptedSearch(search_params)
        counts = self._count_by_list(request.profile)
        # Of the rows that are counted, those deleted may not be found.
        factor = int(counts.sum()) / max(request.allowed_count, 1)
        k, n_skipped = math.ceil(factor * request.k), math.floor(factor * request.n_skipped)
        lists = self._select_lists(request.query, counts, k, n_skipped, search_params.spread)
        if n_skipped:  # the excluded rows may be the best ones, or any others
            nearest = self._select_lists(request.query, counts, k - n_skipped, 0, search_params.spread)
            lists = np.union1d(lists, nearest)
        return AdaptedSearch(SearchParams(len(lists), search_params.rerank_depth), lists)

    def compute_median_nprobe(self, queries: Vectors, k: int, spread: float) -> int:
        """Median number of lists that queries [Q, D] for k rows scan with a spread, at least 1."""
        lengths = [len(self._select_lists(query, self._list_sizes, k, 0, spread)) for query in queries]
        return max(1, round(float(np.median(lengths))))

    def _select_lists(self, query: Vectors, counts: NDArray[np.int64], k: int, n_skipped: int, spread: float) -> Rows:
        scores = compute_inner_products(self._half_centroids, query)
        length = math.sqrt(float(np.square(query, dtype=np.float64).sum()))
        return select_lists(scores, counts, self._residual_deviation * length, max(1, k), n_skipped, spread)

    def _count_by_list(self, profile: FilterProfile | None) -> NDArray[np.int64]:
        """[nlist] number of rows of each list that a filter allows; None allows all."""
        if profile is None:
            return self._list_sizes
        if profile.list_counts is None:
            return self._count_allowed(profile.allowed)
        return profile.list_counts

    def _count_allowed(self, allowed: Bitmap) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.bincount(self._list_by_row[bitmap_to_rows(allowed)], minlength=self.nlist)
        return counts

    def _measure_residual_deviation(self) -> float:
        """Standard deviation of the residuals' inner products with a unit vector of a random direction, on a sample."""
        rows = sample_rows(self.vectors.size, _RESIDUAL_SAMPLE_ROWS, seed=0)
        residuals = self.vectors.get_vectors(rows) - self._centroids[self._list_by_row[rows]]
        return math.sqrt(float(np.square(residuals, dtype=np.float64).sum(axis=1).mean()) / self.vectors.dim)

    def save(self, path: Path) -> None:
        """Write the index to one file, for `load`. Raises `StoreError` if it cannot be written."""
        write_faiss_index(self._faiss_index, path)


def _list_by_row(ivf_index: Any) -> NDArray[np.int32]:  # noqa: ANN401 - a faiss object
    """[N] inverted list of each row."""
    list_by_row = np.empty(ivf_index.ntotal, dtype=np.int32)
    for number in range(ivf_index.nlist):
        size = ivf_index.invlists.list_size(number)
        if size:
            list_by_row[faiss.rev_swig_ptr(ivf_index.invlists.get_ids(number), size)] = number
    return list_by_row


def _is_ivf_pq(index: Any) -> bool:  # noqa: ANN401 - a faiss object
    """Whether a `faiss.IndexRefine` has the structure that `IvfPqIndex` expects."""
    ivf_index = faiss.downcast_index(index.base_index)
    return (
        isinstance(ivf_index, faiss.IndexIVFPQFastScan)
        and isinstance(faiss.downcast_index(ivf_index.quantizer), faiss.IndexFlat)
        and ivf_index.by_residual
        and (ivf_index.d, ivf_index.ntotal) == (index.d, index.ntotal)
        and is_half_precision(index.refine_index, index)
    )


def _build_ivf_index(stored_vectors: StoredVectors, centroids: Vectors, seed: int) -> Any:  # noqa: ANN401 - a faiss object
    """Train the codes and fill the inverted lists: a `faiss.IndexIVFPQFastScan` that owns its flat quantizer."""
    n, dim = stored_vectors.size, stored_vectors.dim
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
    ivf_index.train(stored_vectors.get_vectors(np.resize(rows, max(len(rows), 2**_PQ_BITS))))  # faiss's minimum
    step = max(_ADD_CHUNK_ROWS, -(-n // 50))
    with progress.track("filling IVF lists", n) as advance:
        for start in range(0, n, step):
            chunk = stored_vectors.get_vectors(np.arange(start, min(n, start + step)))
            ivf_index.add(chunk)
            advance(len(chunk))
    ivf_index.quantizer = flat_quantizer
    ivf_index.own_fields = True
    flat_quantizer.this.disown()
    return ivf_index
