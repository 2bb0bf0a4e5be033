"""vecall behind the protocol of `ann.py`: a published release, searched through the planner."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from harness.index.workload import Workload
from vecall import publish_vectors
from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index import builder, kernels
from vecall.index.base import Index, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.engine import BuildContext, Engine, EngineBuild
from vecall.index.engines import ENGINES
from vecall.index.planner import plan_search
from vecall.index.settings import IndexSettings
from vecall.live.snapshot import Snapshot
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import search_snapshot
from vecall.release.manifest import read_manifest
from vecall.release.release import open_release
from vecall.release.store import Store

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


class VecallLibrary:
    """A vecall release. See `harness.index.workload.Library` for the methods."""

    name, package, file = "ours", "vecall", "store"

    def __init__(self) -> None:
        kernels.compile_kernels()
        self._snapshot: Snapshot | None = None
        self._index: Index | None = None

    def build(self, workload: Workload) -> dict[str, float]:
        """Publish a release: engines are compared, one is built and tuned, and all files are written and hashed."""
        items, queries = workload.load_half_vectors(), workload.load_queries("tuning")
        settings = IndexSettings(engine="auto", target_recall=workload.target, ks=workload.ks)
        shutil.rmtree(workload.directory / self.file, ignore_errors=True)
        start = time.perf_counter()
        with (
            _record_build_seconds() as build_seconds,
            _record_call_seconds(builder, "tune") as tune_seconds,
        ):
            ids = pl.Series(np.arange(len(items)))
            publish_vectors(workload.directory / self.file, ids, items, queries=queries, index=settings)
        seconds = time.perf_counter() - start
        if not build_seconds:  # an exact index: there is no engine to compare
            return {"seconds": seconds}
        return {
            "seconds": seconds,
            "index_seconds": build_seconds[-1],  # the last calls are those over all items
            "tuning_seconds": tune_seconds[-1],
            "choosing_seconds": sum(build_seconds[:-1]) + sum(tune_seconds[:-1]),
        }

    def load(self, workload: Workload) -> None:
        """Load the index of the release alone."""
        store = Store.open(workload.directory / self.file)
        directory = store.get_release_dir(store.get_current().release)
        info = read_manifest(directory)[0].index
        engine = ENGINES[info.engine]
        self._index = engine.open(directory / engine.file, info)

    def open(self, workload: Workload) -> None:
        """Open the whole release and verify its digests."""
        self._snapshot = Snapshot.from_release(open_release(Store.open(workload.directory / self.file)))

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        """Return the parameters that the planner chooses; None stands for a scan."""
        release = self._require_snapshot().release
        plan = plan_search(
            k, size=n, allowed_count=n, excluded_count=0, curve=release.search_param_curve, costs=release.cost_model
        )
        return [[None if plan.search_params is None else list(plan.search_params)]]

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        """Search through the planner, which looks up the search parameters itself."""
        del search_params
        snapshot = self._require_snapshot()
        resolved = (ResolvedQuery(query[None], _NO_ROWS, None, UnknownInputs()) for query in queries)
        return np.array([search_snapshot(snapshot, query, None, k).rows for query in resolved])

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        """Search the index and scan exactly, both with and without a bitmap."""
        if self._index is None:
            raise SystemExit("the index was not loaded: call load() first")
        every_second = Bitmap.from_mask(np.arange(self._index.vectors.size) % 2 == 0)
        params = None if search_params is None else SearchParams(*search_params)
        for query in queries:
            self._index.search(query[None], k, search_params=params)
            self._index.search(query[None], k, search_params=params, allowed=every_second)
            self._index.vectors.search_exact(query[None], k)
            self._index.vectors.search_exact(query[None], k, allowed=every_second)

    def _require_snapshot(self) -> Snapshot:
        if self._snapshot is None:
            raise SystemExit("the release was not opened: call open() first")
        return self._snapshot


@contextmanager
def _record_build_seconds() -> Iterator[list[float]]:
    """Record the seconds of each build of an approximate index, those of the trial of engines included."""
    seconds: list[float] = []

    def time_build(engine: Engine) -> Engine:
        def build(vectors: Vectors | HalfVectors, context: BuildContext) -> EngineBuild:
            start = time.perf_counter()
            try:
                return engine.build(vectors, context)
            finally:
                seconds.append(time.perf_counter() - start)

        return engine if engine.is_exact else replace(engine, build=build)

    with patch.dict(ENGINES, {name: time_build(engine) for name, engine in ENGINES.items()}):
        yield seconds


@contextmanager
def _record_call_seconds(owner: Any, name: str) -> Iterator[Sequence[float]]:
    """Record the seconds of each call of the function `owner.name`: publishing does not report them."""
    function, seconds = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    with patch.object(owner, name, timed):
        yield seconds
