"""Approximate search on a graph: faiss's HNSW over vectors in half precision.

HNSW: Malkov, Yashunin: Efficient and robust approximate nearest neighbor search using hierarchical navigable small
world graphs, 2018.
"""

import math
from pathlib import Path
from typing import Any, Self

import faiss as typed_faiss
import numpy as np

from vecall import progress
from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.engine import BuildContext, Engine, EngineBuild
from vecall.index.faiss_adapter import build_id_selector, use_faiss_threads, view_flat_vectors
from vecall.index.faiss_files import (
    INDEX_FILE,
    is_half_precision,
    make_structure_error,
    read_faiss_index,
    write_faiss_index,
)
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.scan import check_allowed, check_queries, check_vectors, rescore, round_to_half_precision
from vecall.index.stored_vectors import StoredVectors

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_DEFAULT_M, _DEFAULT_EF_CONSTRUCTION = 16, 200
_PROBE_ROWS = 64  # nearest rows that tell how many a filter allows near a query
_MAX_RATE_RATIO = 0.75  # share allowed near a query as a multiple of the share of all rows: below, the graph fails
_MAX_DEVIATIONS = -2.5  # and as standard deviations of a random filter: above, it may be chance


class HnswIndex:
    """HNSW graph over N vectors, which it stores once, as `ExactIndex` does.

    Args:
        graph: `faiss.IndexHNSWSQ` in half precision by inner product. Its `efSearch`, which faiss saves with it, is the
            default width of a search.

    Attributes:
        vectors: the stored vectors.
        ef: default width of a search.
    """

    def __init__(self, graph: Any) -> None:  # noqa: ANN401 - a faiss object
        self._graph = graph
        self.vectors = StoredVectors(view_flat_vectors(faiss.downcast_index(graph.storage)), owner=graph)
        self.ef = int(graph.hnsw.efSearch)

    @classmethod
    def build(
        cls,
        vectors: Vectors | HalfVectors,
        *,
        m: int = _DEFAULT_M,
        ef_construction: int = _DEFAULT_EF_CONSTRUCTION,
        ef: int = 50,
        threads: int | None = None,
    ) -> Self:
        """Build a graph over a copy of [N, D] float32 or float16 vectors.

        One thread builds the same graph from the same vectors; with several, the graph depends on their timing.

        Args:
            vectors: [N, D], finite.
            m: links per vector and level (twice as many on the lowest level), at least 2.
            ef_construction: candidates examined for a vector's links.
            ef: default width of a search.
            threads: number of threads; None uses as many as OpenMP allows the calling thread.

        Raises:
            DataError: the array is empty, of a wrong type or shape, or not representable in half precision.
        """
        check_vectors(vectors)
        n, dim = vectors.shape
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = ef_construction
        graph.hnsw.efSearch = ef
        codes = faiss.downcast_index(graph.storage).codes
        codes.resize(2 * dim * n)  # reserves the memory: storage that grows would take up to twice its size
        codes.clear()
        step = max(4096, -(-n // 20))
        with use_faiss_threads(threads), progress.track("building graph", n) as advance:
            for start in range(0, n, step):
                chunk = round_to_half_precision(vectors[start : start + step])
                graph.add(chunk)
                advance(len(chunk))
        return cls(graph)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Map a file of which the sha256 has been checked into memory.

        Raises:
            InvalidReleaseError: the file is missing, or holds another structure.
        """
        graph = read_faiss_index(path, mapped=True)
        if not isinstance(graph, faiss.IndexHNSWSQ) or not is_half_precision(graph.storage, graph):
            raise make_structure_error(path, graph, "an HNSW index")
        index = cls(graph)
        index.vectors.prefault()
        return index

    @property
    def max_width(self) -> int:
        """N: a wider search would visit every row."""
        return self.vectors.size

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,  # noqa: ARG002 - a graph has none
    ) -> Hits:
        """Return approximately the k best rows of each query, with exact scores. See `Index.search`.

        One query is searched in the calling thread. A batch is spread over as many threads as OpenMP allows the calling
        thread: all cores, unless it called `faiss.omp_set_num_threads`.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: `width` is ef, raised to k if it is lower. None uses the index's `ef`.
            allowed: bitmap of the rows that may be returned; the search passes through the others.
            lists: ignored.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
        """
        check_queries(queries, self.vectors.dim, k)
        check_allowed(allowed, self.vectors.size)
        ef = max(self.ef if search_params is None else search_params.width, k)
        if ef >= self.vectors.size or not len(queries):  # the graph would visit every row
            return self.vectors.search_exact(queries, k, allowed=allowed)
        # Passed with the call, because threads share the attributes of the index.
        params = faiss.SearchParametersHNSW(efSearch=ef, sel=build_id_selector(allowed))
        with use_faiss_threads(1 if len(queries) == 1 else None):
            _, rows = self._graph.search(queries, k, params=params)  # [B, k]
        hits = rescore(self.vectors.half_vectors, queries, rows)
        return self.vectors.fill_missing_hits(hits, queries, allowed)

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Return the filter alone. See `Index.profile_filter`."""
        return FilterProfile(allowed)

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch | None:
        """Ask for a scan if the filter allows clearly fewer rows near the query than elsewhere. See `Index.adapt`.

        There the search spends its width on rows that are not allowed, and a larger width gains little. A small search
        without the filter finds the nearest rows, and the share of them that the filter allows.
        """
        if request.profile is None:
            return AdaptedSearch(search_params)
        params = faiss.SearchParametersHNSW(efSearch=_PROBE_ROWS)
        with use_faiss_threads(1):
            _, rows = self._graph.search(request.query[None], _PROBE_ROWS, params=params)
        nearest, rate = rows[0][rows[0] >= 0], request.profile.pass_rate
        n_allowed, n_expected = np.count_nonzero(request.profile.allowed.contains(nearest)), rate * len(nearest)
        max_allowed = n_expected + _MAX_DEVIATIONS * math.sqrt(n_expected * (1 - rate))
        if n_allowed < min(max_allowed, _MAX_RATE_RATIO * n_expected):
            return None
        return AdaptedSearch(search_params)

    def save(self, path: Path) -> None:
        """Write the index to one file, for `load`. Raises `StoreError` if it cannot be written."""
        write_faiss_index(self._graph, path)


def _build(vectors: Vectors | HalfVectors, context: BuildContext) -> EngineBuild:
    m = context.settings.M or _DEFAULT_M
    ef_construction = context.settings.ef_construction or _DEFAULT_EF_CONSTRUCTION
    index = HnswIndex.build(vectors, m=m, ef_construction=ef_construction)
    return EngineBuild(index, {"M": m, "ef_construction": ef_construction})


HNSW_ENGINE = Engine(
    name="hnsw",
    file=INDEX_FILE,
    build=_build,
    open=lambda path, _: HnswIndex.load(path),
    settings_keys=("M", "ef_construction", "ef"),
    maps_vectors=True,
    fixed_width_key="ef",
)
