"""Measure filtered search: latency, ANN recall and validity of results in every cell of a grid.

    python benchmarks/filters.py [--items 1_000_000] [--dims 64 128] [--kinds random correlated opposed competitors]
                                 [--queries 100] [--scratch DIR] [--out FILE] [--fresh]

A cell is a pass rate, a number of exclusions (the best rows that pass) and a k. Queries go through the planner, one by
one; searches without filter and exclusions are timed in between. The kinds say how a filter relates to the queries:
`random` not at all, `correlated` prefers items near the query's theme, `opposed` items far from it. `competitors`
compares other ways to search under random filters. Each kind of each pool is written as soon as it is done, and what
the results file holds is not measured again; --scratch keeps vectors, releases and graphs.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from harness.filters.competitors import measure_competitors
from harness.filters.grid import (
    ATTRIBUTE_CORRELATION,
    EXCLUSION_COUNTS,
    REGION_KINDS,
    FilterPool,
    measure_cells,
    time_filters,
)
from harness.tables import console, print_table
from vecall.console import configure_logging
from vecall.index import kernels

PASS_RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001, 0.0001)
N_THEMES = 10  # themes that queries are drawn from
_FILTER_KINDS = ("random", *ATTRIBUTE_CORRELATION, *REGION_KINDS)
_KINDS = (*_FILTER_KINDS, "competitors")
_MIN_RECALL, _MIN_WORST_RECALL = 0.97, 0.85
_MAX_P50_MS = {0: 4.0, 500: 4.0, 2000: 8.0}  # by number of exclusions
_COMPETITOR_COLUMNS = ["pass", "method", "rows", "recall", "worst 1 %", "p50 ms", "p99", "failed"]

Cell = dict[str, Any]


def main() -> None:
    """Measure and print every pool."""
    options = _parse_options()
    configure_logging(verbose=False)
    with tempfile.TemporaryDirectory(prefix="filters-") as temporary_dir:
        for n_items in options.items:
            for dim in options.dims:
                run_pool(ClusteredVectors(n_items, dim), options, options.scratch or Path(temporary_dir))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--kinds", choices=_KINDS, nargs="+", default=list(_KINDS))
    parser.add_argument("--queries", type=int, default=100, help="per cell; slow cells use half of them")
    parser.add_argument("--scratch", type=Path, help="directory that keeps vectors, releases and graphs")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "filters.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    return parser.parse_args()


def run_pool(clusters: ClusteredVectors, options: argparse.Namespace, scratch: Path) -> None:
    """Measure the kinds that the results of a pool lack, then print all."""
    label = f"{clusters.n_items} x {clusters.dim}"
    results = read_json(options.out).get(label, {})
    missing = [kind for kind in options.kinds if options.fresh or kind not in results]
    if missing:
        console.print(f"{label}: vectors and release", style="dim")
        kernels.compile_kernels()
        directory = scratch / label.replace(" ", "-")
        pool = FilterPool.open(clusters, directory, queries=options.queries, themes=N_THEMES)
        results |= {"release": pool.describe(), "filters": time_filters(pool.snapshot, PASS_RATES)}
    for kind in missing:
        console.print(f"{label}: {kind}", style="dim")
        start = time.perf_counter()
        measured = measure_competitors(pool) if kind == "competitors" else measure_kind(pool, kind)
        results[kind] = measured | {"seconds": round(time.perf_counter() - start, 1)}
        write_json(options.out, read_json(options.out) | {label: results})
    print_pool(label, results)


def measure_kind(pool: FilterPool, kind: str) -> dict[str, Any]:
    """Measure all cells of a kind of filter."""
    environment, cells = describe_environment(), measure_cells(pool, kind, PASS_RATES, EXCLUSION_COUNTS)
    return {"facts": environment, "release": pool.describe(), "load_after": read_load_average(), "cells": cells}


def print_pool(label: str, results: dict[str, Any]) -> None:
    """Print all results of a pool."""
    release = results["release"]
    console.print(f"\n{label}: {release['engine']} {release['parameters']}", style="bold")
    times = [[name, f"{ms['cold_ms']:.2f}", f"{ms['cached_ms']:.4f}"] for name, ms in results["filters"].items()]
    print_table("bitmap of a filter", ["", "evaluated, ms", "cached, ms"], times)
    for kind in _FILTER_KINDS:
        if kind in results:
            print_kind(f"{label}, {kind}", results[kind])
    if "competitors" in results:
        print_competitors(f"{label}, random filters, k 100", results["competitors"])
    console.print()
    cells = [cell | {"kind": kind} for kind in _FILTER_KINDS if kind in results for cell in results[kind]["cells"]]
    for line in format_verdicts(cells) if cells else ():
        console.print(f"{label}: {line}")


def print_kind(title: str, result: dict[str, Any]) -> None:
    """Print the cells of a kind of filter."""
    rows = []
    for cell in result["cells"]:
        paths = " ".join(f"{path} {share:.0%}" for path, share in cell["paths"].items())
        coordinates = [f"{cell['rate']:.2%}", f"{cell['near_pass']:.2%}", str(cell["excluded"]), str(cell["k"])]
        times = [f"{cell[name]:.2f}" for name in ("bare_p50_ms", "bare_p99_ms")]
        rows.append([*coordinates, *_format_measures(cell), *times, str(cell["queries"]), paths, cell["effort"] or ""])
    columns = ["pass", "of near", "excluded", "k", "rows", "recall", "worst 1 %", "p50 ms", "p99"]
    columns += ["bare p50", "bare p99", "queries", "path", "search params"]
    title = f"{title} ({result['seconds']:.0f} s; load {result['facts']['load_average']})"
    print_table(title, columns, rows)


def print_competitors(title: str, result: dict[str, Any]) -> None:
    """Print vecall and the other methods by pass rate."""
    rows = [
        [f"{cell['rate']:.0%}", cell["way"], *_format_measures(cell), str(cell["raised"] or "")]
        for cell in result["cells"]
    ]
    print_table(f"{title}; built: {result['built']}", _COMPETITOR_COLUMNS, rows, align_left=2)


def _format_measures(cell: Cell) -> list[str]:
    """Format rows, recall, worst recall, p50 and p99."""
    quality = [f"{cell['rows']:g}", f"{cell['recall']:.4f}", f"{cell['worst_1_percent']:.3f}"]
    return [*quality, f"{cell['p50_ms']:.2f}", f"{cell['p99_ms']:.2f}"]


def format_verdicts(cells: list[Cell]) -> Iterator[str]:
    """Format each goal with the cells that miss it."""
    goals: dict[str, tuple[Callable[[Cell], float], Callable[[Cell], bool]]] = {
        "exactly min(k, matches) rows, all valid": (
            lambda cell: cell["wrong_number"] + cell["unfit"],
            lambda cell: not cell["wrong_number"] and not cell["unfit"],
        ),
        f"ANN recall, mean >= {_MIN_RECALL}": (lambda cell: cell["recall"], lambda cell: cell["recall"] >= _MIN_RECALL),
        f"ANN recall, worst 1 % >= {_MIN_WORST_RECALL}": (
            lambda cell: cell["worst_1_percent"],
            lambda cell: cell["worst_1_percent"] >= _MIN_WORST_RECALL,
        ),
        "p50 < 4 ms, with 2,000 exclusions < 8 ms": (
            lambda cell: cell["p50_ms"],
            lambda cell: cell["p50_ms"] < _MAX_P50_MS[cell["excluded"]],
        ),
    }
    for name, (get_value, is_reached) in goals.items():
        failed = [cell for cell in cells if not is_reached(cell)]
        if not failed:
            empty = sum(not cell["rows"] for cell in cells)
            suffix = f", {empty} of them without a match" if empty else ""
            yield f"{name}: reached in all {len(cells)} cells{suffix}"
            continue
        misses = [
            f"{cell['kind']} {cell['rate']:.2%} E {cell['excluded']} k {cell['k']}: {get_value(cell):g}"
            for cell in failed
        ]
        yield f"{name}: NOT reached in {len(failed)} of {len(cells)} cells ({'; '.join(misses)})"


if __name__ == "__main__":
    main()
