"""Measure ten million items end to end: publish, load, memory, ANN recall and latency, with and without filters.

    python benchmarks/scale.py --items 10_000_000 --dim 128 --scratch /tmp/scale

Vectors are generated in blocks into a half-precision file and published from there. Each stage runs in a process of its
own, so that its peak memory is its own, and is skipped where `results/scale-N-D.json` holds its result.
"""

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.clustered_vectors import ClusteredVectors
from harness.environment import (
    RESULTS_DIR,
    describe_environment,
    read_json,
    read_load_average,
    read_memory_bytes,
    read_peak_memory_gib,
    write_json,
)
from harness.timing import time_ms
from vecall import IndexSettings, Query, open_recaller, publish_vectors
from vecall.arrays import Vectors
from vecall.index.ann_recall import recall_per_query
from vecall.recall.recaller import Recaller
from vecall.release.store import Store

KS = (100, 500, 1000)
FILTERED_KS = (100, 500)
N_TUNING_QUERIES, N_TIMED_QUERIES = 500, 200
ATTRIBUTE_SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01}  # attribute: share of items where it is true
STAGES = ("build", "serve")


def main() -> None:
    """Run one stage as a child process, or all that the results lack."""
    options = _parse_options()
    results_path = RESULTS_DIR / f"scale-{options.items}-{options.dim}.json"
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.stage:
        measured = {"build": _build, "serve": _serve}[options.stage](options)
        write_json(options.scratch / f"{options.stage}.json", measured)
        return
    results = read_json(results_path) or {"items": options.items, "dim": options.dim, "facts": describe_environment()}
    for stage in STAGES:
        if stage in results:
            print(f"{stage}: already in {results_path.name}")
            continue
        load_before = read_load_average()
        subprocess.run([sys.executable, *sys.argv, "--stage", stage], check=True)
        results[stage] = {"load_before": load_before} | read_json(options.scratch / f"{stage}.json")
        write_json(results_path, results)
    _print_results(results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vecall-scale"))
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone, in this process")
    return parser.parse_args()


def _build(options: argparse.Namespace) -> dict[str, Any]:
    """Generate the vectors and publish them, timed separately."""
    vectors_path = options.scratch / "vectors.npy"
    start = time.perf_counter()
    clusters = ClusteredVectors(options.items, options.dim)
    clusters.write_npy(vectors_path)
    publish_start = time.perf_counter()
    publish_vectors(
        options.scratch / "store",
        make_ids(options.items),
        np.load(vectors_path, mmap_mode="r"),
        attributes=make_attributes(options.items),
        queries=clusters.make_queries(N_TUNING_QUERIES),
        index=IndexSettings(ks=KS),
    )
    manifest = Store.open(options.scratch / "store").list_releases()[0]
    return {
        "vectors_s": publish_start - start,
        "publish_s": time.perf_counter() - publish_start,
        "peak_gib": read_peak_memory_gib(),
        "files_bytes_per_item": manifest.total_bytes / options.items,
        "index": manifest.index.model_dump(mode="json"),
        "frontier": (manifest.ann or {}).get("frontier"),
    }


def make_ids(n_items: int) -> pl.Series:
    """Return ascending string ids of 12 bytes."""
    return pl.Series("id", np.arange(n_items)).cast(pl.String).str.zfill(8).str.replace(r"^", "sku-")


def make_attributes(n_items: int) -> pl.DataFrame:
    """Return a boolean column per share, independent of the vectors."""
    values = np.random.default_rng(3).random(n_items, dtype=np.float32)
    return pl.DataFrame({name: values < share for name, share in ATTRIBUTE_SHARES.items()})


def _serve(options: argparse.Namespace) -> dict[str, Any]:
    """Open the store and measure recalls, memory and id lookups."""
    bytes_before = read_memory_bytes()
    start = time.perf_counter()
    with open_recaller(options.scratch / "store") as recaller:
        load_s = time.perf_counter() - start
        clusters = ClusteredVectors(options.items, options.dim)
        queries = clusters.make_queries(N_TUNING_QUERIES + N_TIMED_QUERIES)[N_TUNING_QUERIES:]  # not tuned on
        answers = {f"k {k}": _measure_queries(recaller, queries, k, ()) for k in KS}
        for name in ATTRIBUTE_SHARES:
            where = ({"field": name, "op": "eq", "value": True},)
            answers |= {f"k {k}, {name}": _measure_queries(recaller, queries, k, where) for k in FILTERED_KS}
        return {
            "load_s": load_s,
            "answers": answers,
            "resident_gib": (read_memory_bytes() - bytes_before) / 2**30,
            "peak_gib": read_peak_memory_gib(),
            "ids": _measure_id_lookup(recaller),
            "load_after": read_load_average(),
        }


def _measure_queries(
    recaller: Recaller, vectors: Vectors, k: int, where: tuple[dict[str, object], ...]
) -> dict[str, Any]:
    """Measure latency and ANN recall of whole recalls, one after another.

    Args:
        recaller: of the release.
        vectors: [Q, D] queries.
        k: number of results.
        where: filter; empty for none.
    """
    snapshot = recaller.live_index.snapshot
    queries = [Query(vector=vector, k=k, where=where) for vector in vectors]
    first_ms = time_ms(partial(recaller.recall, queries[0]))
    answers = [recaller.recall(query) for query in queries]
    latencies_ms = [time_ms(partial(recaller.recall, query)) for query in queries]
    mask = recaller._filter_cache.get_mask(where, snapshot)  # noqa: SLF001 - the exact result needs the same items
    stored = snapshot.release.vectors
    truth = stored.search_exact(vectors, k, allowed=None if mask is None else mask.matching_base_rows).rows
    found = np.array([snapshot.to_rows(answer.ids) for answer in answers])
    recalls = recall_per_query(stored, vectors, found, truth)
    plan = recaller.recall(Query(vector=vectors[0], k=k, where=where, explain=True)).plan
    return {
        "ann_recall": float(recalls.mean()),
        "worst_percent": float(np.sort(recalls)[: max(1, len(recalls) // 100)].mean()),
        "p50_ms": float(np.percentile(latencies_ms, 50)),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
        "first_ms": first_ms,
        "path": plan.path if plan else None,
        "effort": plan.effort if plan else None,
    }


def _measure_id_lookup(recaller: Recaller) -> dict[str, float]:
    """Measure the conversion of 500 rows to ids and back, and the bytes per id beyond the ids' own."""
    id_map = recaller.live_index.snapshot.release.item_ids
    rows = np.random.default_rng(0).integers(0, len(id_map), 500)
    ids = id_map.to_ids(rows)
    to_ids_ms = [time_ms(partial(id_map.to_ids, rows)) for _ in range(50)]
    to_rows_ms = [time_ms(partial(id_map.to_rows, ids)) for _ in range(50)]
    own_bytes = id_map.to_arrays()["bytes"].nbytes
    all_bytes = sum(value.nbytes for value in vars(id_map).values() if isinstance(value, np.ndarray))
    return {
        "rows_to_ids_ms": float(np.median(to_ids_ms)),
        "ids_to_rows_ms": float(np.median(to_rows_ms)),
        "bytes_beyond_own": (all_bytes - own_bytes) / len(id_map),
    }


def _print_results(results: dict[str, Any]) -> None:
    build, serve = results["build"], results["serve"]
    print(f"{results['items']:,} x {results['dim']}, {build['index']['engine']} {build['index']['parameters']}")
    print(f"published in {build['publish_s']:.0f} s, peak {build['peak_gib']:.1f} GiB")
    print(f"{'tuning trials, k':>18} {'width':>6} {'rerank':>6} {'ANN recall':>10} {'±':>6} {'p50 ms':>7}")
    for point in build["frontier"]:
        recall = f"{point['recall']:10.4f} {point['recall_ci95']:6.4f}"
        print(f"{point['k']:18} {point['width']:6} {point['rerank_depth']:6} {recall} {point['p50_ms']:7.2f}")
    print(f"loaded in {serve['load_s']:.1f} s, resident {serve['resident_gib']:.2f} GiB, peak {serve['peak_gib']:.2f}")
    print(f"{'':18} {'ANN recall':>10} {'worst 1 %':>9} {'p50 ms':>7} {'p99 ms':>7}  path")
    for name, answer in serve["answers"].items():
        print(
            f"{name:18} {answer['ann_recall']:10.4f} {answer['worst_percent']:9.3f} {answer['p50_ms']:7.2f} "
            f"{answer['p99_ms']:7.2f}  {answer['path']}"
        )
    ids = serve["ids"]
    print(
        f"500 rows to ids {ids['rows_to_ids_ms']:.2f} ms, back {ids['ids_to_rows_ms']:.2f} ms; "
        f"{ids['bytes_beyond_own']:.1f} bytes per id beyond its own"
    )


if __name__ == "__main__":
    main()
