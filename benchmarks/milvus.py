"""Measure an index on a real Milvus server: publish, search, filters, and ten minutes in which the server is killed.

    make milvus TESTS=tests/index/milvus     # installs the server into .venv-milvus, once
    python benchmarks/milvus.py [--items 1_000_000] [--dim 128] [--part publish search filters soak] [--scratch DIR]

The server is that of the tests, version 2.3.5, in a network namespace of its own. Beside vecall's figures are those
of plain calls of the client: inserting and building the same vectors, searches with the same limit and ef, in turns.
Each part is written to the results at once, and is skipped where they have it; --scratch keeps vectors and store.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.clustered_vectors import ClusteredVectors
from harness.environment import (
    REPOSITORY_DIR,
    RESULTS_DIR,
    describe_environment,
    read_json,
    read_load_average,
    write_json,
)
from harness.milvus.pool import MilvusPool
from harness.milvus.publish import measure_publish
from harness.milvus.search import measure_filters, measure_search
from harness.milvus.soak import run_soak
from harness.tables import console, print_table
from vecall.console import configure_logging

TESTS_DIR = REPOSITORY_DIR / "tests"
PYTHON_VARIABLE = "VECALL_MILVUS_SERVER_PYTHON"  # of the environment with the server
DEFAULT_PYTHON = REPOSITORY_DIR / ".venv-milvus" / "bin" / "python"
_QUERIES = 100  # per cell of the filters
_MIN_FILTERED_RECALL = 0.97


def main() -> None:
    """Enter a network namespace, start the server there, measure what the results lack, and print all."""
    options = _parse_options()
    _enter_namespace()
    configure_logging(verbose=False)
    label = f"{options.items} x {options.dim}"
    with tempfile.TemporaryDirectory(prefix="milvus-") as temporary_dir:
        _measure_missing(label, options, options.scratch or Path(temporary_dir))
    _print_results(label, read_json(options.out)[label])


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--soak-seconds", type=float, default=600)
    parser.add_argument("--kill-seconds", type=float, default=120, help="time between two kills of the server")
    parser.add_argument("--scratch", type=Path, help="directory that keeps vectors, server and store")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "milvus.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    return parser.parse_args()


def _enter_namespace() -> None:
    """Start this command again in a network namespace, where the server is reached by nobody else.

    Raises:
        SystemExit: there is no server, or namespaces are forbidden.
    """
    python = Path(os.environ.setdefault(PYTHON_VARIABLE, str(DEFAULT_PYTHON)))
    if not python.exists():
        raise SystemExit(f"{python} is missing: run `make milvus TESTS=tests/index/milvus` once")
    sys.path.insert(0, str(TESTS_DIR))
    from support.network_namespace import OWN, VARIABLE

    if VARIABLE not in os.environ:
        script = TESTS_DIR / "support" / "network_namespace.py"
        os.execv(sys.executable, [sys.executable, str(script), sys.executable, *sys.argv])
    if os.environ[VARIABLE] != OWN:
        raise SystemExit(os.environ[VARIABLE])


def _measure_missing(label: str, options: argparse.Namespace, scratch: Path) -> None:
    """Measure the parts that the results lack, and write each to them at once."""
    results = {} if options.fresh else read_json(options.out).get(label, {})
    missing = [part for part in options.part if part not in results]
    if not missing:
        return
    from support.milvus_server import TOKEN, MilvusServer

    server_dir = scratch / "server"
    server_dir.mkdir(parents=True, exist_ok=True)
    console.print("starting the server", style="dim")
    server = MilvusServer(server_dir)
    try:
        os.environ |= {"VECALL_MILVUS_URI": server.uri, "VECALL_MILVUS_TOKEN": TOKEN}
        pool = MilvusPool(ClusteredVectors(options.items, options.dim), scratch / label.replace(" ", "-"), server)
        for part in missing:
            console.print(f"{label}: {part}", style="dim")
            facts = describe_environment()
            measured = PARTS[part](pool, options)
            results |= {part: {"facts": facts} | measured | {"load_after": read_load_average()}}
            write_json(options.out, read_json(options.out) | {label: results})
    finally:
        server.kill()


def _run_soak(pool: MilvusPool, options: argparse.Namespace) -> dict[str, Any]:
    return run_soak(pool, seconds=options.soak_seconds, kill_seconds=options.kill_seconds)


PARTS: dict[str, Callable[[MilvusPool, argparse.Namespace], dict[str, Any]]] = {
    "publish": lambda pool, _: measure_publish(pool),
    "search": lambda pool, _: measure_search(pool),
    "filters": lambda pool, _: measure_filters(pool, queries=_QUERIES),
    "soak": _run_soak,
}


def _print_results(label: str, results: dict[str, Any]) -> None:
    if "publish" in results:
        _print_publish(label, results["publish"])
    if "search" in results:
        columns = ["k", "limit", "ef", "ANN recall", "worst 1 %", "p50 ms", "p99", "bare p50", "bare p99", "ratio"]
        print_table(f"{label}: search", columns, [_format_search(cell) for cell in results["search"]["cells"]])
    if "filters" in results:
        _print_filters(label, results["filters"])
    if "soak" in results:
        rows = [[name, str(value)] for name, value in results["soak"].items() if name not in ("facts", "load_after")]
        print_table(f"{label}: soak", ["", ""], rows)


def _print_publish(label: str, result: dict[str, Any]) -> None:
    bare, stages = result["bare_seconds"], result["bare_stages"]
    detail = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stages.items())
    console.print(
        f"\n{label}: published in {result['publish_seconds']:.0f} s; the server's own {bare:.0f} s ({detail}); "
        f"ratio {result['publish_seconds'] / bare:.2f}",
        soft_wrap=True,
    )


def _format_search(cell: dict[str, Any]) -> list[str]:
    times = [f"{cell[name]:.2f}" for name in ("p50_ms", "p99_ms", "bare_p50_ms", "bare_p99_ms")]
    ratio = f"{cell['p50_ms'] / cell['bare_p50_ms']:.2f}"
    recalls = [f"{cell['recall']:.4f}", f"{cell['worst_1_percent']:.3f}"]
    return [str(cell["k"]), str(cell["limit"]), str(cell["ef"]), *recalls, *times, ratio]


def _print_filters(label: str, result: dict[str, Any]) -> None:
    rows = []
    for cell in result["cells"]:
        paths = " ".join(f"{path} {share:.0%}" for path, share in cell["paths"].items())
        coordinates = [cell["kind"], f"{cell['rate']:.0%}", f"{cell['near_pass']:.0%}", str(cell["excluded"])]
        measures = [str(cell["rows"]), f"{cell['recall']:.4f}", f"{cell['worst_1_percent']:.3f}"]
        rows.append([*coordinates, str(cell["k"]), *measures, f"{cell['p50_ms']:.2f}", f"{cell['p99_ms']:.2f}", paths])
    columns = ["filter", "pass", "of near", "excluded", "k", "rows", "recall", "worst 1 %", "p50 ms", "p99", "path"]
    print_table(f"{label}: filters", columns, rows)
    cells = result["cells"]
    below = sum(cell["recall"] < _MIN_FILTERED_RECALL for cell in cells)
    wrong = sum(cell["wrong_number"] + cell["unfit"] for cell in cells)
    console.print(f"{len(cells)} cells: {below} below ANN recall {_MIN_FILTERED_RECALL}; {wrong} answers not exactly k")


if __name__ == "__main__":
    main()
