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
from clustered import Clusters
from facts import RESULTS, facts, load_average, write_json
from tables import console, show

from vecall import IndexSettings, Query, open_recaller, publish_vectors
from vecall.console import quiet_libraries
from vecall.recall.recaller import Recaller
from vecall.release.release import open_release
from vecall.release.store import Store

K = 100
REPLAYED = 100_000  # operations
RATES = {"batches of 1,000": (1000, 10_000.0), "one by one": (1, 300.0)}  # items a call, items a second
REACH = {"writing": 1.5, "compacting": 2.5}  # p99 by the idle one's
_QUERIES = 500
_SHOWN = (
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
    options = _options()
    quiet_libraries(verbose=False)
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        pool, store = Clusters(options.items, options.dim), Path(folder) / "store"
        begun_with = facts()
        _publish(pool, store, Path(folder) / "vectors.npy")
        result = {"items": options.items, "dim": options.dim, "k": K, "facts": begun_with}
        result |= _measure(pool, store, options.seconds)
        result |= _replay(pool, store)
    write_json(options.out, result | {"load_after": load_average()})
    _show(result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS / "live.json")
    return parser.parse_args()


def _publish(pool: Clusters, store: Path, vectors: Path) -> None:
    pool.fill(vectors)
    attributes = pl.DataFrame({"shop": np.arange(pool.n) % 7, "title": [f"title {i}" for i in range(pool.n)]})
    publish_vectors(
        store,
        pl.Series("id", np.arange(pool.n)),
        np.load(vectors, mmap_mode="r"),
        attributes=attributes,
        queries=pool.queries(_QUERIES, who="tuning"),
        index=IndexSettings(ks=(K,)),
    )


def _measure(pool: Clusters, store: Path, seconds: float) -> dict[str, Any]:
    queries = pool.queries(_QUERIES)
    measured: dict[str, Any] = {}
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        _asked(recaller, queries, 1.0)  # warm up
        for name, (size, rate) in RATES.items():
            idle = _asked(recaller, queries, seconds)
            writer = Writer(recaller, pool, size, rate)
            with writer:
                busy = _asked(recaller, queries, seconds)
            after = _asked(recaller, queries, seconds)  # what was written is scanned by each request
            measured[name] = _latencies(idle, busy, after) | writer.figures()
        idle = _asked(recaller, queries, seconds)
        compaction = subprocess.Popen([sys.executable, "-m", "vecall", "compact", "--store", str(store)])
        busy = _asked(recaller, queries, 600.0, until=lambda: compaction.poll() is not None)
        if compaction.returncode:
            raise SystemExit(f"vecall compact ended with {compaction.returncode}")
        measured["compacting"] = _latencies(idle, busy, _asked(recaller, queries, seconds))
    return measured


@dataclass
class Writer:
    """A thread that upserts `size` items a call, at so many items a second, while the `with` block runs."""

    recaller: Recaller
    pool: Clusters
    size: int
    rate: float
    calls: list[float] = field(default_factory=list)  # seconds of each

    def __enter__(self) -> None:
        self._ends = threading.Event()
        self._began = time.perf_counter()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._ended = time.perf_counter()

    def figures(self) -> dict[str, float]:
        """What was written."""
        items = len(self.calls) * self.size
        return {
            "items_a_second": round(items / (self._ended - self._began)),
            "could_a_second": round(items / sum(self.calls)),
            "call_p50_ms": _percentile(self.calls, 50),
        }

    def _write(self) -> None:
        rng = np.random.default_rng(0)
        vectors = self.pool.queries(self.size, who="written")
        while not self._ends.is_set():
            ids = rng.choice(self.pool.n, self.size, replace=False).tolist()
            items = [
                {"id": one, "vector": vector, "fields": {"shop": 3, "title": "new"}}
                for one, vector in zip(ids, vectors, strict=True)
            ]
            began = time.perf_counter()
            self.recaller.upsert(items)
            self.calls.append(time.perf_counter() - began)
            self._ends.wait(max(0.0, self.size / self.rate - self.calls[-1]))


def _asked(
    recaller: Recaller, queries: Any, seconds: float, *, until: Callable[[], bool] = lambda: False
) -> list[float]:
    """Seconds of each recall, one after the other."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends and not until():
        began = time.perf_counter()
        recaller.recall(Query(vector=queries[len(taken) % len(queries)], k=K))
        taken.append(time.perf_counter() - began)
    return taken


def _latencies(idle: list[float], busy: list[float], after: list[float]) -> dict[str, float]:
    return {
        "idle_p50_ms": _percentile(idle, 50),
        "idle_p99_ms": _percentile(idle, 99),
        "p50_ms": _percentile(busy, 50),
        "p99_ms": _percentile(busy, 99),
        "idle_after_p50_ms": _percentile(after, 50),
        "idle_after_p99_ms": _percentile(after, 99),
        "p99_by_idle": round(_percentile(busy, 99) / _percentile(idle, 99), 2),
        "p99_by_idle_after": round(_percentile(busy, 99) / _percentile(after, 99), 2),
        "requests": len(busy),
    }


def _percentile(seconds: list[float], percent: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percent)), 3)


def _replay(pool: Clusters, store: Path) -> dict[str, float]:
    """A fresh journal of so many operations, brought onto its release."""
    vectors = pool.queries(1000, who="replayed")
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        for start in range(0, REPLAYED, len(vectors)):
            ids = range(pool.n + start, pool.n + start + len(vectors))
            recaller.upsert(
                [{"id": one, "vector": vector, "fields": {}} for one, vector in zip(ids, vectors, strict=True)]
            )
    began = time.perf_counter()
    open_release(Store.open(store))
    alone = time.perf_counter() - began
    began = time.perf_counter()
    with open_recaller(store):
        whole = time.perf_counter() - began
    return {"replayed": REPLAYED, "release_seconds": round(alone, 2), "open_seconds": round(whole, 2)}


def _show(result: dict[str, Any]) -> None:
    rows = []
    for name in (*RATES, "compacting"):
        one = result[name]
        rows.append(
            [
                name,
                *(f"{one[key]:.2f}" for key in _SHOWN),
                *(str(one.get(key, "")) for key in ("items_a_second", "could_a_second", "call_p50_ms")),
            ]
        )
    columns = ["", *(key.removesuffix("_ms").replace("_", " ") for key in _SHOWN), "items/s", "could/s", "call ms"]
    show(f"{result['items']:,} x {result['dim']}, k {K}", columns, rows)
    console.print(f"to reach: {REACH}; 300 calls/s one by one, 10,000 items/s in batches")
    replayed = result["open_seconds"] - result["release_seconds"]
    console.print(f"{result['replayed']:,} operations read and replayed in {replayed:.2f} s; to reach: 3")


if __name__ == "__main__":
    main()
