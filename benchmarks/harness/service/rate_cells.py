"""Cells of `benchmarks/service.py --rates`: memory of the processes, latencies at fixed rates, switches under load."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.clustered_vectors import ClusteredVectors
from harness.environment import list_process_tree
from harness.service.load import HttpConnection, build_post, run_closed_loop, run_open_loop, summarize_rounds
from harness.service.processes import WORKER_COUNTS, ServerProcess
from harness.service.users import HISTORY_LENGTH, K, make_query_histories, to_string_id
from harness.tables import console, print_table
from vecall.arrays import HalfVectors, Vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

FIXED_RATE = 500.0  # requests per second
MAX_P99_MS = 10.0
_RATE_STEP = 1.15  # between the rates that are tried
_N_SWITCH_CLIENTS = 4
_PAUSE_SECONDS = 0.02  # between two requests of a client
_SCORE_TOLERANCE = 2e-3  # vectors are stored in half precision
RELEASE_NAMES = ("one", "two")


def measure_rates(store: Path, pool: ClusteredVectors, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure one process and one per core.

    Args:
        store: of a release with towers over the pool, whose ids are those of `to_string_id`.
        pool: item vectors.
        seconds: duration of each measurement.
        rounds: measurements of each rate, whose median counts.
    """
    requests = [_build_recall(query) for query in _make_queries(pool)]
    return {
        "k": K,
        "history": HISTORY_LENGTH,
        "by_processes": {
            str(workers): _measure_workers(store, workers, requests, seconds, rounds) for workers in WORKER_COUNTS
        },
    }


def _make_queries(pool: ClusteredVectors) -> list[Query]:
    return [
        Query(history=list(map(to_string_id, rows)), k=K, exclude_seen=False) for rows in make_query_histories(pool)
    ]


def _build_recall(query: Query) -> bytes:
    return build_post("/v1/recall", {"history": query.history, "k": query.k, "exclude_seen": query.exclude_seen})


def _measure_workers(
    store: Path, workers: int, requests: Sequence[bytes], seconds: float, rounds: int
) -> dict[str, Any]:
    start = time.perf_counter()
    with ServerProcess(store, "--workers", str(workers)) as server:
        open_seconds = time.perf_counter() - start
        run_closed_loop(server.port, requests, connections=4 * workers, seconds=seconds)  # warm-up
        limit = run_closed_loop(server.port, requests, connections=4 * workers, seconds=seconds).requests_per_second
        single = run_closed_loop(server.port, requests, connections=1, seconds=seconds)
        fixed = [
            run_open_loop(server.port, requests, rate=FIXED_RATE, seconds=seconds, seed=seed) for seed in range(rounds)
        ]
        max_rate, tried = _find_max_rate(server.port, requests, limit, seconds, rounds)
        return {
            "open_seconds": round(open_seconds, 1),
            "memory": read_memory(server.process.pid),
            "http_1_connection": single.summarize(),
            "limit_per_second": round(limit, 1),
            "open_at_fixed_rate": summarize_rounds(fixed),
            "max_rate": max_rate,
            "tried_rates": tried,
        }


def _find_max_rate(
    port: int, requests: Sequence[bytes], limit: float, seconds: float, rounds: int
) -> tuple[float, dict[str, float]]:
    """Return the highest of the rates tried whose p99 stays below `MAX_P99_MS`, 0 if none does; and each one's p99."""
    rate, tried = limit, dict[str, float]()
    while rate > limit / 10:
        loads = [run_open_loop(port, requests, rate=rate, seconds=seconds, seed=seed) for seed in range(rounds)]
        summary = summarize_rounds(loads)
        tried[f"{rate:.0f}"] = summary["p99_ms_median"]
        if summary["p99_ms_median"] < MAX_P99_MS and not summary["failed"]:
            return round(rate, 1), tried
        rate /= _RATE_STEP
    return 0.0, tried


def read_memory(pid: int) -> dict[str, Any]:
    """Return the GiB of a process and its children: in total, shared pages counted once, and what each has alone."""
    fields = [_read_memory_fields(process) for process in list_process_tree(pid)]
    return {
        "total_gib": round(sum(values["Pss"] for values in fields) / 2**20, 3),
        "private_gib": [round((values["Private_Clean"] + values["Private_Dirty"]) / 2**20, 3) for values in fields],
        "resident_gib": [round(values["Rss"] / 2**20, 3) for values in fields],
    }


def _read_memory_fields(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}


@dataclass
class _SwitchWatch:
    """What was seen while releases were switched.

    Attributes:
        vectors_by_release: [N, D] of the items of each release, whose ids are those of `to_string_id`, and [U, D] of
            the users.
        answers_by_release: answers that named each release.
        failures: an answer of another status than 200, or with items or scores of another release than it names.
        latencies_ms: of the recalls.
        total_gib: memory of all processes, about once a second.
        switches: number of switches that were asked for.
    """

    vectors_by_release: dict[str, tuple[HalfVectors, Vectors]]
    answers_by_release: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RELEASE_NAMES, 0))
    failures: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    total_gib: list[float] = field(default_factory=list)
    switches: int = 0

    def check(self, user: int, status: int, body: bytes) -> None:
        """Check that the scores of an answer are those of the release that it names."""
        if status != 200:
            self.failures.append(f"{status}: {body[:200]!r}")
            return
        answer = json.loads(body)
        release, rows = answer["release"], np.array([int(name.rpartition("-")[2]) for name in answer["ids"]])
        self.answers_by_release[release] += 1
        vectors, users = self.vectors_by_release[release]
        scores = vectors[rows].astype(np.float32) @ users[user]
        if len(set(answer["ids"])) != K or np.abs(scores - answer["scores"]).max() > _SCORE_TOLERANCE:
            self.failures.append(f"mixed: {release}, {len(rows)} items")


def measure_switches(store: Path, pool: ClusteredVectors, vectors: Sequence[Path], seconds: float) -> dict[str, Any]:
    """Switch between two releases twice, under recalls by one process per core, and check each answer.

    Args:
        store: of two releases named `RELEASE_NAMES`; the first is current.
        pool: of the first; items near each other are so in both.
        vectors: files of both pools.
        seconds: after a switch, so that all processes follow.
    """
    queries = _make_queries(pool)
    watch = _SwitchWatch(
        {
            name: (np.load(path, mmap_mode="r"), _encode_users(store, name, queries))
            for name, path in zip(RELEASE_NAMES, vectors, strict=True)
        }
    )
    with ServerProcess(store, "--workers", str(max(WORKER_COUNTS))) as server:
        before = read_memory(server.process.pid)
        asyncio.run(_run_switches(watch, server, queries, seconds))
        after = read_memory(server.process.pid)
    p50, p99 = np.percentile(watch.latencies_ms, [50, 99])
    return {
        "recalls": len(watch.latencies_ms),
        "switches": watch.switches,
        "answers_by_release": watch.answers_by_release,
        "failed_or_mixed": len(watch.failures),
        "failures": watch.failures[:5],
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "memory_before": before,
        "memory_after": after,
        "most_gib": max(watch.total_gib),
    }


def _encode_users(store: Path, name: str, queries: Sequence[Query]) -> Vectors:
    """Return [U, D] the user vectors of queries by a release."""
    with open_recaller(store, release=name) as recaller:
        traces = [recaller.recall_with_trace(query) for query in queries]
    return np.concatenate(
        [trace.resolved_query.query_matrix for trace in traces if trace.resolved_query.query_matrix is not None]
    )


async def _run_switches(watch: _SwitchWatch, server: ServerProcess, queries: Sequence[Query], seconds: float) -> None:
    is_done = asyncio.Event()
    clients = [
        asyncio.create_task(_run_client(watch, server.port, list(enumerate(queries))[n::_N_SWITCH_CLIENTS], is_done))
        for n in range(_N_SWITCH_CLIENTS)
    ]
    memory = asyncio.create_task(_watch_memory(watch, server.process.pid, is_done))
    connection = HttpConnection(server.port)
    for name in reversed(RELEASE_NAMES):
        await asyncio.sleep(seconds / 3)
        status, body = await connection.send(build_post("/v1/releases/activate", {"name": name}))
        watch.switches += 1
        if status != 200:
            watch.failures.append(f"switching to {name}: {status}: {body[:200]!r}")
        await asyncio.sleep(seconds)  # the other workers follow
    connection.close()
    is_done.set()
    await asyncio.gather(*clients, memory)


async def _run_client(
    watch: _SwitchWatch, port: int, queries: Sequence[tuple[int, Query]], is_done: asyncio.Event
) -> None:
    connection, index = HttpConnection(port), 0
    while not is_done.is_set():
        user, query = queries[index % len(queries)]
        request = _build_recall(query)
        start = time.perf_counter()
        status, body = await connection.send(request)
        watch.latencies_ms.append((time.perf_counter() - start) * 1e3)
        watch.check(user, status, body)
        index += 1
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()


async def _watch_memory(watch: _SwitchWatch, pid: int, is_done: asyncio.Event) -> None:
    while not is_done.is_set():
        watch.total_gib.append((await asyncio.to_thread(read_memory, pid))["total_gib"])
        await asyncio.sleep(1)


def print_rates(items: int, result: dict[str, Any]) -> None:
    """Print the measurements of one size."""
    rows = []
    for workers, measured in result["by_processes"].items():
        single, fixed = measured["http_1_connection"], measured["open_at_fixed_rate"]
        rows.append(
            [
                workers,
                f"{measured['memory']['total_gib']:.2f}",
                f"{single['p50_ms']:.2f}",
                f"{single['p99_ms']:.2f}",
                f"{fixed['p50_ms']:.2f}",
                f"{fixed['p99_ms_median']:.2f}",
                f"{measured['max_rate']:.0f}",
                f"{measured['limit_per_second']:.0f}",
            ]
        )
    columns = ["processes", "GiB in all", "1 connection: p50", "p99", f"{FIXED_RATE:.0f} per second: p50", "p99"]
    columns += [f"rate of p99 < {MAX_P99_MS:.0f} ms", "limit per second"]
    print_table(f"{items:,} items, k {K}", columns, rows)
    if switch := result.get("switches"):
        console.print(
            f"{switch['switches']} switches under {switch['recalls']:,} recalls: {switch['failed_or_mixed']} failed or "
            f"mixed, p99 {switch['p99_ms']:.1f} ms; {switch['memory_before']['total_gib']:.2f} GiB before, at most "
            f"{switch['most_gib']:.2f}, {switch['memory_after']['total_gib']:.2f} after"
        )
