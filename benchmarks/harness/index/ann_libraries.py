"""What `ann.py` measures: ours, and the libraries beside it, each behind the same few methods."""

import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import faiss as typed_faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import publish_vectors
from vecall.index import builder, kernels
from vecall.index import index_io as index_files
from vecall.index.base import HalfVectors, Rows, SearchParams, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.planner import plan_search
from vecall.index.settings import IndexSettings
from vecall.live.snapshot import Snapshot
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import search_snapshot
from vecall.release.release import INDEX_FILE, open_release
from vecall.release.store import Store

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

M, EF_CONSTRUCTION = 16, 200
_STEP_FACTOR = 1.15  # from one rung of a ladder to the next
_MAX_EF_FACTOR = 64  # times k: a ladder ends there
_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Workload:
    """One set of vectors, and the folder that they and all indexes over them lie in.

    Attributes:
        directory: holds items.npy, tuning.npy and asked.npy.
        ks: ascending.
        target: mean ANN recall that efforts must reach.
    """

    directory: Path
    ks: tuple[int, ...]
    target: float

    def load_half_vectors(self) -> HalfVectors:
        """[N, D] items in half precision, mapped from their file."""
        items: HalfVectors = np.load(self.directory / "items.npy", mmap_mode="r")
        return items

    def load_vectors(self) -> Vectors:
        """[N, D] the same numbers in single precision, in memory."""
        return self.load_half_vectors().astype(np.float32)

    def load_queries(self, query_set: str) -> Vectors:
        """[Q, D] the `tuning` queries, or the `asked` ones."""
        queries: Vectors = np.load(self.directory / f"{query_set}.npy")
        return queries

    def load_truth(self, query_set: str) -> Rows:
        """[Q, largest k] exact answers, found once."""
        file = self.directory / f"truth-{query_set}.npy"
        if not file.exists() or np.load(file, mmap_mode="r").shape[1] < max(self.ks):
            found = ExactIndex.build(self.load_half_vectors()).search_exact(self.load_queries(query_set), max(self.ks))
            np.save(file, found.rows)
        rows: Rows = np.load(file)
        return rows


class Library(Protocol):
    """An index over all vectors of a `Work`. Made, it has imported what it needs."""

    name: str
    package: str
    file: str

    def build(self, workload: Workload) -> dict[str, float]:
        """Build with all threads, and save in the work's folder. `seconds`: from vectors in memory to an index."""

    def load(self, workload: Workload) -> None:
        """Read the index and the vectors that were saved, and no ids: what memory is measured of."""

    def open(self, workload: Workload) -> None:
        """Make ready for `search`."""

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        """Rising efforts; where an effort has two numbers, a ladder for each of the one."""

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        """[B, k] rows, on one thread."""

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        """Every way of answering, before memory is measured."""


class VecallLibrary:
    """A release, asked through the planner."""

    name, package, file = "ours", "vecall", "store"

    def __init__(self) -> None:
        kernels.compile_kernels()
        self._snapshot: Snapshot | None = None
        self._index: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        """Publish: structures are tried, one is built and tuned, and all of it is written and summed."""
        items, queries = workload.load_half_vectors(), workload.load_queries("tuning")
        settings = IndexSettings(engine="auto", target_recall=workload.target, ks=workload.ks)
        shutil.rmtree(workload.directory / self.file, ignore_errors=True)
        began = time.perf_counter()
        with _record_call_seconds(builder.IndexSpec, "build") as built, _record_call_seconds(builder, "tune") as tuned:
            ids = pl.Series(np.arange(len(items)))
            publish_vectors(workload.directory / self.file, ids, items, queries=queries, index=settings)
        seconds = time.perf_counter() - began
        if not built:  # an exact index is not a structure that is tried
            return {"seconds": seconds}
        return {
            "seconds": seconds,
            "index_seconds": built[-1],  # the last ones are those of the whole pool
            "tuning_seconds": tuned[-1],
            "choosing_seconds": sum(built[:-1]) + sum(tuned[:-1]),
        }

    def load(self, workload: Workload) -> None:
        """The release's index alone."""
        store = Store.open(workload.directory / self.file)
        self._index = index_files.load_index(store.get_release_dir(store.get_current().release) / INDEX_FILE)

    def open(self, workload: Workload) -> None:
        """The whole release, every byte of it verified."""
        self._snapshot = Snapshot.from_release(open_release(Store.open(workload.directory / self.file)))

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        """What the planner takes; None is a scan."""
        release = self._require_snapshot().release
        plan = plan_search(
            k, size=n, allowed_count=n, excluded_count=0, curve=release.search_param_curve, costs=release.cost_model
        )
        return [[None if plan.search_params is None else list(plan.search_params)]]

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        """By the planner, which knows the effort itself."""
        del search_params
        view = self._require_snapshot()
        return np.array(
            [
                search_snapshot(view, ResolvedQuery(one[None], _NO_ROWS, None, UnknownInputs()), None, k).rows
                for one in queries
            ]
        )

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        """Index, exact scan, and both under a bitmap."""
        half = Bitmap.from_mask(np.arange(self._index.size) % 2 == 0)
        tried = None if search_params is None else SearchParams(*search_params)
        for query in queries:
            self._index.search(query[None], k, effort=tried)
            self._index.search(query[None], k, effort=tried, allowed=half)
            self._index.search_exact(query[None], k)
            self._index.search_exact(query[None], k, allowed=half)

    def _require_snapshot(self) -> Snapshot:
        if self._snapshot is None:
            raise SystemExit("the release was not opened")
        return self._snapshot


class _GraphLibrary:
    """What the graphs have in common: one number, ef, from k upwards."""

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
    """hnswlib, single precision."""

    name, package, file = "hnswlib", "hnswlib", "hnswlib.bin"

    def __init__(self) -> None:
        import hnswlib

        self._hnswlib: Any = hnswlib
        self._graph: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        self._graph = self._hnswlib.Index("ip", items.shape[1])
        began = time.perf_counter()
        self._graph.init_index(len(items), M=M, ef_construction=EF_CONSTRUCTION)
        self._graph.add_items(items, np.arange(len(items)), num_threads=os.cpu_count())
        seconds = time.perf_counter() - began
        self._graph.save_index(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._graph = self._hnswlib.Index("ip", workload.load_half_vectors().shape[1])
        self._graph.load_index(str(workload.directory / self.file))

    def search(
        self, queries: Vectors, k: int, search_params: Any, *, predicate: Callable[[int], bool] | None = None
    ) -> Rows:
        """Under `predicate` it is called back for each row it meets, and raises RuntimeError where fewer than k pass."""
        self._graph.set_ef(search_params)
        rows: Rows = self._graph.knn_query(queries, k, num_threads=1, filter=predicate)[0].astype(np.int64)
        return rows


class Faiss(_GraphLibrary):
    """faiss's HNSW, single or half precision."""

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
        began = time.perf_counter()
        self._graph.add(items)
        seconds = time.perf_counter() - began
        faiss.write_index(self._graph, str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        faiss.omp_set_num_threads(1)
        self._graph = faiss.read_index(str(workload.directory / self.file))

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        rows: Rows = self._graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=search_params))[1]
        return rows


class Usearch(_GraphLibrary):
    """usearch, single or half precision."""

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
        began = time.perf_counter()
        self._graph = self._create_index(items.shape[1])
        self._graph.add(np.arange(len(items)), items, copy=True, threads=os.cpu_count())
        seconds = time.perf_counter() - began
        self._graph.save(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._graph = self._create_index(workload.load_half_vectors().shape[1])
        self._graph.load(str(workload.directory / self.file))

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        if self._graph.expansion_search != search_params:
            self._graph.expansion_search = search_params
        found = self._graph.search(queries, k, threads=1).keys
        rows: Rows = found.astype(np.int64).reshape(len(queries), k)
        return rows

    def _create_index(self, dim: int) -> Any:
        """Without a table from keys to places, which is of ids, not of vectors."""
        return self._index_class(
            ndim=dim,
            metric="ip",
            dtype=self._dtype,
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
            enable_key_lookups=False,
        )


class Scann:
    """ScaNN: a tree, anisotropic codes of 4 bits for two dimensions, exact scores at the end."""

    name, package, file = "scann", "scann", "scann"

    def __init__(self) -> None:
        from scann import scann_ops_pybind

        self._scann: Any = scann_ops_pybind
        self._searcher: Any = None

    def build(self, workload: Workload) -> dict[str, float]:
        items = workload.load_vectors()
        leaves = max(1, round(2 * math.sqrt(len(items))))
        began = time.perf_counter()
        builder = self._scann.builder(items, max(workload.ks), "dot_product").set_n_training_threads(os.cpu_count())
        tree = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(len(items), 250_000))
        coded = tree.score_ah(2, anisotropic_quantization_threshold=0.2)
        self._searcher = coded.reorder(max(workload.ks)).build()
        seconds = time.perf_counter() - began
        (workload.directory / self.file).mkdir(exist_ok=True)
        self._searcher.serialize(str(workload.directory / self.file))
        return {"seconds": seconds}

    def load(self, workload: Workload) -> None:
        self._searcher = self._scann.load_searcher(str(workload.directory / self.file))

    def open(self, workload: Workload) -> None:
        self.load(workload)

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        leaves = _geometric_steps(max(1, round(math.sqrt(n) / 64)), round(2 * math.sqrt(n)))
        return [
            [[width, min(n, math.ceil(times * k))] for width in leaves]
            for times in (1.0, 1.3, 1.7, 2.3, 3.5, 6.0, 10.0)
        ]

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        width, depth = search_params
        wanted = {"final_num_neighbors": k, "leaves_to_search": width, "pre_reorder_num_neighbors": depth}
        return np.array([self._pad_rows(self._searcher.search(one, **wanted)[0], k) for one in queries])

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        self.search(queries, k, search_params)

    @staticmethod
    def _pad_rows(found: NDArray[Any], k: int) -> Rows:
        """Where the leaves held fewer, -1."""
        if len(found) == k:
            return found.astype(np.int64)
        return np.concatenate([found.astype(np.int64), np.full(k - len(found), -1)])


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
    """Whether it can be imported."""
    return importlib.util.find_spec(_FACTORIES[name][0]) is not None


def create_library(name: str) -> Library:
    """One of `NAMES`, without vectors so far."""
    return _FACTORIES[name][1]()


def _geometric_steps(first: int, last: int) -> list[int]:
    rungs = [first]
    while rungs[-1] < last:
        rungs.append(min(last, max(rungs[-1] + 1, math.ceil(rungs[-1] * _STEP_FACTOR))))
    return rungs


@contextmanager
def _record_call_seconds(owner: Any, name: str) -> Iterator[Sequence[float]]:
    """Seconds of each call of a function: publishing does not say them."""
    called, seconds = getattr(owner, name), []

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return called(*arguments, **named)
        finally:
            seconds.append(time.perf_counter() - began)

    with patch.object(owner, name, timed):
        yield seconds
