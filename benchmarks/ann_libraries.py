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
from vecall.index.base import HalfVectors, SearchParams, Rows, Vectors
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
_GROWTH = 1.15  # from one rung of a ladder to the next
_TALLEST = 64  # times k: a ladder ends there
_NONE: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Work:
    """One set of vectors, and the folder that they and all indexes over them lie in.

    Attributes:
        folder: holds items.npy, tuning.npy and asked.npy.
        ks: ascending.
        target: mean ANN recall that efforts must reach.
    """

    folder: Path
    ks: tuple[int, ...]
    target: float

    def stored(self) -> HalfVectors:
        """[N, D] items in half precision, mapped from their file."""
        items: HalfVectors = np.load(self.folder / "items.npy", mmap_mode="r")
        return items

    def items(self) -> Vectors:
        """[N, D] the same numbers in single precision, in memory."""
        return self.stored().astype(np.float32)

    def queries(self, who: str) -> Vectors:
        """[Q, D] the `tuning` queries, or the `asked` ones."""
        queries: Vectors = np.load(self.folder / f"{who}.npy")
        return queries

    def truth(self, who: str) -> Rows:
        """[Q, largest k] exact answers, found once."""
        file = self.folder / f"truth-{who}.npy"
        if not file.exists() or np.load(file, mmap_mode="r").shape[1] < max(self.ks):
            found = ExactIndex.build(self.stored()).search_exact(self.queries(who), max(self.ks))
            np.save(file, found.rows)
        rows: Rows = np.load(file)
        return rows


class Library(Protocol):
    """An index over all vectors of a `Work`. Made, it has imported what it needs."""

    name: str
    package: str
    file: str

    def build(self, work: Work) -> dict[str, float]:
        """Build with all threads, and save in the work's folder. `seconds`: from vectors in memory to an index."""

    def load(self, work: Work) -> None:
        """Read the index and the vectors that were saved, and no ids: what memory is measured of."""

    def open(self, work: Work) -> None:
        """Make ready for `search`."""

    def ladders(self, k: int, n: int) -> list[list[Any]]:
        """Rising efforts; where an effort has two numbers, a ladder for each of the one."""

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        """[B, k] rows, on one thread."""

    def use_all(self, queries: Vectors, k: int, effort: Any) -> None:
        """Every way of answering, before memory is measured."""


class Ours:
    """A release, asked through the planner."""

    name, package, file = "ours", "vecall", "store"

    def __init__(self) -> None:
        kernels.compile_kernels()
        self._view: Snapshot | None = None
        self._index: Any = None

    def build(self, work: Work) -> dict[str, float]:
        """Publish: structures are tried, one is built and tuned, and all of it is written and summed."""
        items, queries = work.stored(), work.queries("tuning")
        settings = IndexSettings(engine="auto", target_recall=work.target, ks=work.ks)
        shutil.rmtree(work.folder / self.file, ignore_errors=True)
        began = time.perf_counter()
        with _watched(builder.IndexSpec, "build") as built, _watched(builder, "tune") as tuned:
            ids = pl.Series(np.arange(len(items)))
            publish_vectors(work.folder / self.file, ids, items, queries=queries, index=settings)
        seconds = time.perf_counter() - began
        if not built:  # an exact index is not a structure that is tried
            return {"seconds": seconds}
        return {
            "seconds": seconds,
            "index_seconds": built[-1],  # the last ones are those of the whole pool
            "tuning_seconds": tuned[-1],
            "choosing_seconds": sum(built[:-1]) + sum(tuned[:-1]),
        }

    def load(self, work: Work) -> None:
        """The release's index alone."""
        store = Store.open(work.folder / self.file)
        self._index = index_files.load_index(store.get_release_dir(store.get_current().release) / INDEX_FILE)

    def open(self, work: Work) -> None:
        """The whole release, every byte of it verified."""
        self._view = Snapshot.from_release(open_release(Store.open(work.folder / self.file)))

    def ladders(self, k: int, n: int) -> list[list[Any]]:
        """What the planner takes; None is a scan."""
        release = self._opened().release
        plan = plan_search(k, size=n, allowed_count=n, excluded_count=0, curve=release.search_param_curve, costs=release.cost_model)
        return [[None if plan.search_params is None else list(plan.search_params)]]

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        """By the planner, which knows the effort itself."""
        del effort
        view = self._opened()
        return np.array([search_snapshot(view, ResolvedQuery(one[None], _NONE, None, UnknownInputs()), None, k).rows for one in queries])

    def use_all(self, queries: Vectors, k: int, effort: Any) -> None:
        """Index, exact scan, and both under a bitmap."""
        half = Bitmap.from_mask(np.arange(self._index.size) % 2 == 0)
        tried = None if effort is None else SearchParams(*effort)
        for query in queries:
            self._index.search(query[None], k, effort=tried)
            self._index.search(query[None], k, effort=tried, allowed=half)
            self._index.search_exact(query[None], k)
            self._index.search_exact(query[None], k, allowed=half)

    def _opened(self) -> Snapshot:
        if self._view is None:
            raise SystemExit("the release was not opened")
        return self._view


class _Graph:
    """What the graphs have in common: one number, ef, from k upwards."""

    def load(self, work: Work) -> None:
        raise NotImplementedError

    def open(self, work: Work) -> None:
        self.load(work)

    def ladders(self, k: int, n: int) -> list[list[Any]]:
        return [_rungs(k, min(n, _TALLEST * k))]

    def use_all(self, queries: Vectors, k: int, effort: Any) -> None:
        for query in queries:
            self.search(query[None], k, effort)

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        raise NotImplementedError


class Hnswlib(_Graph):
    """hnswlib, single precision."""

    name, package, file = "hnswlib", "hnswlib", "hnswlib.bin"

    def __init__(self) -> None:
        import hnswlib

        self._hnswlib: Any = hnswlib
        self._graph: Any = None

    def build(self, work: Work) -> dict[str, float]:
        items = work.items()
        self._graph = self._hnswlib.Index("ip", items.shape[1])
        began = time.perf_counter()
        self._graph.init_index(len(items), M=M, ef_construction=EF_CONSTRUCTION)
        self._graph.add_items(items, np.arange(len(items)), num_threads=os.cpu_count())
        seconds = time.perf_counter() - began
        self._graph.save_index(str(work.folder / self.file))
        return {"seconds": seconds}

    def load(self, work: Work) -> None:
        self._graph = self._hnswlib.Index("ip", work.stored().shape[1])
        self._graph.load_index(str(work.folder / self.file))

    def search(self, queries: Vectors, k: int, effort: Any, *, passes: Callable[[int], bool] | None = None) -> Rows:
        """Under `passes` it is called back for each row it meets, and raises RuntimeError where fewer than k pass."""
        self._graph.set_ef(effort)
        rows: Rows = self._graph.knn_query(queries, k, num_threads=1, filter=passes)[0].astype(np.int64)
        return rows


class Faiss(_Graph):
    """faiss's HNSW, single or half precision."""

    package = "faiss-cpu"

    def __init__(self, *, half: bool) -> None:
        self.name = "faiss-f16" if half else "faiss"
        self.file = f"{self.name}.bin"
        self._half = half
        self._graph: Any = None

    def build(self, work: Work) -> dict[str, float]:
        items = work.items()
        dim, metric = items.shape[1], faiss.METRIC_INNER_PRODUCT
        if self._half:
            self._graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, M, metric)
        else:
            self._graph = faiss.IndexHNSWFlat(dim, M, metric)
        self._graph.hnsw.efConstruction = EF_CONSTRUCTION
        began = time.perf_counter()
        self._graph.add(items)
        seconds = time.perf_counter() - began
        faiss.write_index(self._graph, str(work.folder / self.file))
        return {"seconds": seconds}

    def load(self, work: Work) -> None:
        faiss.omp_set_num_threads(1)
        self._graph = faiss.read_index(str(work.folder / self.file))

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        rows: Rows = self._graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=effort))[1]
        return rows


class Usearch(_Graph):
    """usearch, single or half precision."""

    package = "usearch"

    def __init__(self, *, half: bool) -> None:
        from usearch.index import Index

        self.name = "usearch-f16" if half else "usearch"
        self.file = f"{self.name}.bin"
        self._dtype = "f16" if half else "f32"
        self._made: Any = Index
        self._graph: Any = None

    def build(self, work: Work) -> dict[str, float]:
        items = work.items()
        began = time.perf_counter()
        self._graph = self._empty(items.shape[1])
        self._graph.add(np.arange(len(items)), items, copy=True, threads=os.cpu_count())
        seconds = time.perf_counter() - began
        self._graph.save(str(work.folder / self.file))
        return {"seconds": seconds}

    def load(self, work: Work) -> None:
        self._graph = self._empty(work.stored().shape[1])
        self._graph.load(str(work.folder / self.file))

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        if self._graph.expansion_search != effort:
            self._graph.expansion_search = effort
        found = self._graph.search(queries, k, threads=1).keys
        rows: Rows = found.astype(np.int64).reshape(len(queries), k)
        return rows

    def _empty(self, dim: int) -> Any:
        """Without a table from keys to places, which is of ids, not of vectors."""
        return self._made(
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

    def build(self, work: Work) -> dict[str, float]:
        items = work.items()
        leaves = max(1, round(2 * math.sqrt(len(items))))
        began = time.perf_counter()
        builder = self._scann.builder(items, max(work.ks), "dot_product").set_n_training_threads(os.cpu_count())
        tree = builder.tree(leaves, max(1, leaves // 20), training_sample_size=min(len(items), 250_000))
        coded = tree.score_ah(2, anisotropic_quantization_threshold=0.2)
        self._searcher = coded.reorder(max(work.ks)).build()
        seconds = time.perf_counter() - began
        (work.folder / self.file).mkdir(exist_ok=True)
        self._searcher.serialize(str(work.folder / self.file))
        return {"seconds": seconds}

    def load(self, work: Work) -> None:
        self._searcher = self._scann.load_searcher(str(work.folder / self.file))

    def open(self, work: Work) -> None:
        self.load(work)

    def ladders(self, k: int, n: int) -> list[list[Any]]:
        leaves = _rungs(max(1, round(math.sqrt(n) / 64)), round(2 * math.sqrt(n)))
        return [
            [[width, min(n, math.ceil(times * k))] for width in leaves]
            for times in (1.0, 1.3, 1.7, 2.3, 3.5, 6.0, 10.0)
        ]

    def search(self, queries: Vectors, k: int, effort: Any) -> Rows:
        width, depth = effort
        wanted = {"final_num_neighbors": k, "leaves_to_search": width, "pre_reorder_num_neighbors": depth}
        return np.array([self._padded(self._searcher.search(one, **wanted)[0], k) for one in queries])

    def use_all(self, queries: Vectors, k: int, effort: Any) -> None:
        self.search(queries, k, effort)

    @staticmethod
    def _padded(found: NDArray[Any], k: int) -> Rows:
        """Where the leaves held fewer, -1."""
        if len(found) == k:
            return found.astype(np.int64)
        return np.concatenate([found.astype(np.int64), np.full(k - len(found), -1)])


_MADE: dict[str, tuple[str, Callable[[], Library]]] = {
    "ours": ("vecall", Ours),
    "hnswlib": ("hnswlib", Hnswlib),
    "faiss": ("faiss", lambda: Faiss(half=False)),
    "faiss-f16": ("faiss", lambda: Faiss(half=True)),
    "usearch": ("usearch", lambda: Usearch(half=False)),
    "usearch-f16": ("usearch", lambda: Usearch(half=True)),
    "scann": ("scann", Scann),
}
NAMES = tuple(_MADE)
GRAPHS = tuple(name for name in NAMES if name not in ("ours", "scann"))


def installed(name: str) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(_MADE[name][0]) is not None


def make(name: str) -> Library:
    """One of `NAMES`, without vectors so far."""
    return _MADE[name][1]()


def _rungs(first: int, last: int) -> list[int]:
    rungs = [first]
    while rungs[-1] < last:
        rungs.append(min(last, max(rungs[-1] + 1, math.ceil(rungs[-1] * _GROWTH))))
    return rungs


@contextmanager
def _watched(owner: Any, name: str) -> Iterator[Sequence[float]]:
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
