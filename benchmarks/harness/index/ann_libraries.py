"""Libraries that `ann.py` compares with vecall, behind one protocol: `harness.index.workload.Library`."""

import importlib.util
import math
import os
import time
from collections.abc import Callable
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from harness.index.vecall_library import VecallLibrary
from harness.index.workload import Library, Workload
from vecall.arrays import Rows, Vectors

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

M, EF_CONSTRUCTION = 16, 200
_STEP_FACTOR = 1.15  # from one ef, or number of leaves, to the next
_MAX_EF_FACTOR = 64  # largest ef, as a multiple of k


class _GraphLibrary:
    """Common part of the HNSW libraries, whose only search parameter is ef, from k upwards."""

    def load(self, workload: Workload) -> None:
        raise NotImplementedError

    def open(self, workload: Workload) -> None:
        self.load(workload)

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        return [_geometric_steps(k, min(n, _MAX_EF_FACTOR * k))]

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        for query in queries:
            self.search(query[None], k, search_params)

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        raise NotImplementedError


class Hnswlib(_GraphLibrary):
    """hnswlib in single precision."""

    name, package, file = "hnswlib", "hnswlib", "hnswlib.bin"

    def __init__(self) -> None:
        import hnswlib

        self._hnswlib: Any = hnswlib
        self._graph: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        self._graph = self._hnswlib.Index("ip", items.shape[1])
        start = time.perf_counter()
        self._graph.init_index(len(items), M=M, ef_construction=EF_CONSTRUCTION)
        self._graph.add_items(items, np.arange(len(items)), num_threads=os.cpu_count())
        seconds = time.perf_counter() - start
        self._graph.save_index(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._graph = self._hnswlib.Index("ip", workload.load_half_vectors().shape[1])
        self._graph.load_index(str(workload.directory / self.file))

    def search(
        self, queries: Vectors, k: int, search_params: Any, *, predicate: Callable[[int], bool] | None = None
    ) -> Rows:
        """Search the graph.

        Args:
            queries: [B, D].
            k: number of results.
            search_params: ef.
            predicate: called for each visited row; rows for which it returns False are not results.

        Raises:
            RuntimeError: fewer than k visited rows pass the predicate.
        """
        self._graph.set_ef(search_params)
        rows: Rows = self._graph.knn_query(queries, k, num_threads=1, filter=predicate)[0].astype(np.int64)
        return rows


class Faiss(_GraphLibrary):
    """HNSW of faiss in single or half precision."""

    package = "faiss-cpu"

    def __init__(self, *, half: bool) -> None:
        self.name = "faiss-f16" if half else "faiss"
        self.file = f"{self.name}.bin"
        self._half = half
        self._graph: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        dim, metric = items.shape[1], faiss.METRIC_INNER_PRODUCT
        if self._half:
            self._graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, M, metric)
        else:
            self._graph = faiss.IndexHNSWFlat(dim, M, metric)
        self._graph.hnsw.efConstruction = EF_CONSTRUCTION
        start = time.perf_counter()
        self._graph.add(items)
        seconds = time.perf_counter() - start
        faiss.write_index(self._graph, str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        faiss.omp_set_num_threads(1)
        self._graph = faiss.read_index(str(workload.directory / self.file))

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        rows: Rows = self._graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=search_params))[1]
        return rows


class Usearch(_GraphLibrary):
    """usearch in single or half precision."""

    package = "usearch"

    def __init__(self, *, half: bool) -> None:
        from usearch.index import Index

        self.name = "usearch-f16" if half else "usearch"
        self.file = f"{self.name}.bin"
        self._dtype = "f16" if half else "f32"
        self._index_class: Any = Index
        self._graph: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        start = time.perf_counter()
        self._graph = self._create_index(items.shape[1])
        self._graph.add(np.arange(len(items)), items, copy=True, threads=os.cpu_count())
        seconds = time.perf_counter() - start
        self._graph.save(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._graph = self._create_index(workload.load_half_vectors().shape[1])
        self._graph.load(str(workload.directory / self.file))

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        if self._graph.expansion_search != search_params:
            self._graph.expansion_search = search_params
        keys = self._graph.search(queries, k, threads=1).keys
        rows: Rows = keys.astype(np.int64).reshape(len(queries), k)
        return rows

    def _create_index(self, dim: int) -> Any:
        """Create an index without the lookup table of keys, which is memory for ids and not for vectors."""
        return self._index_class(
            ndim=dim,
            metric="ip",
            dtype=self._dtype,
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
            enable_key_lookups=False,
        )


class Scann:
    """ScaNN: a tree of leaves, anisotropic 4-bit codes of two dimensions each, and reranking by exact scores."""

    name, package, file = "scann", "scann", "scann"

    def __init__(self) -> None:
        from scann import scann_ops_pybind

        self._scann: Any = scann_ops_pybind
        self._searcher: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        leaves = max(1, round(2 * math.sqrt(len(items))))
        start = time.perf_counter()
        builder = self._scann.builder(items, max(workload.ks), "dot_product").set_n_training_threads(os.cpu_count())
        builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(len(items), 250_000))
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        self._searcher = builder.reorder(max(workload.ks)).build()
        seconds = time.perf_counter() - start
        (workload.directory / self.file).mkdir(exist_ok=True)
        self._searcher.serialize(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._searcher = self._scann.load_searcher(str(workload.directory / self.file))

    def open(self, workload: Workload) -> None:
        self.load(workload)

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        """Return sweeps of [leaves searched, rows reranked], one for each number of reranked rows."""
        leaf_counts = _geometric_steps(max(1, round(math.sqrt(n) / 64)), round(2 * math.sqrt(n)))
        return [
            [[leaves, min(n, math.ceil(factor * k))] for leaves in leaf_counts]
            for factor in (1.0, 1.3, 1.7, 2.3, 3.5, 6.0, 10.0)
        ]

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        leaves, rerank_depth = search_params
        options = {"final_num_neighbors": k, "leaves_to_search": leaves, "pre_reorder_num_neighbors": rerank_depth}
        return np.array([self._pad_rows(self._searcher.search(query, **options)[0], k) for query in queries])

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        self.search(queries, k, search_params)

    @staticmethod
    def _pad_rows(rows: NDArray[Any], k: int) -> Rows:
        """Pad to [k] with -1, where the searched leaves hold fewer rows."""
        return np.concatenate([rows.astype(np.int64), np.full(k - len(rows), -1)])


# By name: the module to import, and how to create the library.
_FACTORIES: dict[str, tuple[str, Callable[[], Library]]] = {
    "ours": ("vecall", VecallLibrary),
    "hnswlib": ("hnswlib", Hnswlib),
    "faiss": ("faiss", lambda: Faiss(half=False)),
    "faiss-f16": ("faiss", lambda: Faiss(half=True)),
    "usearch": ("usearch", lambda: Usearch(half=False)),
    "usearch-f16": ("usearch", lambda: Usearch(half=True)),
    "scann": ("scann", Scann),
}
LIBRARY_NAMES = tuple(_FACTORIES)
GRAPH_LIBRARIES = tuple(name for name in LIBRARY_NAMES if name not in ("ours", "scann"))


def is_installed(name: str) -> bool:
    """Return whether the library can be imported."""
    return importlib.util.find_spec(_FACTORIES[name][0]) is not None


def create_library(name: str) -> Library:
    """Create the library of one of LIBRARY_NAMES, without an index."""
    return _FACTORIES[name][1]()


def _geometric_steps(first: int, last: int) -> list[int]:
    """Return ascending integers from `first` to `last`, each about _STEP_FACTOR times the one before."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(last, max(steps[-1] + 1, math.ceil(steps[-1] * _STEP_FACTOR))))
    return steps
