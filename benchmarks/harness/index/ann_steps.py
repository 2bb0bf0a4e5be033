"""Steps that `ann.py` runs for each library in a process of its own: build, tune, measure memory."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.environment import read_load_average, read_memory_bytes, read_peak_memory_gib
from harness.index.workload import Library, Workload
from vecall.arrays import Rows, Vectors

TIMED_QUERIES = 60  # queries that choose between parameters which reach the target
MEMORY_QUERIES = 50  # queries searched before memory is measured
WARMUP_QUERIES = 10


def build(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """Build and save the index on all cores."""
    del search_params
    seconds = {name: round(value, 2) for name, value in library.build(workload).items()}
    peak_gib = round(read_peak_memory_gib(), 2)
    return seconds | {"threads": os.cpu_count(), "peak_gib": peak_gib, "load_average": read_load_average()}


def tune(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """Find the cheapest search parameters that reach the target recall, for each k.

    Returns:
        By k as a string: `effort` (the search parameters), `recall`, `reached` and `ms`. Of several sweeps that reach
        the target the fastest counts; where none does, the one of the highest recall.
    """
    del search_params
    library.open(workload)
    queries, truth = workload.load_queries("tuning"), workload.load_truth("tuning")
    n_items = len(workload.load_half_vectors())
    best_by_k = {}
    for k in workload.ks:
        trials = []
        for sweep in library.list_param_sweeps(k, n_items):
            for params in sweep:
                recall = compute_recall(library.search(queries, k, params), truth[:, :k])
                if recall >= workload.target:
                    break
            ms = float(np.median(time_round(library, queries[:TIMED_QUERIES], k, params)[1]))
            trials.append(
                {"effort": params, "recall": round(recall, 4), "reached": recall >= workload.target, "ms": ms}
            )
        reached = [trial for trial in trials if trial["reached"]]
        best_by_k[str(k)] = (
            min(reached, key=lambda trial: trial["ms"]) if reached else max(trials, key=lambda trial: trial["recall"])
        )
    return best_by_k


def measure_memory(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """Measure the memory that the index adds to this process, the time to load it, and its size on disk."""
    queries, n_items = workload.load_queries("test")[:MEMORY_QUERIES], len(workload.load_half_vectors())
    bytes_before, start = read_memory_bytes(), time.perf_counter()
    library.load(workload)
    load_seconds = time.perf_counter() - start
    library.exercise_all_paths(queries, workload.ks[-1], search_params)
    added_bytes = read_memory_bytes() - bytes_before
    start = time.perf_counter()
    library.open(workload)  # vecall verifies digests and loads ids here
    open_seconds = time.perf_counter() - start
    return {
        "bytes_an_item": round(added_bytes / n_items, 1),
        "load_seconds": round(load_seconds, 3),
        "open_seconds": round(open_seconds, 3),
        "file_bytes_an_item": round(_count_bytes(workload.directory / library.file) / n_items, 1),
    }


# By the names that kept results have for them.
STEPS: dict[str, Callable[[Library, Workload, Any], dict[str, Any]]] = {
    "build": build,
    "tune": tune,
    "weigh": measure_memory,
}


def time_round(library: Library, queries: Vectors, k: int, search_params: Any) -> tuple[list[Rows], list[float]]:
    """Search the queries [Q, D] one at a time, after a warm-up; return the rows [k] and the milliseconds of each."""
    for query in queries[:WARMUP_QUERIES]:
        library.search(query[None], k, search_params)
    answers, latencies_ms = [], []
    for query in queries:
        start = time.perf_counter()
        rows = library.search(query[None], k, search_params)
        latencies_ms.append((time.perf_counter() - start) * 1e3)
        answers.append(rows[0])
    return answers, latencies_ms


def compute_recall(answers: Rows, truth: Rows) -> float:
    """Return the mean share of the exact rows [Q, k] that the answers [Q, k] hold."""
    return float(np.mean([np.isin(exact, rows).mean() for rows, exact in zip(answers, truth, strict=True)]))


def _count_bytes(path: Path) -> int:
    """Return the size of a file, or of all files of a directory."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
