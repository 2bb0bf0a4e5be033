"""Other ways under a filter, beside ours in the same minute: a graph with a bare bitmap, a callback, over-fetching.

Filters are random; every way but ours has the effort that reaches the target without a filter. `HnswIndex` answers by
an exact scan where its graph did not find k rows: bare faiss would return fewer.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ann
import numpy as np
from harness.index.ann_libraries import Hnswlib, Workload, is_installed
from harness.environment import describe_environment, read_load_average
from harness.filters.grid import TARGET_RECALL, FilterCase, FilterPool, compute_percentiles, evaluate_answers, make_cases

from vecall.index import index_io as index_files
from vecall.index.base import Rows
from vecall.index.hnsw import HnswIndex
from vecall.index.tuning import tune
from vecall.recall.search import search_snapshot

PASS_RATES, K = (0.5, 0.1, 0.01), 100
_CALLS_PER_TURN = 10  # calls of one way, then as many of the next
_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass
class SearchMethod:
    """One way of answering under a filter, and what came of it.

    Attributes:
        name: for people.
        prepare: a filter made into what the way takes, once; not timed.
        search: rows for a case.
        error_count: answers that failed with RuntimeError.
        answers: the answers so far.
        latencies_ms: what they took.
    """

    name: str
    prepare: Callable[[FilterCase], Any]
    search: Callable[[FilterCase, Any], Rows]
    error_count: int = 0
    answers: list[Rows] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    def run(self, cases: list[FilterCase], prepared: Any) -> None:
        """Some cases, one by one."""
        for case in cases:
            began = time.perf_counter()
            try:
                rows = self.search(case, prepared)
            except RuntimeError:  # hnswlib, where it found fewer than k
                rows, self.error_count = _NO_ROWS, self.error_count + 1
            self.latencies_ms.append((time.perf_counter() - began) * 1e3)
            self.answers.append(rows)

    def summarize(self, cases: list[FilterCase]) -> dict[str, Any]:
        """Of all cases; ready for the next filter."""
        found = (
            evaluate_answers(self.answers, cases, 0, K)
            | compute_percentiles(self.latencies_ms)
            | {"raised": self.error_count}
        )
        self.answers, self.latencies_ms, self.error_count = [], [], 0
        return {"way": self.name, **found}


def measure_competitors(pool: FilterPool) -> dict[str, Any]:
    """All ways under filters of several pass rates."""
    begun_with = describe_environment()
    ways, built = _make_methods(pool)
    results = []
    for rate, filters in zip(PASS_RATES, pool.make_filters("random", PASS_RATES), strict=True):
        cases = make_cases(pool, filters)
        for way, prepared in [(way, way.prepare(cases[0])) for way in ways]:
            way.run(cases[:2], prepared)  # to warm up
            way.summarize(cases[:2])
        ready = [(way, way.prepare(cases[0])) for way in ways]
        for start in range(0, len(cases), _CALLS_PER_TURN):
            for way, prepared in ready:
                way.run(cases[start : start + _CALLS_PER_TURN], prepared)
        results += [{"rate": rate, "k": K, **way.summarize(cases)} for way in ways]
    return {"facts": begun_with, "built": built, "load_after": read_load_average(), "cells": results}


def _make_methods(pool: FilterPool) -> tuple[list[SearchMethod], dict[str, Any]]:
    view = pool.snapshot
    graph, seconds = _load_or_build_graph(pool)
    effort = tune(graph, np.load(pool.directory / "tuning.npy"), [K], TARGET_RECALL).best_points[0].search_params
    built: dict[str, Any] = {"graph": {"seconds": seconds, "ef": effort.width}}

    def over_fetch(case: FilterCase, rate: float) -> Rows:
        rows = search_snapshot(view, case.to_query(0), None, min(math.ceil(K / rate), len(view))).rows
        return rows[case.filter_mask.base.contains(rows)][:K]

    ways = [
        SearchMethod(
            "ours",
            lambda case: case.filter_mask,
            lambda case, passing: search_snapshot(view, case.to_query(0), passing, K).rows,
        ),
        SearchMethod(
            "graph, bare bitmap",
            lambda case: case.filter_mask.base,
            lambda case, bitmap: _drop_missing(
                graph.search(case.vector, K, search_params=effort, allowed=bitmap).rows[0]
            ),
        ),
        SearchMethod("over-fetching", lambda case: case.filter_mask.base.count / len(view), over_fetch),
    ]
    if is_installed("hnswlib"):
        library, ef, built["hnswlib"] = _load_or_build_hnswlib(pool)

        def search_with_callback(case: FilterCase, passes: Callable[[int], bool]) -> Rows:
            return _drop_missing(library.search(case.vector, K, ef, predicate=passes)[0])

        # A list is what Python looks into fastest.
        ways.append(
            SearchMethod(
                "hnswlib, callback",
                lambda case: case.filter_mask.base.to_mask().tolist().__getitem__,
                search_with_callback,
            )
        )
    return ways, built


def _drop_missing(rows: Rows) -> Rows:
    return rows[rows >= 0]


def _load_or_build_graph(pool: FilterPool) -> tuple[HnswIndex, float | None]:
    """Built once in the folder; where it lies there, nobody knows how long that took."""
    file, seconds = pool.directory / "graph.faiss", None
    if not file.exists():
        began = time.perf_counter()
        built = HnswIndex.build(np.load(pool.directory / "items.npy", mmap_mode="r"))
        seconds = round(time.perf_counter() - began, 2)
        index_files.save_index(built, file)
    graph = index_files.load_index(file)
    if not isinstance(graph, HnswIndex):
        raise SystemExit(f"{file} holds no graph: delete it")
    return graph, seconds


def _load_or_build_hnswlib(pool: FilterPool) -> tuple[Hnswlib, int, dict[str, Any]]:
    work, library = Workload(pool.directory, (K,), TARGET_RECALL), Hnswlib()
    seconds = None if (pool.directory / library.file).exists() else round(library.build(work)["seconds"], 2)
    tuned = ann.tune(library, work, None)[str(K)]
    return library, tuned["effort"], {"seconds": seconds, "ef": tuned["effort"], "recall": tuned["recall"]}
