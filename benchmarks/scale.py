"""Ten million items from nothing to answers: build, load, memory, ANN recall and latency, filters included.

    python benchmarks/scale.py --items 10_000_000 --dim 128 --scratch /tmp/scale

Vectors are made in chunks into a file of half-precision numbers and published from there. Each stage runs in a process
of its own, so that its peak of memory is its own, and is skipped where its result lies in `results/scale-N-D.json`.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from numpy.typing import NDArray

from vecall import IndexSettings, Query, open_recaller, publish_vectors
from vecall.index.ann_recall import recall_per_query
from vecall.recall.recaller import Recaller
from vecall.release.store import Store

KS = (100, 500, 1000)
N_TUNING_QUERIES, N_TIMED_QUERIES = 500, 200  # queries
ATTRIBUTE_SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01}  # attribute: share of items where it is true
STAGES = ("build", "serve")


def main() -> None:
    options = _parse_options()
    result_file = RESULTS_DIR / f"scale-{options.items}-{options.dim}.json"
    options.scratch.mkdir(parents=True, exist_ok=True)
    result = read_json(result_file) or {"items": options.items, "dim": options.dim, "facts": describe_environment()}
    if options.stage:
        measured = {"build": _build, "serve": _serve}[options.stage](options)
        write_json(options.scratch / f"{options.stage}.json", measured)
        return
    for stage in STAGES:
        if stage in result:
            print(f"{stage}: is there already")
            continue
        before = read_load_average()
        subprocess.run([sys.executable, *sys.argv, "--stage", stage], check=True)
        result[stage] = {"load_before": before} | read_json(options.scratch / f"{stage}.json")
        write_json(result_file, result)
    _print_results(result)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vecall-scale"))
    parser.add_argument("--stage", choices=STAGES, help="this stage alone, in this process")
    return parser.parse_args()


def _build(options: argparse.Namespace) -> dict[str, Any]:
    """Make the vectors, then publish them; the first is not counted."""
    vectors_file = options.scratch / "vectors.npy"
    started = time.perf_counter()
    clusters = ClusteredVectors(options.items, options.dim)
    clusters.write_npy(vectors_file)
    made = time.perf_counter()
    publish_vectors(
        options.scratch / "store",
        make_ids(options.items),
        np.load(vectors_file, mmap_mode="r"),
        attributes=make_attributes(options.items),
        queries=clusters.make_queries(N_TUNING_QUERIES),
        index=IndexSettings(ks=KS),
    )
    manifest = Store.open(options.scratch / "store").list_releases()[0]
    return {
        "vectors_s": made - started,
        "publish_s": time.perf_counter() - made,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "files_bytes_per_item": manifest.total_bytes / options.items,
        "index": manifest.index.model_dump(mode="json"),
        "frontier": (manifest.ann or {}).get("frontier"),
    }


def make_ids(n: int) -> pl.Series:
    """Strings of 12 bytes that ascend."""
    return pl.Series("id", np.arange(n)).cast(pl.String).str.zfill(8).str.replace(r"^", "sku-")


def make_attributes(n: int) -> pl.DataFrame:
    """A flag for each share, independent of the vectors."""
    chance = np.random.default_rng(3).random(n, dtype=np.float32)
    return pl.DataFrame({name: chance < share for name, share in ATTRIBUTE_SHARES.items()})


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    before = _read_resident_bytes()
    started = time.perf_counter()
    with open_recaller(options.scratch / "store") as recaller:
        load_s = time.perf_counter() - started
        queries = ClusteredVectors(options.items, options.dim).make_queries(N_TUNING_QUERIES + N_TIMED_QUERIES)[
            N_TUNING_QUERIES:
        ]
        answers = {f"k {k}": _measure_queries(recaller, queries, k, ()) for k in KS}
        for name in ATTRIBUTE_SHARES:
            where = ({"field": name, "op": "eq", "value": True},)
            answers |= {f"k {k}, {name}": _measure_queries(recaller, queries, k, where) for k in (100, 500)}
        return {
            "load_s": load_s,
            "answers": answers,
            "resident_gib": (_read_resident_bytes() - before) / 2**30,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "ids": _measure_id_lookup(recaller),
            "load_after": read_load_average(),
        }


def _measure_queries(
    recaller: Recaller, queries: NDArray[np.float32], k: int, where: tuple[dict[str, object], ...]
) -> dict[str, Any]:
    """Latency of a whole recall, ids included, one after the other; its ANN recall."""
    view = recaller.live_index.snapshot
    asked = [Query(vector=query, k=k, where=where) for query in queries]
    first_s = _time_call(lambda: recaller.recall(asked[0]))
    answers = [recaller.recall(query) for query in asked]
    ms = 1e3 * np.array([_time_call(lambda query=query: recaller.recall(query)) for query in asked])
    passing = recaller._filter_cache.get_mask(where, view)  # noqa: SLF001 - the truth is to be of the same items
    truth = view.release.index.search_exact(queries, k, allowed=None if passing is None else passing.base).rows
    found = np.array([view.to_rows(answer.ids) for answer in answers])
    shares = recall_per_query(view.release.index, queries, found, truth)
    plan = recaller.recall(Query(vector=queries[0], k=k, where=where, explain=True)).plan
    return {
        "ann_recall": float(shares.mean()),
        "worst_percent": float(np.sort(shares)[: max(1, len(shares) // 100)].mean()),
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "first_ms": 1e3 * first_s,
        "path": plan.path if plan else None,
        "effort": plan.effort if plan else None,
    }


def _measure_id_lookup(recaller: Recaller) -> dict[str, float]:
    """500 rows to ids and back, in milliseconds; the vocabulary's arrays beyond the ids' own bytes."""
    items = recaller.live_index.snapshot.release.item_ids
    rows = np.random.default_rng(0).integers(0, len(items), 500)
    ids = items.to_ids(rows)
    to_ids = np.median([_time_call(lambda: items.to_ids(rows)) for _ in range(50)])
    to_rows = np.median([_time_call(lambda: items.to_rows(ids)) for _ in range(50)])
    own = items.to_arrays()["bytes"].nbytes
    all_bytes = sum(value.nbytes for value in vars(items).values() if isinstance(value, np.ndarray))
    return {
        "rows_to_ids_ms": 1e3 * float(to_ids),
        "ids_to_rows_ms": 1e3 * float(to_rows),
        "bytes_beyond_own": (all_bytes - own) / len(items),
    }


def _time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read_resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def _print_results(result: dict[str, Any]) -> None:
    build, serve = result["build"], result["serve"]
    print(f"{result['items']:,} x {result['dim']}, {build['index']['engine']} {build['index']['parameters']}")
    print(f"published in {build['publish_s']:.0f} s, peak {build['peak_gib']:.1f} GiB")
    print(f"{'the frontier, k':>18} {'width':>6} {'depth':>6} {'ANN recall':>10} {'±':>6} {'p50 ms':>7}")
    for point in build["frontier"]:
        recall = f"{point['recall']:10.4f} {point['recall_ci95']:6.4f}"
        print(f"{point['k']:18} {point['width']:6} {point['depth']:6} {recall} {point['p50_ms']:7.2f}")
    print(f"loaded in {serve['load_s']:.1f} s, resident {serve['resident_gib']:.2f} GiB, peak {serve['peak_gib']:.2f}")
    print(f"{'':18} {'ANN recall':>10} {'worst 1 %':>9} {'p50 ms':>7} {'p99 ms':>7}  path")
    for name, row in serve["answers"].items():
        print(
            f"{name:18} {row['ann_recall']:10.4f} {row['worst_percent']:9.3f} {row['p50_ms']:7.2f} "
            f"{row['p99_ms']:7.2f}  {row['path']}"
        )
    ids = serve["ids"]
    print(
        f"500 rows to ids {ids['rows_to_ids_ms']:.2f} ms, back {ids['ids_to_rows_ms']:.2f} ms; "
        f"{ids['bytes_beyond_own']:.1f} bytes an id beyond its own"
    )


if __name__ == "__main__":
    main()
