"""Exactly k under any filter: rows, ANN recall and latency of one query on one thread, cell by cell.

    python benchmarks/filters.py [--items 1_000_000] [--dims 64 128] [--kinds random correlated opposed beside]
                                 [--queries 100] [--scratch DIR] [--out FILE] [--fresh]

Every pass rate, exclusions (the nearest that pass) and k, through the planner; bare calls, without filter and
exclusions, are timed in between. `beside` asks others the same. Each kind of each pool is written as it is done, and
not measured again while it lies there; with --scratch vectors, releases and graphs are found again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from harness.filters.grid import (
    ATTRIBUTE_CORRELATION,
    EXCLUSION_COUNTS,
    KS,
    FilterPool,
    make_cases,
    measure_cell,
    measure_near_pass_rate,
    time_filters,
)
from harness.filters.competitors import measure_competitors
from harness.tables import console, print_table

from vecall.console import configure_logging
from vecall.index import kernels

PASS_RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001, 0.0001)
N_THEMES = 10  # that users gather around
_TARGETED_KINDS = ("random", "correlated")  # what issue 4 asks for; `opposed` is ours
_MIN_RECALL, _MIN_WORST_RECALL = 0.97, 0.85
_MAX_P50_MS = {0: 4.0, 500: 4.0, 2000: 8.0}  # by exclusions

Cells = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument(
        "--kinds",
        choices=("random", *ATTRIBUTE_CORRELATION, "beside"),
        nargs="+",
        default=["random", *ATTRIBUTE_CORRELATION, "beside"],
    )
    parser.add_argument("--queries", type=int, default=100, help="of a cell; half of them where its calls are slow")
    parser.add_argument("--scratch", type=Path, help="a folder that keeps vectors, releases and graphs")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "filters.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    asked = parser.parse_args()
    configure_logging(verbose=False)
    with tempfile.TemporaryDirectory(prefix="filters-") as passing:
        for n in asked.items:
            for dim in asked.dims:
                run_pool(ClusteredVectors(n, dim), asked, asked.scratch or Path(passing))


def run_pool(clusters: ClusteredVectors, options: argparse.Namespace, scratch: Path) -> None:
    """One pool: measure the kinds that are missing, show all."""
    label = f"{clusters.n_items} x {clusters.dim}"
    kept = read_json(options.out).get(label, {})
    missing = [kind for kind in options.kinds if options.fresh or kind not in kept]
    if missing:
        console.print(f"{label}: vectors and release", style="dim")
        kernels.compile_kernels()
        folder = scratch / label.replace(" ", "-")
        pool = FilterPool.open(clusters, folder, queries=options.queries, themes=N_THEMES)
        kept |= {"release": pool.describe(), "filters": time_filters(pool.snapshot, PASS_RATES)}
    for kind in missing:
        console.print(f"{label}: {kind}", style="dim")
        began = time.perf_counter()
        measured = measure_competitors(pool) if kind == "beside" else measure_kind(pool, kind)
        kept[kind] = measured | {"seconds": round(time.perf_counter() - began, 1)}
        write_json(options.out, read_json(options.out) | {label: kept})
    print_pool(label, kept)


def measure_kind(pool: FilterPool, kind: str) -> dict[str, Any]:
    """All cells of one kind of filter."""
    begun_with, cells = describe_environment(), []
    for rate, filters in zip(PASS_RATES, pool.make_filters(kind, PASS_RATES), strict=True):
        cases = make_cases(pool, filters)
        passed = {
            "rate": rate,
            "matches": filters[0].base.count,
            "near_pass": round(measure_near_pass_rate(pool, filters), 5),
        }
        cells += [passed | measure_cell(pool.snapshot, cases, excluded, k) for excluded in EXCLUSION_COUNTS for k in KS]
    return {"facts": begun_with, "release": pool.describe(), "load_after": read_load_average(), "cells": cells}


def print_pool(label: str, results: dict[str, Any]) -> None:
    """All that is known of a pool, for people."""
    release = results["release"]
    console.print(f"\n{label}: {release['engine']} {release['parameters']}", style="bold")
    times = [[name, f"{one['cold_ms']:.2f}", f"{one['cached_ms']:.4f}"] for name, one in results["filters"].items()]
    print_table("a filter's bitmap", ["", "made, ms", "found made, ms"], times)
    for kind in ("random", *ATTRIBUTE_CORRELATION):
        if kind in results:
            print_kind(f"{label}, {kind}", results[kind])
    if "beside" in results:
        print_competitors(f"{label}, filter random, k 100", results["beside"])
    console.print()
    for kinds, whose in ((_TARGETED_KINDS, "issue 4's"), (("opposed",), "opposed, beyond the issue")):
        cells = [one | {"kind": kind} for kind in kinds if kind in results for one in results[kind]["cells"]]
        for line in format_verdicts(cells) if cells else ():
            console.print(f"{label}, {whose}: {line}")


def print_kind(title: str, measured: dict[str, Any]) -> None:
    """One kind of filter."""
    rows = []
    for one in measured["cells"]:
        paths = " ".join(f"{path} {share:.0%}" for path, share in one["paths"].items())
        figures = [f"{one['rows']:g}", f"{one['recall']:.4f}", f"{one['worst_1_percent']:.3f}"]
        times = [f"{one[name]:.2f}" for name in ("p50_ms", "p99_ms", "bare_p50_ms", "bare_p99_ms")]
        place = [f"{one['rate']:.2%}", f"{one['near_pass']:.2%}", str(one["excluded"]), str(one["k"])]
        rows.append([*place, *figures, *times, str(one["queries"]), paths, one["effort"] or ""])
    columns = ["pass", "of near", "excluded", "k", "rows", "recall", "worst 1 %", "p50 ms", "p99"]
    title = f"{title} ({measured['seconds']:.0f} s; load {measured['facts']['load_average']})"
    print_table(title, [*columns, "bare p50", "bare p99", "asked", "path", "effort"], rows)


def print_competitors(title: str, measured: dict[str, Any]) -> None:
    """Ours and the others."""
    rows = []
    for one in measured["cells"]:
        figures = [f"{one['rows']:g}", f"{one['recall']:.4f}", f"{one['worst_1_percent']:.3f}"]
        times = [f"{one[name]:.2f}" for name in ("p50_ms", "p99_ms")]
        rows.append([f"{one['rate']:.0%}", one["way"], *figures, *times, str(one["raised"] or "")])
    print_table(f"{title}; built: {measured['built']}", _COMPETITOR_COLUMNS, rows)


_COMPETITOR_COLUMNS = ["pass", "way", "rows", "recall", "worst 1 %", "p50 ms", "p99", "failed"]


def format_verdicts(cells: Cells) -> Iterator[str]:
    """What is to be reached, and where it is not."""
    limits: dict[str, tuple[Callable[[dict[str, Any]], float], Callable[[dict[str, Any]], bool]]] = {
        "exactly min(k, matches), all of them fit": (
            lambda one: one["wrong_number"] + one["unfit"],
            lambda one: not one["wrong_number"] and not one["unfit"],
        ),
        f"ANN recall, mean >= {_MIN_RECALL}": (lambda one: one["recall"], lambda one: one["recall"] >= _MIN_RECALL),
        f"ANN recall, worst 1 % >= {_MIN_WORST_RECALL}": (
            lambda one: one["worst_1_percent"],
            lambda one: one["worst_1_percent"] >= _MIN_WORST_RECALL,
        ),
        "p50 < 4 ms, with 2,000 exclusions < 8 ms": (
            lambda one: one["p50_ms"],
            lambda one: one["p50_ms"] < _MAX_P50_MS[one["excluded"]],
        ),
    }
    for name, (value, holds) in limits.items():
        failed = [one for one in cells if not holds(one)]
        if not failed:
            empty = sum(not one["rows"] for one in cells)
            yield f"{name}: reached in all {len(cells)} cells" + (f", {empty} of them without a match" if empty else "")
            continue
        named = [f"{one['kind']} {one['rate']:.2%} E {one['excluded']} k {one['k']}: {value(one):g}" for one in failed]
        yield f"{name}: NOT reached in {len(failed)} of {len(cells)} cells ({'; '.join(named)})"


if __name__ == "__main__":
    main()
