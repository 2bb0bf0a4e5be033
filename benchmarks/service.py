"""HTTP end to end beside the bare calls that it stands on: one run, one machine, JSON in, 500 ids and scores out.

    python benchmarks/service.py [--items 1_000_000] [--dim 128] [--seconds 2] [--rounds 5]

The bare loop encodes a history by ONNX Runtime and searches the index, in one thread of a process of its own. HTTP is
`vecall serve` by one process and by one for each core, asked with the same histories by `http_load.py` from this
process. Both take turns by a few seconds, so that a ratio is of the same minute. Calls that come apart are slower than
those in a loop, whose code and data lie in the processor's caches: so the bare calls are measured at a pace too. The
most a second is by `wrk` as well, where it is installed. ANN recall is that of HTTP answers.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from clustered import Clusters
from facts import RESULTS, facts, load_average, read_json, write_json
from http_load import Connection, Load, closed, open_loop, post, wrk
from service_processes import Bare, Served
from service_users import HISTORY, K, asked
from tables import console, show

from vecall.data.fields import frame_of
from vecall.release.bundle import open_release
from vecall.release.store import Store

CONNECTIONS = (1, 2, 4, 8)
PROCESSES = (1, os.cpu_count() or 1)
_LIMIT_SHARE = 0.6
_JUDGED = 100  # answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=["mean", "causal"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vecall-service")
    parser.add_argument("--out", type=Path, default=RESULTS / "service.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pool = Clusters(options.items, options.dim)
    for encoder in options.encoders:
        store = options.work / f"{encoder}-{options.items}-{options.dim}"
        if not (store / "CURRENT").exists():
            command = [sys.executable, str(Path(__file__).with_name("service_store.py")), str(store)]
            command += ["--items", str(options.items), "--dim", str(options.dim), "--encoder", encoder]
            subprocess.run(command, check=True)
        result = {"facts": facts()} | measure(store, pool, options.seconds, options.rounds)
        write_json(options.out, read_json(options.out) | {encoder: result | {"load_after": load_average()}})
        _show(encoder, result)


def measure(store: Path, pool: Clusters, seconds: float, rounds: int) -> dict[str, Any]:
    """Bare calls and HTTP in turns, by processes and connections; then both at a part of the most that HTTP gave."""
    histories = asked(pool)
    requests = [post("/v1/recall", {"history": one, "k": K, "exclude_seen": False}) for one in histories]
    with Served(store) as served:
        recall = _ann_recall(store, served.port, requests[:_JUDGED], histories)
    with Bare(store) as bare:
        by_processes = {str(count): _served(store, bare, count, requests, seconds, rounds) for count in PROCESSES}
    return {"k": K, "history": HISTORY, "ann_recall": recall, "by_processes": by_processes}


def _served(
    store: Path, bare: Bare, processes: int, requests: list[bytes], seconds: float, rounds: int
) -> dict[str, Any]:
    with Served(store, "--processes", str(processes)) as served:
        port = served.port
        closed(port, requests, connections=4 * processes, seconds=2)  # warm up
        ways: dict[str, Callable[[], Load]] = {"bare": lambda: bare.calls(seconds)}
        for count in CONNECTIONS:
            ways[str(count)] = partial(closed, port, requests, connections=count, seconds=seconds)
        loads = _in_turns(ways, rounds)
        by_wrk = wrk(port, requests, connections=max(CONNECTIONS), seconds=rounds * seconds)
        limit = max([sum(loads[str(count)], Load()).per_second for count in CONNECTIONS] + ([by_wrk] if by_wrk else []))
        rate = _LIMIT_SHARE * limit
        paced = _in_turns(
            {
                "bare": lambda: bare.calls(2 * seconds, rate=rate / processes),  # each process gets its part
                "http": lambda: open_loop(port, requests, rate=rate, seconds=2 * seconds),
            },
            rounds,
        )
    return {
        "bare": sum(loads["bare"], Load()).figures(),
        "http": {str(count): _beside(loads[str(count)], loads["bare"]) for count in CONNECTIONS},
        "wrk_per_second": by_wrk,
        "limit_per_second": limit,
        "bare_at_60_percent": sum(paced["bare"], Load()).figures(),
        "open_at_60_percent": _beside(paced["http"], paced["bare"]),
    }


def _in_turns(ways: Mapping[str, Callable[[], Load]], rounds: int) -> dict[str, list[Load]]:
    """Each way once a round: what else the machine does comes and goes by minutes."""
    loads: dict[str, list[Load]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, load in ways.items():
            loads[name].append(load())
    return loads


def _beside(loads: list[Load], bare: list[Load]) -> dict[str, float]:
    """All rounds together, and what p50 is of that of the bare calls in the same round, in the middle of the rounds."""
    ratios = [one.p50 / other.p50 for one, other in zip(loads, bare, strict=True)]
    return sum(loads, Load()).figures() | {"x_bare_p50": round(float(np.median(ratios)), 3)}


def _ann_recall(store: Path, port: int, requests: list[bytes], histories: list[list[int]]) -> float:
    """Share of the exact answer in the answers over HTTP."""

    async def ask() -> list[list[int]]:
        line = Connection(port)
        answers = [json.loads((await line.ask(request))[1])["ids"] for request in requests]
        line.close()
        return answers

    answers = asyncio.run(ask())
    release = open_release(Store.open(store))
    shares = []
    for history, ids in zip(histories, answers, strict=False):
        vectors = release.index.vectors(release.items.rows(history))[None]
        assert release.encoder is not None
        vector = release.encoder.encode_users(frame_of([{}], {}), vectors, np.array([len(history)]))
        exact = release.items.ids(release.index.search_exact(vector, K).rows[0])
        shares.append(len(set(exact) & set(ids)) / K)
    return round(float(np.mean(shares)), 4)


def _show(encoder: str, result: dict[str, Any]) -> None:
    cores, rows = facts()["machine"]["cores"], []
    for processes, served in result["by_processes"].items():
        name = "1 process" if processes == "1" else f"{processes} processes"
        lines = {"bare calls beside it": served["bare"]}
        lines |= {f"{name}, {count} at a time": one for count, one in served["http"].items()}
        lines["bare calls at the pace of 60 %"] = served["bare_at_60_percent"]
        lines[f"{name}, {_LIMIT_SHARE:.0%} of the limit"] = served["open_at_60_percent"]
        for line, one in lines.items():
            ratio = f"{one['x_bare_p50']:.2f}" if "x_bare_p50" in one else ""
            rows.append(
                [
                    *(line, f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{one['per_second']:.0f}"),
                    *(ratio, f"{one['generator_cpu']:.2f}" if "x_bare_p50" in one else ""),
                ]
            )
    columns = ["", "p50 ms", "p99 ms", "a second", "x bare p50", "generator, cores"]
    show(f"{encoder} tower, k {K}, ANN recall {result['ann_recall']}", columns, rows)
    last = result["by_processes"][str(max(PROCESSES))]
    reach = 0.5 * cores / (last["bare"]["p50_ms"] / 1e3)
    console.print(f"limit {last['limit_per_second']:.0f} a second; 0.5 × {cores} cores / bare p50 = {reach:.0f}")


if __name__ == "__main__":
    main()
