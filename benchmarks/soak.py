"""A service under mixed load while it changes: recalls, filters, upserts, deletes, and another release every 20 s.

    python benchmarks/soak.py [--seconds 600] [--items 100_000] [--dim 64] [--processes 1]

Two releases give every item another vector. So each score of each answer tells which release it is of, and it must be
the one that the answer names. What was acknowledged must be seen by requests that begin later: upserted items found,
deleted ones not; with several processes by whichever the next connection reaches. Memory is that of all of them.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_load_average, write_json
from harness.service.load import HttpConnection, build_post
from numpy.typing import NDArray
from harness.service.processes import ServerProcess
from harness.tables import console, print_table

from vecall.index.settings import IndexSettings
from vecall.pipeline.publish_vectors import publish_vectors

N_KINDS = 10  # values of the attribute that filters name
FIRST_LIVE_ID = 1_000_000_000  # ids from here on were upserted
_SCORE_TOLERANCE = 2e-3  # of a score: vectors are stored in half precision
_UPSERT_ITEMS = 10  # items of an upsert
_MAX_LIVE_ITEMS = 1_500  # live items at a time; older ones are deleted
_MAX_BASE_DELETED_SHARE = 0.02  # of the items; more would be compacted away meanwhile
_PAUSE_SECONDS = 0.02  # seconds between two requests of one connection

Floats = NDArray[np.float32]


@dataclass
class SoakChecker:
    """What answers must agree with, and how they did."""

    vectors: dict[str, Floats]
    deleted_at: dict[int, float] = field(default_factory=dict)  # id: when it was acknowledged
    counts: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    count_by_release: dict[str, int] = field(default_factory=dict)

    def increment(self, counter: str) -> None:
        self.counts[counter] = self.counts.get(counter, 0) + 1

    def check_answer(self, request: dict[str, Any], start_time: float, status: int, body: bytes) -> None:
        """One recall's answer."""
        self.increment("recalls")
        if status != 200:
            self.increment("failed")
            self.failures.append(f"{status}: {body[:200]!r}")
            return
        answer = json.loads(body)
        ids, release = np.array(answer["ids"], dtype=np.int64), answer["release"]
        self.count_by_release[release] = self.count_by_release.get(release, 0) + 1
        live = ids >= FIRST_LIVE_ID
        vectors = np.empty((len(ids), len(request["vector"])), dtype=np.float32)
        vectors[~live] = self.vectors[release][ids[~live]]
        for place in np.flatnonzero(live):
            vectors[place] = make_live_vector(int(ids[place]), vectors.shape[1])
        error = np.abs(vectors @ np.array(request["vector"], np.float32) - np.array(answer["scores"]))
        if len(ids) != request["k"] or error.max() > _SCORE_TOLERANCE:
            self.increment("mixed")
            self.failures.append(f"{len(ids)} of {request['k']} items, a score off by {error.max():.4f} in {release}")
        if request.get("where") and (ids[~live] % N_KINDS != request["where"][0]["value"]).any():
            self.increment("mixed")
            self.failures.append(f"an item that does not pass {request['where']}")
        gone = [one for one in ids.tolist() if self.deleted_at.get(one, np.inf) < start_time]
        if gone:
            self.increment("resurrected")
            self.failures.append(f"deleted items {gone[:3]} in an answer of {release}")


def make_live_vector(item_id: int, dim: int) -> Floats:
    """The vector of an upserted item, which its id tells."""
    drawn = np.random.default_rng(item_id).standard_normal(dim, dtype=np.float32)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--swap", type=float, default=20, help="seconds between two swaps")
    parser.add_argument("--deadline-ms", type=float, default=200, help="the service's; more on a machine that is busy")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "soak.json")
    options = parser.parse_args()
    begun_with = describe_environment()
    with tempfile.TemporaryDirectory(prefix="soak-") as work:
        store = Path(work) / "store"
        truth = SoakChecker({name: _publish(store, name, seed, options) for seed, name in enumerate(("one", "two"))})
        settings = Path(work) / "settings.toml"
        settings.write_text(f"deadline_ms = {options.deadline_ms}\n", encoding="utf-8")
        with ServerProcess(store, "--settings", str(settings), "--processes", str(options.processes)) as served:
            memory = asyncio.run(_run_soak(truth, served, store, options))
    result = {
        "facts": begun_with,
        "load_after": read_load_average(),
        "seconds": options.seconds,
        "processes": options.processes,
        "deadline_ms": options.deadline_ms,
    }
    result |= _summarize(truth, memory)
    write_json(options.out, result)
    _print_results(result)
    if result["failed"] or result["mixed"] or result["resurrected"] or result["lost"] or not result["memory"]["flat"]:
        raise SystemExit("\n".join(truth.failures[:10]) or "memory grew")


def _publish(store: Path, name: str, seed: int, options: argparse.Namespace) -> Floats:
    pool = ClusteredVectors(options.items, options.dim, seed)
    vectors = np.concatenate(list(pool.iterate_blocks()))
    kinds = pl.DataFrame({"kind": np.arange(pool.n_items) % N_KINDS})
    queries, settings = pool.make_queries(300, stream="tuning"), IndexSettings(ks=(100,))
    ids = pl.Series("id", np.arange(pool.n_items))
    publish_vectors(store, ids, vectors, attributes=kinds, queries=queries, index=settings, name=name)
    return vectors.astype(np.float32)


async def _run_soak(checker: SoakChecker, served: ServerProcess, store: Path, options: argparse.Namespace) -> list[int]:
    """All of it at once, until the time is over; gives the process's memory, second by second."""
    ends, memory = time.perf_counter() + options.seconds, list[int]()
    await asyncio.gather(
        *(_run_recalls(checker, served.port, number, ends) for number in range(4)),
        _run_changes(checker, served.port, options, ends),
        _run_switches(checker, served.port, store, options.swap, ends),
        _watch_memory(served.process.pid, memory, ends),
    )
    return memory


async def _run_recalls(checker: SoakChecker, port: int, client_index: int, deadline: float) -> None:
    rng, line = np.random.default_rng([1, client_index]), HttpConnection(port)
    some = next(iter(checker.vectors.values()))
    while time.perf_counter() < deadline:
        near = some[rng.integers(len(some))] + 0.3 * rng.standard_normal(some.shape[1], dtype=np.float32)
        request: dict[str, Any] = {"vector": near.tolist(), "k": int(rng.choice([10, 100, 500]))}
        if rng.random() < 0.3:
            request["where"] = [{"field": "kind", "op": "eq", "value": int(rng.integers(N_KINDS))}]
        if rng.random() < 0.3:
            request["exclude"] = rng.integers(len(some), size=100).tolist()
        began = time.perf_counter()
        status, body = await line.send(build_post("/v1/recall", request))
        checker.latencies_ms.append((time.perf_counter() - began) * 1e3)
        checker.check_answer(request, began, status, body)
        await asyncio.sleep(_PAUSE_SECONDS)
    line.close()


async def _run_changes(checker: SoakChecker, port: int, options: argparse.Namespace, deadline: float) -> None:
    rng, line, next_id, there = np.random.default_rng(2), HttpConnection(port), FIRST_LIVE_ID, list[int]()
    base_left = int(_MAX_BASE_DELETED_SHARE * options.items)
    while time.perf_counter() < deadline:
        ids = list(range(next_id, next_id + _UPSERT_ITEMS))
        next_id += _UPSERT_ITEMS
        items = [_make_item(one, options.dim) for one in ids]
        await _send_change(checker, line, "/v1/items", {"items": items})
        there += ids
        await _check_visible(checker, port, ids[0], options.dim)
        doomed, there = there[:-_MAX_LIVE_ITEMS], there[-_MAX_LIVE_ITEMS:]
        if base_left > 0:
            doomed += rng.integers(options.items, size=2).tolist()
            base_left -= 2
        if doomed:
            await _send_change(checker, line, "/v1/items/delete", {"ids": doomed})
            checker.deleted_at |= dict.fromkeys(doomed, time.perf_counter())
        await asyncio.sleep(0.1)
    line.close()


def _make_item(item_id: int, dim: int) -> dict[str, Any]:
    return {"id": item_id, "vector": make_live_vector(item_id, dim).tolist(), "fields": {"kind": item_id % N_KINDS}}


async def _send_change(checker: SoakChecker, connection: HttpConnection, path: str, content: dict[str, Any]) -> None:
    status, body = await connection.send(build_post(path, content))
    checker.increment("changes")
    if status != 200:
        checker.increment("failed")
        checker.failures.append(f"{path}: {status}: {body[:200]!r}")


async def _check_visible(checker: SoakChecker, port: int, item_id: int, dim: int) -> None:
    """An upserted item is the best answer to its own vector, by a connection that no process has yet."""
    line = HttpConnection(port)
    request = {"vector": make_live_vector(item_id, dim).tolist(), "k": 5}
    began = time.perf_counter()
    status, body = await line.send(build_post("/v1/recall", request))
    checker.check_answer(request, began, status, body)
    if status == 200 and item_id not in json.loads(body)["ids"]:
        checker.increment("lost")
        checker.failures.append(f"upserted item {item_id} is not found")
    line.close()


async def _run_switches(checker: SoakChecker, port: int, store: Path, pause_seconds: float, deadline: float) -> None:
    """To the other release, by HTTP and in turn by another process, which the service follows."""
    line, names, number = HttpConnection(port), list(checker.vectors), 0
    while (left := deadline - time.perf_counter()) > pause_seconds:
        await asyncio.sleep(min(pause_seconds, left))
        name = names[number % len(names)]
        if number % 3 == 2:
            command = [sys.executable, "-m", "vecall", "releases", "activate", name, "--store", str(store)]
            done = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
            status = 200 if await done.wait() == 0 else 500
        else:
            status, _ = await line.send(build_post("/v1/releases/activate", {"name": name}))
        checker.increment("swaps")
        if status != 200:
            checker.increment("failed")
            checker.failures.append(f"going over to {name}: {status}")
        number += 1
    line.close()


async def _watch_memory(pid: int, resident_bytes: list[int], deadline: float) -> None:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    serving = [pid, *map(int, listed)]
    while time.perf_counter() < deadline:
        resident_bytes.append(sum(map(_read_resident_bytes, serving)))
        await asyncio.sleep(1)


def _read_resident_bytes(pid: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def _summarize(checker: SoakChecker, memory: list[int]) -> dict[str, Any]:
    """Memory is flat if its median over the last third is at most 5 % and 32 MiB above that of the middle third."""
    third = len(memory) // 3
    middle, last = (int(np.median(memory[third * part : third * (part + 1)])) for part in (1, 2))
    p50, p99 = np.percentile(checker.latencies_ms, [50, 99])
    counts = {name: checker.counts.get(name, 0) for name in ("recalls", "changes", "swaps")}
    wrong = {name: checker.counts.get(name, 0) for name in ("failed", "mixed", "resurrected", "lost")}
    flat = last <= 1.05 * middle + 32 * 2**20
    return (
        counts
        | wrong
        | {
            "by_release": checker.count_by_release,
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "memory": {"first": memory[0], "middle": middle, "last": last, "most": max(memory), "flat": flat},
        }
    )


def _print_results(result: dict[str, Any]) -> None:
    memory = result["memory"]
    rows = [[name, f"{result[name]:,}"] for name in ("recalls", "changes", "swaps")]
    rows += [[name, f"{result[name]:,}"] for name in ("failed", "mixed", "resurrected", "lost")]
    rows += [["p50, p99 ms", f"{result['p50_ms']:.2f}, {result['p99_ms']:.2f}"]]
    rows += [["MiB, middle and last third", f"{memory['middle'] / 2**20:.0f}, {memory['last'] / 2**20:.0f}"]]
    print_table(f"{result['seconds']:.0f} s of mixed load", ["", ""], rows)
    console.print(f"answers by release: {result['by_release']}")


if __name__ == "__main__":
    main()
