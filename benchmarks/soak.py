"""Test a service under mixed load while it changes: recalls, final lists, upserts, deletes and release switches.

    python benchmarks/soak.py [--seconds 600] [--items 100_000] [--dim 64] [--workers 1] [--switch-seconds 20]

Two releases give every item different vectors, neighbours and markers. So each score shows which release computed it,
the scores of final lists from which release the ranker's attributes are, and their channels from which the neighbours
are: all must be the release that the answer names. Acknowledged changes must be visible to requests that start later:
upserted items are found, deleted ones are not; with several workers, by whichever the next connection reaches. The
memory is that of all processes. The command fails if an answer is wrong, a request fails or memory grows.
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

from harness.environment import (
    RESULTS_DIR,
    describe_environment,
    list_process_tree,
    read_load_average,
    read_memory_bytes,
    write_json,
)
from harness.service.load import HttpConnection, build_post
from harness.service.processes import ServerProcess
from harness.service.soak_releases import N_KINDS, SoakRelease, publish_soak_release
from harness.tables import console, print_table
from vecall.arrays import Vectors

FIRST_LIVE_ID = 1_000_000_000  # upserted items have ids from here on
_N_RECALL_CLIENTS, _N_RECOMMEND_CLIENTS = 4, 2
_CHANNELS = ["vector", "similar"]
_RANKER = "harness.service.soak_releases:rank_by_marker"
_CANDIDATES, _HISTORY_LENGTH = 200, 3
_SCORE_TOLERANCE = 2e-3  # vectors are stored in half precision
_UPSERT_ITEMS = 10  # items per upsert
_MAX_LIVE_ITEMS = 1_500  # upserted items that exist at a time; older ones are deleted
_MAX_BASE_DELETED_SHARE = 0.02  # of the releases' items; more deletions would start a compaction
_PAUSE_SECONDS = 0.02  # between two requests of a connection
_COUNTERS = ("recalls", "recommendations", "changes", "swaps")
_FAILURES = ("failed", "mixed", "resurrected", "lost")


@dataclass
class SoakChecker:
    """Checks answers against the known vectors and deletions, and counts what is wrong.

    Attributes:
        releases: by name; ids are rows.
        deleted_at: by id, the time at which its deletion was acknowledged.
        counts: by counter. "failed": status other than 200; "mixed": scores or items that do not belong to the release
            and request; "resurrected": deleted items in an answer; "lost": upserted items that are not found.
        latencies_ms: of recalls.
        recommend_latencies_ms: of final lists.
        failures: a message for each failure.
        count_by_release: number of answers of each release.
        count_by_channel: number of items of final lists that each channel recalled.
    """

    releases: dict[str, SoakRelease]
    deleted_at: dict[int, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    recommend_latencies_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    count_by_release: dict[str, int] = field(default_factory=dict)
    count_by_channel: dict[str, int] = field(default_factory=dict)

    def increment(self, counter: str) -> None:
        """Add one to a counter."""
        self.counts[counter] = self.counts.get(counter, 0) + 1

    def report_failure(self, counter: str, message: str) -> None:
        """Count a failure and keep its message."""
        self.increment(counter)
        self.failures.append(message)

    def check_answer(self, request: dict[str, Any], start_time: float, status: int, body: bytes) -> None:
        """Check the answer to a recall.

        Args:
            request: the recall; all its k items must exist.
            start_time: when it was sent, by `time.perf_counter`.
            status: HTTP status of the answer.
            body: JSON of the answer.
        """
        self.increment("recalls")
        if status != 200:
            self.report_failure("failed", f"{status}: {body[:200]!r}")
            return
        answer = json.loads(body)
        ids, release = np.array(answer["ids"], dtype=np.int64), answer["release"]
        self.count_by_release[release] = self.count_by_release.get(release, 0) + 1
        is_live = ids >= FIRST_LIVE_ID
        vectors = np.empty((len(ids), len(request["vector"])), dtype=np.float32)
        vectors[~is_live] = self.releases[release].vectors[ids[~is_live]]
        for position in np.flatnonzero(is_live):
            vectors[position] = make_live_vector(int(ids[position]), vectors.shape[1])
        errors = np.abs(vectors @ np.array(request["vector"], np.float32) - np.array(answer["scores"]))
        max_error = errors.max(initial=0.0)
        if len(ids) != request["k"] or max_error > _SCORE_TOLERANCE:
            message = f"{release}: {len(ids)} of {request['k']} items, a score is off by {max_error:.4f}"
            self.report_failure("mixed", message)
        if request.get("where") and (ids[~is_live] % N_KINDS != request["where"][0]["value"]).any():
            self.report_failure("mixed", f"{release}: an item does not pass {request['where']}")
        self._check_deleted(ids.tolist(), release, start_time)

    def check_recommendation(self, request: dict[str, Any], start_time: float, status: int, body: bytes) -> None:
        """Check the answer to a request for a final list.

        Args:
            request: the request; without a filter, so that all its k items belong to the release, which are ranked
                above live ones.
            start_time: when it was sent, by `time.perf_counter`.
            status: HTTP status of the answer.
            body: JSON of the answer.
        """
        self.increment("recommendations")
        if status != 200:
            self.report_failure("failed", f"{status}: {body[:200]!r}")
            return
        answer = json.loads(body)
        ids, name = np.array(answer["ids"], dtype=np.int64), answer["release"]
        release = self.releases[name]
        self.count_by_release[name] = self.count_by_release.get(name, 0) + 1
        if answer["ranker"] != "rank_by_marker" or answer["degraded"]:
            self.report_failure("failed", f"{name}: ranked by {answer['ranker']} without {answer['degraded']}")
        elif len(ids) != request["k"] or not np.allclose(answer["scores"], release.compute_ranker_scores(ids)):
            self.report_failure("mixed", f"{name}: {len(ids)} of {request['k']} items, scores {answer['scores'][:3]}")
        elif answer["scores"] != sorted(answer["scores"], reverse=True):
            self.report_failure("mixed", f"{name}: scores do not descend")
        near = {int(item) for seed in request["history"] for item in release.get_neighbors(seed)}
        for item, names in zip(ids.tolist(), answer["channels"], strict=True):
            if not names or ("similar" in names and item not in near):
                self.report_failure("mixed", f"{name}: {item} is said to come from {names}")
            for channel in names:
                self.count_by_channel[channel] = self.count_by_channel.get(channel, 0) + 1
        self._check_deleted(ids.tolist(), name, start_time)

    def _check_deleted(self, ids: list[int], release: str, start_time: float) -> None:
        deleted = [item_id for item_id in ids if self.deleted_at.get(item_id, np.inf) < start_time]
        if deleted:
            self.report_failure("resurrected", f"{release}: deleted items {deleted[:3]} in an answer")


def make_live_vector(item_id: int, dim: int) -> Vectors:
    """Return the vector [dim] of an upserted item, which is a function of its id."""
    vector = np.random.default_rng(item_id).standard_normal(dim, dtype=np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def main() -> None:
    """Publish two releases, serve them under load, and write and print the result."""
    options = _parse_options()
    environment = describe_environment()
    with tempfile.TemporaryDirectory(prefix="soak-") as work_dir:
        store = Path(work_dir) / "store"
        checker = SoakChecker(
            {
                name: publish_soak_release(store, name, number, items=options.items, dim=options.dim)
                for number, name in enumerate(("one", "two"), 1)
            }
        )
        settings_path = Path(work_dir) / "settings.toml"
        settings_path.write_text(f"deadline_ms = {options.deadline_ms}\n", encoding="utf-8")
        with ServerProcess(
            store, "--settings", str(settings_path), "--workers", str(options.workers), "--ranker", _RANKER
        ) as server:
            memory_bytes = asyncio.run(_run_soak(checker, server, store, options))
    result = {
        "facts": environment,
        "load_after": read_load_average(),
        "seconds": options.seconds,
        "processes": options.workers,
        "deadline_ms": options.deadline_ms,
    }
    result |= _summarize(checker, memory_bytes)
    write_json(options.out, result)
    _print_results(result)
    if any(result[counter] for counter in _FAILURES) or not result["memory"]["flat"]:
        raise SystemExit("\n".join(checker.failures[:10]) or "memory grew: see `memory` in the result")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--switch-seconds", type=float, default=20, help="time between two release switches")
    parser.add_argument("--deadline-ms", type=float, default=200, help="the service's; raise it on a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "soak.json")
    return parser.parse_args()


async def _run_soak(checker: SoakChecker, server: ServerProcess, store: Path, options: argparse.Namespace) -> list[int]:
    """Run all loads concurrently until the time is over; return the bytes of memory, second by second."""
    deadline, memory_bytes = time.perf_counter() + options.seconds, list[int]()
    await asyncio.gather(
        *(_run_recalls(checker, server.port, index, deadline) for index in range(_N_RECALL_CLIENTS)),
        *(_run_recommendations(checker, server.port, index, deadline) for index in range(_N_RECOMMEND_CLIENTS)),
        _run_changes(checker, server.port, options, deadline),
        _run_switches(checker, server.port, store, options.switch_seconds, deadline),
        _watch_memory(server.process.pid, memory_bytes, deadline),
    )
    return memory_bytes


async def _run_recalls(checker: SoakChecker, port: int, client_index: int, deadline: float) -> None:
    """Send recalls near random items, a third of them with a filter, a third with exclusions."""
    rng, connection = np.random.default_rng([1, client_index]), HttpConnection(port)
    items = next(iter(checker.releases.values())).vectors
    while time.perf_counter() < deadline:
        vector = items[rng.integers(len(items))] + 0.3 * rng.standard_normal(items.shape[1], dtype=np.float32)
        request: dict[str, Any] = {"vector": vector.tolist(), "k": int(rng.choice([10, 100, 500]))}
        if rng.random() < 0.3:
            request["where"] = [{"field": "kind", "op": "eq", "value": int(rng.integers(N_KINDS))}]
        if rng.random() < 0.3:
            request["exclude"] = rng.integers(len(items), size=100).tolist()
        start = time.perf_counter()
        status, body = await connection.send(build_post("/v1/recall", request))
        checker.latencies_ms.append((time.perf_counter() - start) * 1e3)
        checker.check_answer(request, start, status, body)
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()


async def _run_recommendations(checker: SoakChecker, port: int, client_index: int, deadline: float) -> None:
    """Send requests for final lists, a third of them with diversity."""
    rng, connection = np.random.default_rng([3, client_index]), HttpConnection(port)
    items = next(iter(checker.releases.values())).vectors
    while time.perf_counter() < deadline:
        history = rng.choice(len(items), _HISTORY_LENGTH, replace=False)
        request: dict[str, Any] = {
            "vector": (items[history[-1]] + 0.3 * rng.standard_normal(items.shape[1], dtype=np.float32)).tolist(),
            "history": history.tolist(),
            "channels": _CHANNELS,
            "candidates": _CANDIDATES,
            "k": int(rng.choice([5, 20])),
        }
        if rng.random() < 0.3:
            request["diversity"] = {"by": "kind", "max": 5}
        start = time.perf_counter()
        status, body = await connection.send(build_post("/v1/recommend", request))
        checker.recommend_latencies_ms.append((time.perf_counter() - start) * 1e3)
        checker.check_recommendation(request, start, status, body)
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()


async def _run_changes(checker: SoakChecker, port: int, options: argparse.Namespace, deadline: float) -> None:
    """Upsert new items, check that they are visible, and delete old ones and some of the releases'."""
    rng, connection, next_id, live_ids = np.random.default_rng(2), HttpConnection(port), FIRST_LIVE_ID, list[int]()
    base_deletions_left = int(_MAX_BASE_DELETED_SHARE * options.items)
    while time.perf_counter() < deadline:
        ids = list(range(next_id, next_id + _UPSERT_ITEMS))
        next_id += _UPSERT_ITEMS
        items = [_make_item(item_id, options.dim) for item_id in ids]
        await _send_change(checker, connection, "/v1/items", {"items": items})
        live_ids += ids
        await _check_visible(checker, port, ids[0], options.dim)
        to_delete, live_ids = live_ids[:-_MAX_LIVE_ITEMS], live_ids[-_MAX_LIVE_ITEMS:]
        if base_deletions_left > 0:
            to_delete += rng.integers(options.items, size=2).tolist()
            base_deletions_left -= 2
        if to_delete:
            await _send_change(checker, connection, "/v1/items/delete", {"ids": to_delete})
            checker.deleted_at |= dict.fromkeys(to_delete, time.perf_counter())
        await asyncio.sleep(0.1)
    connection.close()


def _make_item(item_id: int, dim: int) -> dict[str, Any]:
    return {"id": item_id, "vector": make_live_vector(item_id, dim).tolist(), "fields": {"kind": item_id % N_KINDS}}


async def _send_change(checker: SoakChecker, connection: HttpConnection, path: str, payload: dict[str, Any]) -> None:
    status, body = await connection.send(build_post(path, payload))
    checker.increment("changes")
    if status != 200:
        checker.report_failure("failed", f"{path}: {status}: {body[:200]!r}")


async def _check_visible(checker: SoakChecker, port: int, item_id: int, dim: int) -> None:
    """Check that an upserted item is found by its own vector, over a new connection: any worker may accept it."""
    connection = HttpConnection(port)
    request = {"vector": make_live_vector(item_id, dim).tolist(), "k": 5}
    start = time.perf_counter()
    status, body = await connection.send(build_post("/v1/recall", request))
    checker.check_answer(request, start, status, body)
    if status == 200 and item_id not in json.loads(body)["ids"]:
        checker.report_failure("lost", f"upserted item {item_id} is not found")
    connection.close()


async def _run_switches(checker: SoakChecker, port: int, store: Path, pause_seconds: float, deadline: float) -> None:
    """Switch releases over HTTP, and every third time by another process, which the service must follow."""
    connection, names, switch_index = HttpConnection(port), list(checker.releases), 0
    while (left := deadline - time.perf_counter()) > pause_seconds:
        await asyncio.sleep(min(pause_seconds, left))
        name = names[switch_index % len(names)]
        if switch_index % 3 == 2:
            command = [sys.executable, "-m", "vecall", "releases", "activate", name, "--store", str(store)]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL)
            status = 200 if await process.wait() == 0 else 500
        else:
            status, _ = await connection.send(build_post("/v1/releases/activate", {"name": name}))
        checker.increment("swaps")
        if status != 200:
            checker.report_failure("failed", f"switching to {name}: {status}")
        switch_index += 1
    connection.close()


async def _watch_memory(pid: int, memory_bytes: list[int], deadline: float) -> None:
    """Append the resident memory of a process and its children, once per second."""
    pids = list_process_tree(pid)
    while time.perf_counter() < deadline:
        memory_bytes.append(sum(read_memory_bytes(pid=pid) for pid in pids))
        await asyncio.sleep(1)


def _summarize(checker: SoakChecker, memory_bytes: list[int]) -> dict[str, Any]:
    """Return counts, latencies and memory.

    Memory is flat if its median over the last third is at most 5 % and 32 MiB above that of the middle third.
    """
    third = len(memory_bytes) // 3
    middle, last = (int(np.median(memory_bytes[third * part : third * (part + 1)])) for part in (1, 2))
    p50, p99 = np.percentile(checker.latencies_ms, [50, 99])
    recommend_p50, recommend_p99 = np.percentile(checker.recommend_latencies_ms, [50, 99])
    is_flat = last <= 1.05 * middle + 32 * 2**20
    return {
        **{counter: checker.counts.get(counter, 0) for counter in (*_COUNTERS, *_FAILURES)},
        "by_release": checker.count_by_release,
        "by_channel": checker.count_by_channel,
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "recommend_p50_ms": round(float(recommend_p50), 2),
        "recommend_p99_ms": round(float(recommend_p99), 2),
        "memory": {
            "first": memory_bytes[0],
            "middle": middle,
            "last": last,
            "most": max(memory_bytes),
            "flat": is_flat,
        },
    }


def _print_results(result: dict[str, Any]) -> None:
    memory = result["memory"]
    labels = {"swaps": "release switches"}
    rows = [[labels.get(counter, counter), f"{result[counter]:,}"] for counter in (*_COUNTERS, *_FAILURES)]
    rows += [["p50, p99 ms", f"{result['p50_ms']:.2f}, {result['p99_ms']:.2f}"]]
    recommend_ms = f"{result['recommend_p50_ms']:.2f}, {result['recommend_p99_ms']:.2f}"
    rows += [["p50, p99 ms of final lists", recommend_ms]]
    rows += [["MiB, middle and last third", f"{memory['middle'] / 2**20:.0f}, {memory['last'] / 2**20:.0f}"]]
    print_table(f"{result['seconds']:.0f} s of mixed load", ["", ""], rows)
    console.print(f"answers by release: {result['by_release']}")
    console.print(f"items of final lists by channel: {result['by_channel']}")


if __name__ == "__main__":
    main()
