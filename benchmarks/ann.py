"""Compare vecall with other index libraries at equal ANN recall: build time, memory, latency of one query.

    python benchmarks/ann.py [--items 300_000 1_000_000] [--dim 128] [--k 100 500 1000] [--target 0.98]
                             [--libraries ours hnswlib ...] [--scratch DIR] [--out FILE] [--fresh | --retime]
    python benchmarks/ann.py --vectors FILE.npz        # arrays `items` [N, D] and `queries` [Q, D] of a real model

Each library is built, tuned and measured for memory in processes of its own, and its result is written at once. Then
all libraries answer other queries in one process, on one thread, library after library in each round. What the results
file holds is not measured again; with --scratch an interrupted run finds its indexes there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from harness.index.ann_libraries import GRAPH_LIBRARIES, LIBRARY_NAMES, create_library, is_installed
from harness.index.ann_steps import STEPS, compute_recall, time_round
from harness.index.workload import Workload
from harness.tables import console, print_table
from vecall.console import configure_logging

N_QUERIES = 300  # to tune with, and as many others to measure with
# Goals: vecall's value as a share of the other library's.
TARGET_RATIOS = {"clustered": 0.45, "graph is best": 1.1, "build": 0.2, "memory": 0.6}


@dataclass(frozen=True)
class AnnBenchmark:
    """Comparison of all libraries on one set of vectors.

    Attributes:
        label: key of its results.
        workload: vectors and indexes.
        results_path: the JSON file of all results.
        rounds: number of rounds of timed queries.
    """

    label: str
    workload: Workload
    results_path: Path
    rounds: int

    def run(self, library_names: list[str], *, fresh: bool, retime: bool) -> None:
        """Measure what the results lack, then print all.

        Args:
            library_names: the installed libraries to compare.
            fresh: discard earlier results.
            retime: measure latencies again.
        """
        goal = {"k": list(self.workload.ks), "target": self.workload.target}
        if fresh or self._read_results().get("wanted") != goal:
            self._write_results({"wanted": goal})
        timed = self._read_results().get("latency", {}).get("libraries", {})
        if retime or any(name not in timed for name in library_names):
            measured = [name for name in library_names if self._has_result(name) or self._measure_library(name)]
            self._write_results(self._read_results() | {"latency": self._measure_latency(measured)})
        print_results(self.label, self._read_results(), self.workload.target)

    def _read_results(self) -> dict[str, Any]:
        results: dict[str, Any] = read_json(self.results_path).get(self.label, {})
        return results

    def _write_results(self, results: dict[str, Any]) -> None:
        write_json(self.results_path, read_json(self.results_path) | {self.label: results})

    def _has_result(self, name: str) -> bool:
        """Return whether the library is in the results, and its index still in the directory."""
        index_path = self.workload.directory / create_library(name).file
        return name in self._read_results().get("libraries", {}) and index_path.exists()

    def _measure_library(self, name: str) -> bool:
        """Run all steps of a library in child processes and keep the result; return False where a step fails."""
        console.print(f"{self.label}: {name}", style="dim")
        self.workload.load_truth("tuning")
        result: dict[str, Any] = {"facts": describe_environment(), "version": version(create_library(name).package)}
        for step in STEPS:
            search_params = result["tune"][str(self.workload.ks[-1])]["effort"] if step == "weigh" else None
            command = self._build_command(step, name, search_params)
            completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if completed.returncode:
                console.print(f"{self.label}: {name} is left out: step {step} exited with {completed.returncode}")
                return False
            result[step] = json.loads(completed.stdout.splitlines()[-1])
        results = self._read_results()
        self._write_results(results | {"libraries": results.get("libraries", {}) | {name: result}})
        return True

    def _build_command(self, step: str, name: str, search_params: object) -> list[str]:
        child = [sys.executable, __file__, "--child", step, "--libraries", name]
        search = ["--search-params", json.dumps(search_params), "--target", str(self.workload.target)]
        return [*child, *search, "--scratch", str(self.workload.directory), "--k", *map(str, self.workload.ks)]

    def _measure_latency(self, names: list[str]) -> dict[str, Any]:
        """Time all libraries in this process, one query at a time."""
        results = self._read_results()["libraries"]
        environment = describe_environment()
        queries, truth = self.workload.load_queries("test"), self.workload.load_truth("test")
        libraries = {name: create_library(name) for name in names}
        for library in libraries.values():
            library.open(self.workload)
        measured: dict[str, dict[str, Any]] = {name: {str(k): {"ms": []} for k in self.workload.ks} for name in names}
        for round_index in range(self.rounds):
            console.print(f"{self.label}: round {round_index + 1} of {self.rounds}", style="dim")
            for k in self.workload.ks:
                for name, library in libraries.items():
                    answers, latencies_ms = time_round(library, queries, k, results[name]["tune"][str(k)]["effort"])
                    measured[name][str(k)]["ms"].append(latencies_ms)
                    measured[name][str(k)]["recall"] = round(compute_recall(np.array(answers), truth[:, :k]), 4)
        summaries = {
            name: {k: _summarize(rounds) for k, rounds in rounds_by_k.items()} for name, rounds_by_k in measured.items()
        }
        return {"facts": environment, "load_after": read_load_average(), "libraries": summaries}


def _summarize(rounds: dict[str, Any]) -> dict[str, Any]:
    """Compute percentiles over the queries of all rounds, so that noise of the machine hits all libraries alike."""
    p50, p99 = np.percentile(rounds["ms"], [50, 99])
    return {
        "recall": rounds["recall"],
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "rounds": [round(float(np.median(latencies_ms)), 4) for latencies_ms in rounds["ms"]],
    }


def print_results(label: str, results: dict[str, Any], target: float) -> None:
    """Print the tables of one set of vectors, and vecall's ratios to the other libraries."""
    libraries, latency = results["libraries"], results["latency"]["libraries"]
    rows = []
    for name in latency:
        library = libraries[name]
        build, memory = library["build"], library["weigh"]
        parts = [f"{build[part]:.1f}" if part in build else "" for part in ("index_seconds", "tuning_seconds")]
        sizes = [f"{memory['bytes_an_item']:.0f}", f"{memory['load_seconds']:.2f}"]
        rows.append([name, library["version"], f"{build['seconds']:.1f}", *parts, *sizes])
    columns = ["", "version", "build s", "index s", "tuning s", "bytes per item", "load s"]
    print_table(f"{label}, ANN recall {target}; load {results['latency']['facts']['load_average']}", columns, rows)
    columns = ["", "search params", "recall, tuning", "recall, test", "p50 ms", "p99 ms", "target"]
    for k in next(iter(latency.values()), {}):
        rows = []
        for name, by_k in latency.items():
            measured, tuned = by_k[k], libraries[name]["tune"][k]
            recalls = [f"{tuned['recall']:.4f}", f"{measured['recall']:.4f}"]
            times = [f"{measured['p50_ms']:.3f}", f"{measured['p99_ms']:.3f}"]
            rows.append(
                [name, str(tuned["effort"] or "scan"), *recalls, *times, "" if tuned["reached"] else "not reached"]
            )
        print_table(f"k {k}", columns, rows)
    console.print()
    for line in _format_ratios(libraries, latency):
        console.print(line)


def _format_ratios(libraries: dict[str, Any], latency: dict[str, Any]) -> Iterator[str]:
    """Format vecall's values as shares of the other libraries', with the goals."""
    if "ours" not in latency:
        return
    for k, ours in latency["ours"].items():
        graphs = {
            name: latency[name][k]["p50_ms"]
            for name in GRAPH_LIBRARIES
            if name in latency and libraries[name]["tune"][k]["reached"]
        }
        if graphs:
            best = min(graphs, key=graphs.__getitem__)
            yield (
                f"p50 at k {k}: {ours['p50_ms'] / graphs[best]:.2f} of {best}, the fastest graph; goal: "
                f"{TARGET_RATIOS['clustered']} on clustered vectors, {TARGET_RATIOS['graph is best']} where the graph "
                "is best"
            )
    if "hnswlib" not in latency:
        return
    ours, hnswlib = libraries["ours"], libraries["hnswlib"]
    build_ratio = ours["build"]["seconds"] / hnswlib["build"]["seconds"]
    index_ratio = ours["build"].get("index_seconds", ours["build"]["seconds"]) / hnswlib["build"]["seconds"]
    yield f"build: {build_ratio:.2f} of hnswlib, the index alone {index_ratio:.2f}; goal: {TARGET_RATIOS['build']}"
    memory_ratio = ours["weigh"]["bytes_an_item"] / hnswlib["weigh"]["bytes_an_item"]
    yield f"memory: {memory_ratio:.2f} of hnswlib; goal: {TARGET_RATIOS['memory']}"


def iterate_benchmarks(options: argparse.Namespace, scratch: Path) -> Iterator[AnnBenchmark]:
    """Write the vectors of each benchmark that the options name, and yield it."""
    if options.vectors:
        with np.load(options.vectors, allow_pickle=False) as file:
            items, queries = file["items"].astype(np.float16), file["queries"].astype(np.float32)
        label = f"{options.vectors.stem} {len(items)} x {items.shape[1]}"
        half = min(N_QUERIES, len(queries) // 2)
        arrays = {"items": items, "tuning": queries[:half], "test": queries[half : 2 * half]}
        yield _make_benchmark(label, options, scratch, arrays)
        return
    for n_items in options.items:
        pool = ClusteredVectors(n_items, options.dim)
        queries = pool.make_queries(2 * N_QUERIES)
        arrays = {"tuning": queries[:N_QUERIES], "test": queries[N_QUERIES:]}
        benchmark = _make_benchmark(f"clustered {n_items} x {options.dim}", options, scratch, arrays)
        pool.write_npy(benchmark.workload.directory / "items.npy")
        yield benchmark


def _make_benchmark(label: str, options: argparse.Namespace, scratch: Path, arrays: dict[str, Any]) -> AnnBenchmark:
    directory = scratch / label.replace(" ", "-")
    directory.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    return AnnBenchmark(label, Workload(directory, tuple(options.k), options.target), options.out, options.rounds)


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[300_000, 1_000_000], help="numbers of clustered items")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--vectors", type=Path, help=".npz with `items` and `queries`, instead of clustered vectors")
    parser.add_argument("--k", type=int, nargs="+", default=[100, 500, 1000], help="ascending")
    parser.add_argument("--target", type=float, default=0.98, help="mean ANN recall at each k")
    parser.add_argument("--libraries", choices=LIBRARY_NAMES, nargs="+", default=list(LIBRARY_NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="directory that keeps vectors and indexes")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "ann.json")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--retime", action="store_true", help="measure latencies again")
    # A child process runs one step of one library; --scratch is the workload's directory then.
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--search-params", type=json.loads, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run one step as a child process, or all benchmarks."""
    options = parse_options()
    configure_logging(verbose=False)
    if options.child:
        workload = Workload(options.scratch, tuple(options.k), options.target)
        library = create_library(options.libraries[0])
        print(json.dumps(STEPS[options.child](library, workload, options.search_params)))
        return
    names = [name for name in options.libraries if is_installed(name)]
    for name in options.libraries:
        if name not in names:
            console.print(f"{name} is not installed and is left out")
    with tempfile.TemporaryDirectory(prefix="ann-") as temporary_dir:
        for benchmark in iterate_benchmarks(options, options.scratch or Path(temporary_dir)):
            benchmark.run(names, fresh=options.fresh, retime=options.retime)


if __name__ == "__main__":
    main()
