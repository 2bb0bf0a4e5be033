"""Measure live changes beside recalls: writes per second, their cost to a recall, compaction, and replay.

    python benchmarks/live.py [--items 200_000] [--dim 128] [--seconds 8] [--out FILE]

One thread recalls without pause while another upserts: first 1,000 items per call at 10,000 items per second, then
single items at 300 per second. Idle latencies are measured right before and after each, since every recall scans the
upserted items until they are compacted. Then a compaction runs in its own process while recalls go on, and a new
recaller replays the operations of the journal.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_load_average, write_json
from harness.tables import console, print_table
from vecall import IndexSettings, Query, open_recaller, publish_vectors
from vecall.arrays import Vectors
from vecall.console import configure_logging
from vecall.recall.recaller import Recaller
from vecall.release.release import open_release
from vecall.release.store import Store

K = 100
REPLAYED_OPERATIONS = 100_000
WRITE_RATES = {"batches of 1,000": (1000, 10_000.0), "one by one": (1, 300.0)}  # items per call, items per second
TARGET_RATIOS = {"writing": 1.5, "compacting": 2.5}  # goals: p99 as a multiple of the idle p99
TARGET_REPLAY_SECONDS = 3
_N_QUERIES = 500
_COMPACTION_TIMEOUT_SECONDS = 600.0
_LATENCY_COLUMNS = {
    "idle_p50_ms": "idle p50",
    "idle_p99_ms": "idle p99",
    "p50_ms": "p50",
    "p99_ms": "p99",
    "idle_after_p50_ms": "after p50",
    "idle_after_p99_ms": "after p99",
    "p99_by_idle": "p99/idle",
    "p99_by_idle_after": "p99/after",
}
_WRITE_COLUMNS = {"items_a_second": "items/s", "could_a_second": "max items/s", "call_p50_ms": "call ms"}


def main() -> None:
    """Publish a pool, measure, write and print the result."""
    options = _parse_options()
    configure_logging(verbose=False)
    with tempfile.TemporaryDirectory(prefix="live-") as directory:
        pool, store = ClusteredVectors(options.items, options.dim), Path(directory) / "store"
        environment = describe_environment()
        _publish(pool, store, Path(directory) / "vectors.npy")
        result = {"items": options.items, "dim": options.dim, "k": K, "facts": environment}
        result |= _measure(pool, store, options.seconds)
        result |= _measure_replay(pool, store)
    write_json(options.out, result | {"load_after": read_load_average()})
    _print_results(result)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "live.json")
    return parser.parse_args()


def _publish(pool: ClusteredVectors, store: Path, vectors_path: Path) -> None:
    pool.write_npy(vectors_path)
    attributes = pl.DataFrame(
        {"shop": np.arange(pool.n_items) % 7, "title": [f"title {i}" for i in range(pool.n_items)]}
    )
    publish_vectors(
        store,
        pl.Series("id", np.arange(pool.n_items)),
        np.load(vectors_path, mmap_mode="r"),
        attributes=attributes,
        queries=pool.make_queries(_N_QUERIES, stream="tuning"),
        index=IndexSettings(ks=(K,)),
    )


def _measure(pool: ClusteredVectors, store: Path, seconds: float) -> dict[str, Any]:
    """Measure recalls beside writes, then beside a compaction."""
    queries = pool.make_queries(_N_QUERIES)
    results: dict[str, Any] = {}
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        _time_recalls(recaller, queries, 1.0)  # warm-up
        for name, (batch_size, items_per_second) in WRITE_RATES.items():
            idle = _time_recalls(recaller, queries, seconds)
            writer = WriterThread(recaller, pool, batch_size, items_per_second)
            with writer:
                busy = _time_recalls(recaller, queries, seconds)
            after = _time_recalls(recaller, queries, seconds)  # scans the upserted items, as `busy` does
            results[name] = _compare_latencies(idle, busy, after) | writer.summarize()
        idle = _time_recalls(recaller, queries, seconds)
        compaction = subprocess.Popen([sys.executable, "-m", "vecall", "compact", "--store", str(store)])
        busy = _time_recalls(
            recaller, queries, _COMPACTION_TIMEOUT_SECONDS, should_stop=lambda: compaction.poll() is not None
        )
        if compaction.returncode:
            raise SystemExit(f"`vecall compact` exited with {compaction.returncode}: see its output above")
        results["compacting"] = _compare_latencies(idle, busy, _time_recalls(recaller, queries, seconds))
    return results


@dataclass
class WriterThread:
    """Thread that upserts existing items while the `with` block runs.

    Attributes:
        recaller: writable.
        pool: source of ids and vectors.
        batch_size: items per call.
        items_per_second: rate of writing.
        call_seconds: duration of each call so far.
    """

    recaller: Recaller
    pool: ClusteredVectors
    batch_size: int
    items_per_second: float
    call_seconds: list[float] = field(default_factory=list)

    def __enter__(self) -> None:
        self._stop_event = threading.Event()
        self._start_time = time.perf_counter()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self._thread.join()
        self._stop_time = time.perf_counter()

    def summarize(self) -> dict[str, float]:
        """Return the items per second, those without pauses between calls, and the median call's milliseconds."""
        n_items = len(self.call_seconds) * self.batch_size
        return {
            "items_a_second": round(n_items / (self._stop_time - self._start_time)),
            "could_a_second": round(n_items / sum(self.call_seconds)),
            "call_p50_ms": _percentile_ms(self.call_seconds, 50),
        }

    def _write(self) -> None:
        rng = np.random.default_rng(0)
        vectors = self.pool.make_queries(self.batch_size, stream="written")
        while not self._stop_event.is_set():
            ids = rng.choice(self.pool.n_items, self.batch_size, replace=False).tolist()
            items = [
                {"id": item_id, "vector": vector, "fields": {"shop": 3, "title": "new"}}
                for item_id, vector in zip(ids, vectors, strict=True)
            ]
            start = time.perf_counter()
            self.recaller.upsert(items)
            self.call_seconds.append(time.perf_counter() - start)
            self._stop_event.wait(max(0.0, self.batch_size / self.items_per_second - self.call_seconds[-1]))


def _time_recalls(
    recaller: Recaller, queries: Vectors, seconds: float, *, should_stop: Callable[[], bool] = lambda: False
) -> list[float]:
    """Recall one query after another, for some seconds or until `should_stop()`; return the seconds of each."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline and not should_stop():
        start = time.perf_counter()
        recaller.recall(Query(vector=queries[len(latencies) % len(queries)], k=K))
        latencies.append(time.perf_counter() - start)
    return latencies


def _compare_latencies(idle: list[float], busy: list[float], after: list[float]) -> dict[str, float]:
    """Compare latencies under load with those before and after it."""
    return {
        "idle_p50_ms": _percentile_ms(idle, 50),
        "idle_p99_ms": _percentile_ms(idle, 99),
        "p50_ms": _percentile_ms(busy, 50),
        "p99_ms": _percentile_ms(busy, 99),
        "idle_after_p50_ms": _percentile_ms(after, 50),
        "idle_after_p99_ms": _percentile_ms(after, 99),
        "p99_by_idle": round(_percentile_ms(busy, 99) / _percentile_ms(idle, 99), 2),
        "p99_by_idle_after": round(_percentile_ms(busy, 99) / _percentile_ms(after, 99), 2),
        "requests": len(busy),
    }


def _percentile_ms(seconds: list[float], percent: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percent)), 3)


def _measure_replay(pool: ClusteredVectors, store: Path) -> dict[str, float]:
    """Measure opening a store whose journal holds REPLAYED_OPERATIONS, and opening its release alone."""
    vectors = pool.make_queries(1000, stream="replayed")
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        for start_id in range(pool.n_items, pool.n_items + REPLAYED_OPERATIONS, len(vectors)):
            items = [{"id": start_id + i, "vector": vector, "fields": {}} for i, vector in enumerate(vectors)]
            recaller.upsert(items)
    start = time.perf_counter()
    open_release(Store.open(store))
    release_seconds = time.perf_counter() - start
    start = time.perf_counter()
    with open_recaller(store):
        open_seconds = time.perf_counter() - start
    return {
        "replayed": REPLAYED_OPERATIONS,
        "release_seconds": round(release_seconds, 2),
        "open_seconds": round(open_seconds, 2),
    }


def _print_results(result: dict[str, Any]) -> None:
    rows = []
    for name in (*WRITE_RATES, "compacting"):
        measured = result[name]
        latencies = [f"{measured[key]:.2f}" for key in _LATENCY_COLUMNS]
        rows.append([name, *latencies, *(str(measured.get(key, "")) for key in _WRITE_COLUMNS)])
    columns = ["ms", *_LATENCY_COLUMNS.values(), *_WRITE_COLUMNS.values()]
    print_table(f"{result['items']:,} x {result['dim']}, k {K}", columns, rows)
    goals = ", ".join(f"{name} {ratio}" for name, ratio in TARGET_RATIOS.items())
    console.print(f"goals, p99 by idle: {goals}; 300 calls/s one by one, 10,000 items/s in batches")
    replay_seconds = result["open_seconds"] - result["release_seconds"]
    console.print(
        f"{result['replayed']:,} operations read and replayed in {replay_seconds:.2f} s; goal: {TARGET_REPLAY_SECONDS}"
    )


if __name__ == "__main__":
    main()
