"""Ours beside bare libraries at equal ANN recall: build, memory, and one query's latency on one thread.

    python benchmarks/ann.py [--items 300_000 1_000_000] [--dim 128] [--k 100 500 1000] [--target 0.98]
                             [--libraries ours hnswlib ...] [--scratch DIR] [--out FILE] [--fresh | --retime]
    python benchmarks/ann.py --vectors FILE.npz        # arrays `items` [N, D] and `queries` [Q, D] of a real model

Each library is built, tuned and weighed in processes of its own, and that cell is written as soon as it is done. Then
all of them answer other queries in one process, library after library in each round. What lies in the file is not
measured again; with --scratch a run that was cut off finds its indexes there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from harness.index.ann_libraries import GRAPH_LIBRARIES, LIBRARY_NAMES, Library, Workload, create_library, is_installed
from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from harness.dssm.recall_process import read_memory_bytes
from harness.tables import console, print_table

from vecall.console import configure_logging
from vecall.index.base import Rows, Vectors

N_QUERIES = 300  # to tune with, and as many others to ask
TIMED_QUERIES = 60  # queries that choose between efforts which reach the target
MEMORY_QUERIES = 50  # queries answered before memory is measured
WARMUP_QUERIES = 10  # queries
TARGET_RATIOS = {"clustered": 0.45, "graph is best": 1.1, "build": 0.2, "memory": 0.6}  # issue 4: ours by theirs


@dataclass(frozen=True)
class AnnBenchmark:
    """One set of vectors.

    Attributes:
        label: of its results.
        workload: its vectors and indexes.
        results_path: the file of all results.
        rounds: of timed queries.
    """

    label: str
    workload: Workload
    results_path: Path
    rounds: int

    def run(self, library_names: list[str], *, fresh: bool, retime: bool) -> None:
        """Measure what is missing, show all."""
        wanted = {"k": list(self.workload.ks), "target": self.workload.target}
        if fresh or self._read_results().get("wanted") != wanted:
            self._update_results({})
            self._update_results({"wanted": wanted})
        timed = self._read_results().get("latency", {}).get("libraries", {})
        if retime or any(name not in timed for name in library_names):
            there = [name for name in library_names if self._has_result(name) or self._measure_library(name)]
            self._update_results({"latency": self._measure_latency(there)})
        print_results(self.label, self._read_results(), self.workload.target)

    def _read_results(self) -> dict[str, Any]:
        kept: dict[str, Any] = read_json(self.results_path).get(self.label, {})
        return kept

    def _update_results(self, updates: dict[str, Any]) -> None:
        """Add to what is kept; nothing is added to nothing."""
        write_json(
            self.results_path,
            read_json(self.results_path) | {self.label: self._read_results() | updates if updates else {}},
        )

    def _has_result(self, name: str) -> bool:
        return (
            name in self._read_results().get("libraries", {})
            and (self.workload.directory / create_library(name).file).exists()
        )

    def _measure_library(self, name: str) -> bool:
        """One library's cell, by fresh processes; says whether there is one."""
        console.print(f"{self.label}: {name}", style="dim")
        self.workload.load_truth("tuning")
        cell: dict[str, Any] = {"facts": describe_environment(), "version": version(create_library(name).package)}
        for step in ("build", "tune", "weigh"):
            effort = cell["tune"][str(self.workload.ks[-1])]["effort"] if step == "weigh" else None
            done = subprocess.run(
                self._build_command(step, name, effort), stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                console.print(f"{self.label}: {name} is left out, {step} ended with {done.returncode}")
                return False
            cell[step] = json.loads(done.stdout.splitlines()[-1])
        self._update_results({"libraries": self._read_results().get("libraries", {}) | {name: cell}})
        return True

    def _build_command(self, step: str, name: str, search_params: object) -> list[str]:
        ks = map(str, self.workload.ks)
        command = [
            sys.executable,
            __file__,
            "--child",
            step,
            "--libraries",
            name,
            "--effort",
            json.dumps(search_params),
        ]
        return [*command, "--scratch", str(self.workload.directory), "--target", str(self.workload.target), "--k", *ks]

    def _measure_latency(self, names: list[str]) -> dict[str, Any]:
        """All libraries in this process, one query at a time."""
        cells = self._read_results()["libraries"]
        begun_with, queries, truth = (
            describe_environment(),
            self.workload.load_queries("asked"),
            self.workload.load_truth("asked"),
        )
        libraries = {name: create_library(name) for name in names}
        for library in libraries.values():
            library.open(self.workload)
        measured: dict[str, dict[str, Any]] = {name: {str(k): {"ms": []} for k in self.workload.ks} for name in names}
        for number in range(self.rounds):
            console.print(f"{self.label}: round {number + 1} of {self.rounds}", style="dim")
            for k in self.workload.ks:
                for name, library in libraries.items():
                    rows, ms = _time_round(library, queries, k, cells[name]["tune"][str(k)]["effort"])
                    measured[name][str(k)]["ms"].append(ms)
                    measured[name][str(k)]["recall"] = round(_compute_recall(np.array(rows), truth[:, :k]), 4)
        summed = {name: {k: _summarize(one) for k, one in by_k.items()} for name, by_k in measured.items()}
        return {"facts": begun_with, "load_after": read_load_average(), "libraries": summed}


def _time_round(library: Library, queries: Vectors, k: int, search_params: Any) -> tuple[list[Rows], list[float]]:
    for query in queries[:WARMUP_QUERIES]:
        library.search(query[None], k, search_params)
    rows, ms = [], []
    for query in queries:
        began = time.perf_counter()
        found = library.search(query[None], k, search_params)
        ms.append((time.perf_counter() - began) * 1e3)
        rows.append(found[0])
    return rows, ms


def _compute_recall(answers: Rows, truth: Rows) -> float:
    return float(np.mean([np.isin(exact, rows).mean() for rows, exact in zip(answers, truth, strict=True)]))


def _summarize(one: dict[str, Any]) -> dict[str, Any]:
    """Over the queries of all rounds, so that noise hits all libraries alike."""
    p50, p99 = np.percentile(one["ms"], [50, 99])
    rounds = [round(float(np.median(ms)), 4) for ms in one["ms"]]
    return {"recall": one["recall"], "p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4), "rounds": rounds}


def build(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """A step: from vectors to a saved index, with all threads."""
    del search_params
    seconds = {name: round(value, 2) for name, value in library.build(workload).items()}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return seconds | {"threads": os.cpu_count(), "peak_gib": peak, "load_average": read_load_average()}


def tune(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """A step: for each k the least effort that reaches the target; of several, the one that answers fastest."""
    del search_params
    library.open(workload)
    queries, truth, n = (
        workload.load_queries("tuning"),
        workload.load_truth("tuning"),
        len(workload.load_half_vectors()),
    )
    chosen = {}
    for k in workload.ks:
        tried = []
        for ladder in library.list_param_sweeps(k, n):
            for rung in ladder:
                recall = _compute_recall(library.search(queries, k, rung), truth[:, :k])
                if recall >= workload.target:
                    break
            ms = float(np.median(_time_round(library, queries[:TIMED_QUERIES], k, rung)[1]))
            tried.append({"effort": rung, "recall": round(recall, 4), "reached": recall >= workload.target, "ms": ms})
        reached = [one for one in tried if one["reached"]]
        chosen[str(k)] = (
            min(reached, key=lambda one: one["ms"]) if reached else max(tried, key=lambda one: one["recall"])
        )
    return chosen


def measure_memory(library: Library, workload: Workload, search_params: Any) -> dict[str, Any]:
    """A step: what the index adds to this process once it has answered, and how long it takes to read."""
    queries, n = workload.load_queries("asked")[:MEMORY_QUERIES], len(workload.load_half_vectors())
    before, began = read_memory_bytes("VmRSS"), time.perf_counter()
    library.load(workload)
    loaded = time.perf_counter() - began
    library.exercise_all_paths(queries, workload.ks[-1], search_params)
    added = read_memory_bytes("VmRSS") - before
    began = time.perf_counter()
    library.open(workload)  # ours: verified, with ids
    opened = time.perf_counter() - began
    return {
        "bytes_an_item": round(added / n, 1),
        "load_seconds": round(loaded, 3),
        "open_seconds": round(opened, 3),
        "file_bytes_an_item": round(_count_bytes(workload.directory / library.file) / n, 1),
    }


def _count_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


STEPS = {"build": build, "tune": tune, "weigh": measure_memory}


def print_results(label: str, results: dict[str, Any], target: float) -> None:
    """One set of vectors, for people."""
    cells, latency = results["libraries"], results["latency"]["libraries"]
    rows = []
    for name in latency:
        step, weight = cells[name]["build"], cells[name]["weigh"]
        parts = [f"{step[part]:.1f}" if part in step else "" for part in ("index_seconds", "tuning_seconds")]
        size = f"{weight['bytes_an_item']:.0f}"
        rows.append(
            [name, cells[name]["version"], f"{step['seconds']:.1f}", *parts, size, f"{weight['load_seconds']:.2f}"]
        )
    columns = ["", "version", "build s", "index s", "tuning s", "bytes an item", "load s"]
    print_table(f"{label}, ANN recall {target}; load {results['latency']['facts']['load_average']}", columns, rows)
    for k in next(iter(latency.values()), {}):
        rows = []
        for name, by_k in latency.items():
            one, tuned = by_k[k], cells[name]["tune"][k]
            figures = [f"{one['recall']:.4f}", f"{one['p50_ms']:.3f}", f"{one['p99_ms']:.3f}"]
            rows.append(
                [
                    name,
                    str(tuned["effort"] or "scan"),
                    f"{tuned['recall']:.4f}",
                    *figures,
                    "" if tuned["reached"] else "not reached",
                ]
            )
        print_table(f"k {k}", ["", "effort", "recall tuned", "recall asked", "p50 ms", "p99 ms", "target"], rows)
    console.print()
    for line in _format_ratios(cells, latency):
        console.print(line)


def _format_ratios(cells: dict[str, Any], latency: dict[str, Any]) -> Iterator[str]:
    """Ours by theirs, beside what is to be reached."""
    if "ours" not in latency:
        return
    for k, ours in latency["ours"].items():
        graphs = {
            name: latency[name][k]["p50_ms"]
            for name in GRAPH_LIBRARIES
            if name in latency and cells[name]["tune"][k]["reached"]
        }
        if graphs:
            best = min(graphs, key=graphs.__getitem__)
            yield (
                f"p50 at k {k}: {ours['p50_ms'] / graphs[best]:.2f} of {best}'s, the fastest graph; to reach: "
                f"{TARGET_RATIOS['clustered']} clustered, {TARGET_RATIOS['graph is best']} where the graph is best"
            )
    if "hnswlib" not in latency:
        return
    our, their = cells["ours"], cells["hnswlib"]
    whole = our["build"]["seconds"] / their["build"]["seconds"]
    index = our["build"].get("index_seconds", our["build"]["seconds"]) / their["build"]["seconds"]
    yield f"build: {whole:.2f} of hnswlib's, the index alone {index:.2f}; to reach: {TARGET_RATIOS['build']}"
    memory = our["weigh"]["bytes_an_item"] / their["weigh"]["bytes_an_item"]
    yield f"memory: {memory:.2f} of hnswlib's; to reach: {TARGET_RATIOS['memory']}"


def iterate_benchmarks(options: argparse.Namespace, scratch: Path) -> Iterator[AnnBenchmark]:
    """One by one, their vectors written."""
    if options.vectors:
        with np.load(options.vectors, allow_pickle=False) as arrays:
            items, queries = arrays["items"].astype(np.float16), arrays["queries"].astype(np.float32)
        label = f"{options.vectors.stem} {len(items)} x {items.shape[1]}"
        half = min(N_QUERIES, len(queries) // 2)
        yield _make_benchmark(
            label, options, scratch, {"items": items, "tuning": queries[:half], "asked": queries[half : 2 * half]}
        )
        return
    for n in options.items:
        pool = ClusteredVectors(n, options.dim)
        queries = pool.make_queries(2 * N_QUERIES)
        bench = _make_benchmark(
            f"clustered {n} x {options.dim}",
            options,
            scratch,
            {"tuning": queries[:N_QUERIES], "asked": queries[N_QUERIES:]},
        )
        pool.write_npy(bench.workload.directory / "items.npy")
        yield bench


def _make_benchmark(label: str, options: argparse.Namespace, scratch: Path, arrays: dict[str, Any]) -> AnnBenchmark:
    folder = scratch / label.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return AnnBenchmark(label, Workload(folder, tuple(options.k), options.target), options.out, options.rounds)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--vectors", type=Path, help=".npz with `items` and `queries`, instead of made-up ones")
    parser.add_argument("--k", type=int, nargs="+", default=[100, 500, 1000], help="ascending")
    parser.add_argument("--target", type=float, default=0.98, help="mean ANN recall at each k")
    parser.add_argument("--libraries", choices=LIBRARY_NAMES, nargs="+", default=list(LIBRARY_NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="a folder that keeps vectors and indexes")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "ann.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--retime", action="store_true", help="take latencies again")
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)  # one step, --scratch being a work's folder
    parser.add_argument("--effort", type=json.loads, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = parse_options()
    configure_logging(verbose=False)
    if asked.child:
        work = Workload(asked.scratch, tuple(asked.k), asked.target)
        print(json.dumps(STEPS[asked.child](create_library(asked.libraries[0]), work, asked.effort)))
        return
    names = [name for name in asked.libraries if is_installed(name)]
    for name in asked.libraries:
        if name not in names:
            console.print(f"{name} is not installed, and is left out")
    with tempfile.TemporaryDirectory(prefix="ann-") as passing:
        for bench in iterate_benchmarks(asked, asked.scratch or Path(passing)):
            bench.run(names, fresh=asked.fresh, retime=asked.retime)


if __name__ == "__main__":
    main()
