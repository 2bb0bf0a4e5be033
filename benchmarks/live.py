"""Changes while requests are answered: writes a second, what they cost a request, and how long a replay takes.

    python benchmarks/live.py [--items 200_000] [--dim 128] [--seconds 8] [--out FILE]

One thread asks without pause; another upserts, first 1,000 at a time at 10,000 items a second, then one by one at 300 a
second. Idle times are taken right before and after each: what was written is scanned by every request until it is
compacted. Then a compaction runs in its own process while requests go on, and a
fresh recaller replays what the journal holds.
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
from vecall.console import configure_logging
from vecall.recall.recaller import Recaller
from vecall.release.release import open_release
from vecall.release.store import Store

K = 100
REPLAYED_OPERATIONS = 100_000  # operations
WRITE_RATES = {"batches of 1,000": (1000, 10_000.0), "one by one": (1, 300.0)}  # items a call, items a second
TARGET_RATIOS = {"writing": 1.5, "compacting": 2.5}  # p99 by the idle one's
_N_QUERIES = 500
_PRINTED_KEYS = (
    "idle_p50_ms",
    "idle_p99_ms",
    "p50_ms",
    "p99_ms",
    "idle_after_p50_ms",
    "idle_after_p99_ms",
    "p99_by_idle",
    "p99_by_idle_after",
)


def main() -> None:
    options = _parse_options()
    configure_logging(verbose=False)
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        pool, store = ClusteredVectors(options.items, options.dim), Path(folder) / "store"
        begun_with = describe_environment()
        _publish(pool, store, Path(folder) / "vectors.npy")
        result = {"items": options.items, "dim": options.dim, "k": K, "facts": begun_with}
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


def _publish(pool: ClusteredVectors, store: Path, vectors: Path) -> None:
    pool.write_npy(vectors)
    attributes = pl.DataFrame(
        {"shop": np.arange(pool.n_items) % 7, "title": [f"title {i}" for i in range(pool.n_items)]}
    )
    publish_vectors(
        store,
        pl.Series("id", np.arange(pool.n_items)),
        np.load(vectors, mmap_mode="r"),
        attributes=attributes,
        queries=pool.make_queries(_N_QUERIES, stream="tuning"),
        index=IndexSettings(ks=(K,)),
    )


def _measure(pool: ClusteredVectors, store: Path, seconds: float) -> dict[str, Any]:
    queries = pool.make_queries(_N_QUERIES)
    measured: dict[str, Any] = {}
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        _time_recalls(recaller, queries, 1.0)  # warm up
        for name, (size, rate) in WRITE_RATES.items():
            idle = _time_recalls(recaller, queries, seconds)
            writer = WriterThread(recaller, pool, size, rate)
            with writer:
                busy = _time_recalls(recaller, queries, seconds)
            after = _time_recalls(recaller, queries, seconds)  # what was written is scanned by each request
            measured[name] = _compare_latencies(idle, busy, after) | writer.summarize()
        idle = _time_recalls(recaller, queries, seconds)
        compaction = subprocess.Popen([sys.executable, "-m", "vecall", "compact", "--store", str(store)])
        busy = _time_recalls(recaller, queries, 600.0, should_stop=lambda: compaction.poll() is not None)
        if compaction.returncode:
            raise SystemExit(f"vecall compact ended with {compaction.returncode}")
        measured["compacting"] = _compare_latencies(idle, busy, _time_recalls(recaller, queries, seconds))
    return measured


@dataclass
class WriterThread:
    """A thread that upserts `batch_size` items a call, at so many items a second, while the `with` block runs."""

    recaller: Recaller
    pool: ClusteredVectors
    batch_size: int
    items_per_second: float
    call_seconds: list[float] = field(default_factory=list)  # seconds of each

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
        """What was written."""
        items = len(self.call_seconds) * self.batch_size
        return {
            "items_a_second": round(items / (self._stop_time - self._start_time)),
            "could_a_second": round(items / sum(self.call_seconds)),
            "call_p50_ms": _percentile_ms(self.call_seconds, 50),
        }

    def _write(self) -> None:
        rng = np.random.default_rng(0)
        vectors = self.pool.make_queries(self.batch_size, stream="written")
        while not self._stop_event.is_set():
            ids = rng.choice(self.pool.n_items, self.batch_size, replace=False).tolist()
            items = [
                {"id": one, "vector": vector, "fields": {"shop": 3, "title": "new"}}
                for one, vector in zip(ids, vectors, strict=True)
            ]
            began = time.perf_counter()
            self.recaller.upsert(items)
            self.call_seconds.append(time.perf_counter() - began)
            self._stop_event.wait(max(0.0, self.batch_size / self.items_per_second - self.call_seconds[-1]))


def _time_recalls(
    recaller: Recaller, queries: Any, seconds: float, *, should_stop: Callable[[], bool] = lambda: False
) -> list[float]:
    """Seconds of each recall, one after the other."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends and not should_stop():
        began = time.perf_counter()
        recaller.recall(Query(vector=queries[len(taken) % len(queries)], k=K))
        taken.append(time.perf_counter() - began)
    return taken


def _compare_latencies(idle: list[float], busy: list[float], after: list[float]) -> dict[str, float]:
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
    """A fresh journal of so many operations, brought onto its release."""
    vectors = pool.make_queries(1000, stream="replayed")
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        for start in range(0, REPLAYED_OPERATIONS, len(vectors)):
            ids = range(pool.n_items + start, pool.n_items + start + len(vectors))
            recaller.upsert(
                [{"id": one, "vector": vector, "fields": {}} for one, vector in zip(ids, vectors, strict=True)]
            )
    began = time.perf_counter()
    open_release(Store.open(store))
    alone = time.perf_counter() - began
    began = time.perf_counter()
    with open_recaller(store):
        whole = time.perf_counter() - began
    return {"replayed": REPLAYED_OPERATIONS, "release_seconds": round(alone, 2), "open_seconds": round(whole, 2)}


def _print_results(result: dict[str, Any]) -> None:
    rows = []
    for name in (*WRITE_RATES, "compacting"):
        one = result[name]
        rows.append(
            [
                name,
                *(f"{one[key]:.2f}" for key in _PRINTED_KEYS),
                *(str(one.get(key, "")) for key in ("items_a_second", "could_a_second", "call_p50_ms")),
            ]
        )
    columns = [
        "",
        *(key.removesuffix("_ms").replace("_", " ") for key in _PRINTED_KEYS),
        "items/s",
        "could/s",
        "call ms",
    ]
    print_table(f"{result['items']:,} x {result['dim']}, k {K}", columns, rows)
    console.print(f"to reach: {TARGET_RATIOS}; 300 calls/s one by one, 10,000 items/s in batches")
    replayed = result["open_seconds"] - result["release_seconds"]
    console.print(f"{result['replayed']:,} operations read and replayed in {replayed:.2f} s; to reach: 3")


if __name__ == "__main__":
    main()
