"""Other ways to search under a filter, measured in turns with vecall: bare bitmap, callback, over-fetching.

Filters are random. Every method but vecall's uses the search parameters that reach the target recall without a filter.
`HnswIndex` scans exactly where its graph finds fewer than k rows; bare faiss would return fewer.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.environment import describe_environment, read_load_average
from harness.filters.grid import (
    CALLS_PER_TURN,
    TARGET_RECALL,
    FilterCase,
    FilterPool,
    evaluate_answers,
    make_cases,
)
from harness.index import ann_steps
from harness.index.ann_libraries import Hnswlib, is_installed
from harness.index.workload import Workload
from harness.timing import compute_percentiles
from vecall.arrays import Rows
from vecall.index.hnsw import HnswIndex
from vecall.index.search_params import RecallTarget
from vecall.index.tuning import tune
from vecall.recall.search import search_snapshot

PASS_RATES, K = (0.5, 0.1, 0.01), 100
_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass
class SearchMethod:
    """A way to search under a filter, and its results so far.

    Attributes:
        name: name in results.
        prepare: converts the filter of a case to what `search` takes; called once per filter, not timed.
        search: returns the rows of a case, given the prepared filter.
        error_count: searches that raised RuntimeError.
        answers: rows of each search.
        latencies_ms: milliseconds of each search.
    """

    name: str
    prepare: Callable[[FilterCase], Any]
    search: Callable[[FilterCase, Any], Rows]
    error_count: int = 0
    answers: list[Rows] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    def run(self, cases: list[FilterCase], prepared: Any) -> None:
        """Search cases one by one, and record the results."""
        for case in cases:
            start = time.perf_counter()
            try:
                rows = self.search(case, prepared)
            except RuntimeError:  # raised by hnswlib for fewer than k results
                rows, self.error_count = _NO_ROWS, self.error_count + 1
            self.latencies_ms.append((time.perf_counter() - start) * 1e3)
            self.answers.append(rows)

    def summarize(self, cases: list[FilterCase]) -> dict[str, Any]:
        """Return the quality and latency of the recorded results of `cases`, and clear them."""
        quality = evaluate_answers(self.answers, cases, 0, K)
        summary = {**quality, **compute_percentiles(self.latencies_ms), "raised": self.error_count}
        self.answers, self.latencies_ms, self.error_count = [], [], 0
        return {"way": self.name, **summary}


def measure_competitors(pool: FilterPool) -> dict[str, Any]:
    """Measure all methods under random filters of several pass rates, in turns of a few searches."""
    environment = describe_environment()
    methods, built = _make_methods(pool)
    cells = []
    for rate, filters in zip(PASS_RATES, pool.make_filters("random", PASS_RATES), strict=True):
        cases = make_cases(pool, filters)
        for method in methods:  # warm-up
            method.run(cases[:2], method.prepare(cases[0]))
            method.summarize(cases[:2])
        prepared_methods = [(method, method.prepare(cases[0])) for method in methods]
        for start in range(0, len(cases), CALLS_PER_TURN):
            for method, prepared in prepared_methods:
                method.run(cases[start : start + CALLS_PER_TURN], prepared)
        cells += [{"rate": rate, "k": K, **method.summarize(cases)} for method in methods]
    return {"facts": environment, "built": built, "load_after": read_load_average(), "cells": cells}


def _make_methods(pool: FilterPool) -> tuple[list[SearchMethod], dict[str, Any]]:
    """Return the methods, and how the indexes of those beside vecall were built."""
    snapshot = pool.snapshot
    graph, seconds = _load_or_build_graph(pool)
    tuned = tune(graph, np.load(pool.directory / "tuning.npy"), [K], RecallTarget(TARGET_RECALL, 0.0))
    search_params = tuned.best_points[0].search_params
    built: dict[str, Any] = {"graph": {"seconds": seconds, "ef": search_params.width}}

    def over_fetch(case: FilterCase, rate: float) -> Rows:
        rows = search_snapshot(snapshot, case.to_query(0), None, min(math.ceil(K / rate), len(snapshot))).rows
        return rows[case.filter_mask.matching_base_rows.contains(rows)][:K]

    methods = [
        SearchMethod(
            "ours",
            lambda case: case.filter_mask,
            lambda case, mask: search_snapshot(snapshot, case.to_query(0), mask, K).rows,
        ),
        SearchMethod(
            "graph, bare bitmap",
            lambda case: case.filter_mask.matching_base_rows,
            lambda case, bitmap: _drop_missing(
                graph.search(case.vector, K, search_params=search_params, allowed=bitmap).rows[0]
            ),
        ),
        SearchMethod(
            "over-fetching", lambda case: case.filter_mask.matching_base_rows.count / len(snapshot), over_fetch
        ),
    ]
    if is_installed("hnswlib"):
        library, ef, built["hnswlib"] = _load_or_build_hnswlib(pool)

        def search_with_callback(case: FilterCase, predicate: Callable[[int], bool]) -> Rows:
            return _drop_missing(library.search(case.vector, K, ef, predicate=predicate)[0])

        # Indexing a list is the fastest predicate that Python has.
        methods.append(
            SearchMethod(
                "hnswlib, callback",
                lambda case: case.filter_mask.matching_base_rows.to_mask().tolist().__getitem__,
                search_with_callback,
            )
        )
    return methods, built


def _drop_missing(rows: Rows) -> Rows:
    """Remove the -1 that pads an answer."""
    return rows[rows >= 0]


def _load_or_build_graph(pool: FilterPool) -> tuple[HnswIndex, float | None]:
    """Return vecall's HNSW index over the pool, and its build time in seconds: None where the directory had it."""
    path, seconds = pool.directory / "graph.faiss", None
    if not path.exists():
        start = time.perf_counter()
        graph = HnswIndex.build(np.load(pool.directory / "items.npy", mmap_mode="r"))
        seconds = round(time.perf_counter() - start, 2)
        graph.save(path)
    return HnswIndex.load(path), seconds


def _load_or_build_hnswlib(pool: FilterPool) -> tuple[Hnswlib, int, dict[str, Any]]:
    """Return hnswlib over the pool, the ef that reaches the target, and how it was built."""
    workload, library = Workload(pool.directory, (K,), TARGET_RECALL), Hnswlib()
    exists = (pool.directory / library.file).exists()
    seconds = None if exists else round(library.build(workload)["seconds"], 2)
    tuned = ann_steps.tune(library, workload, None)[str(K)]
    return library, tuned["effort"], {"seconds": seconds, "ef": tuned["effort"], "recall": tuned["recall"]}
