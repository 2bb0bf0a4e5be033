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
from ann_libraries import Hnswlib, Work, installed
from facts import facts, load_average
from filtered_cells import TARGET, Case, Pool, cases_of, judged, percentiles

from vecall.index import index_io as index_files
from vecall.index.base import Rows
from vecall.index.hnsw import HnswIndex
from vecall.index.tuning import tune
from vecall.recall.search import search_snapshot

RATES, K = (0.5, 0.1, 0.01), 100
_IN_A_ROW = 10  # calls of one way, then as many of the next
_NONE: Rows = np.empty(0, dtype=np.int64)


@dataclass
class Way:
    """One way of answering under a filter, and what came of it.

    Attributes:
        name: for people.
        prepare: a filter made into what the way takes, once; not timed.
        answer: rows for a case.
        raised: answers that failed with RuntimeError.
        rows: the answers so far.
        ms: what they took.
    """

    name: str
    prepare: Callable[[Case], Any]
    answer: Callable[[Case, Any], Rows]
    raised: int = 0
    rows: list[Rows] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    def run(self, cases: list[Case], prepared: Any) -> None:
        """Some cases, one by one."""
        for case in cases:
            began = time.perf_counter()
            try:
                rows = self.answer(case, prepared)
            except RuntimeError:  # hnswlib, where it found fewer than k
                rows, self.raised = _NONE, self.raised + 1
            self.ms.append((time.perf_counter() - began) * 1e3)
            self.rows.append(rows)

    def result(self, cases: list[Case]) -> dict[str, Any]:
        """Of all cases; ready for the next filter."""
        found = judged(self.rows, cases, 0, K) | percentiles(self.ms) | {"raised": self.raised}
        self.rows, self.ms, self.raised = [], [], 0
        return {"way": self.name, **found}


def beside(pool: Pool) -> dict[str, Any]:
    """All ways under filters of several pass rates."""
    begun_with = facts()
    ways, built = _ways(pool)
    results = []
    for rate, filters in zip(RATES, pool.filters("random", RATES), strict=True):
        cases = cases_of(pool, filters)
        for way, prepared in [(way, way.prepare(cases[0])) for way in ways]:
            way.run(cases[:2], prepared)  # to warm up
            way.result(cases[:2])
        ready = [(way, way.prepare(cases[0])) for way in ways]
        for start in range(0, len(cases), _IN_A_ROW):
            for way, prepared in ready:
                way.run(cases[start : start + _IN_A_ROW], prepared)
        results += [{"rate": rate, "k": K, **way.result(cases)} for way in ways]
    return {"facts": begun_with, "built": built, "load_after": load_average(), "cells": results}


def _ways(pool: Pool) -> tuple[list[Way], dict[str, Any]]:
    view = pool.view
    graph, seconds = _graph(pool)
    effort = tune(graph, np.load(pool.folder / "tuning.npy"), [K], TARGET).best_points[0].search_params
    built: dict[str, Any] = {"graph": {"seconds": seconds, "ef": effort.width}}

    def over_fetched(case: Case, rate: float) -> Rows:
        rows = search_snapshot(view, case.ask(0), None, min(math.ceil(K / rate), len(view))).rows
        return rows[case.passing.base.contains(rows)][:K]

    ways = [
        Way("ours", lambda case: case.passing, lambda case, passing: search_snapshot(view, case.ask(0), passing, K).rows),
        Way(
            "graph, bare bitmap",
            lambda case: case.passing.base,
            lambda case, bitmap: _there(graph.search(case.vector, K, search_params=effort, allowed=bitmap).rows[0]),
        ),
        Way("over-fetching", lambda case: case.passing.base.count / len(view), over_fetched),
    ]
    if installed("hnswlib"):
        library, ef, built["hnswlib"] = _hnswlib(pool)

        def called_back(case: Case, passes: Callable[[int], bool]) -> Rows:
            return _there(library.search(case.vector, K, ef, passes=passes)[0])

        # A list is what Python looks into fastest.
        ways.append(Way("hnswlib, callback", lambda case: case.passing.base.to_mask().tolist().__getitem__, called_back))
    return ways, built


def _there(rows: Rows) -> Rows:
    return rows[rows >= 0]


def _graph(pool: Pool) -> tuple[HnswIndex, float | None]:
    """Built once in the folder; where it lies there, nobody knows how long that took."""
    file, seconds = pool.folder / "graph.faiss", None
    if not file.exists():
        began = time.perf_counter()
        built = HnswIndex.build(np.load(pool.folder / "items.npy", mmap_mode="r"))
        seconds = round(time.perf_counter() - began, 2)
        index_files.save_index(built, file)
    graph = index_files.load_index(file)
    if not isinstance(graph, HnswIndex):
        raise SystemExit(f"{file} holds no graph: delete it")
    return graph, seconds


def _hnswlib(pool: Pool) -> tuple[Hnswlib, int, dict[str, Any]]:
    work, library = Work(pool.folder, (K,), TARGET), Hnswlib()
    seconds = None if (pool.folder / library.file).exists() else round(library.build(work)["seconds"], 2)
    tuned = ann.tune(library, work, None)[str(K)]
    return library, tuned["effort"], {"seconds": seconds, "ef": tuned["effort"], "recall": tuned["recall"]}
