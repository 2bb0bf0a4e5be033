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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from harness.clustered_vectors import ClusteredVectors
from harness.environment import RESULTS_DIR, describe_environment, read_json, read_load_average, write_json
from harness.service.load import HttpConnection, LoadResult, build_post, run_closed_loop, run_open_loop, run_wrk
from harness.service.processes import LowerBoundProcess, ServerProcess
from harness.service.users import HISTORY_LENGTH, K, make_query_histories
from harness.tables import console, print_table

from vecall.data.request_features import to_feature_frame
from vecall.release.release import open_release
from vecall.release.store import Store

CONNECTION_COUNTS = (1, 2, 4, 8)
WORKER_COUNTS = (1, os.cpu_count() or 1)
_OPEN_LOOP_SHARE = 0.6
_RECALL_QUERIES = 100  # answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=["mean", "causal"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vecall-service")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "service.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pool = ClusteredVectors(options.items, options.dim)
    for encoder in options.encoders:
        store = options.work / f"{encoder}-{options.items}-{options.dim}"
        if not (store / "CURRENT").exists():
            command = [sys.executable, str(Path(__file__).with_name("service_store.py")), str(store)]
            command += ["--items", str(options.items), "--dim", str(options.dim), "--encoder", encoder]
            subprocess.run(command, check=True)
        result = {"facts": describe_environment()} | measure(store, pool, options.seconds, options.rounds)
        write_json(options.out, read_json(options.out) | {encoder: result | {"load_after": read_load_average()}})
        _print_result(encoder, result)


def measure(store: Path, pool: ClusteredVectors, seconds: float, rounds: int) -> dict[str, Any]:
    """Bare calls and HTTP in turns, by processes and connections, and both at a part of the most that HTTP gave."""
    histories = make_query_histories(pool)
    requests = [build_post("/v1/recall", {"history": one, "k": K, "exclude_seen": False}) for one in histories]
    with ServerProcess(store) as served:
        recall = _measure_ann_recall(store, served.port, requests[:_RECALL_QUERIES], histories)
    by_processes = {}
    with LowerBoundProcess(store) as bare:
        for count in WORKER_COUNTS:
            with ServerProcess(store, "--processes", str(count)) as served:
                run_closed_loop(served.port, requests, connections=4 * count, seconds=seconds)  # warm up
                made = [_measure_round(bare, served.port, count, requests, seconds) for _ in range(rounds)]
            by_processes[str(count)] = _summarize_rounds(made)
    return {"k": K, "history": HISTORY_LENGTH, "ann_recall": recall, "by_processes": by_processes}


@dataclass(frozen=True)
class _Round:
    """A minute's measurements, so that a ratio is not of what else the machine did.

    Attributes:
        lower_bound: calls in a loop.
        closed_loop: HTTP by connections.
        wrk_per_second: answers a second; None without `wrk`.
        paced_lower_bound: calls at the pace of `opened`, or each process's part of it.
        open_loop: HTTP at a part of the most that this round gave.
    """

    lower_bound: LoadResult
    closed_loop: dict[int, LoadResult]
    wrk_per_second: float | None
    paced_lower_bound: LoadResult
    open_loop: LoadResult

    @property
    def max_per_second(self) -> float:
        """The most answers a second."""
        return max(
            [one.requests_per_second for one in self.closed_loop.values()]
            + ([self.wrk_per_second] if self.wrk_per_second else [])
        )


def _measure_round(
    lower_bound: LowerBoundProcess, port: int, workers: int, requests: list[bytes], seconds: float
) -> _Round:
    loop = lower_bound.run_burst(seconds)
    by_connections = {
        count: run_closed_loop(port, requests, connections=count, seconds=seconds) for count in CONNECTION_COUNTS
    }
    by_wrk = run_wrk(port, requests, connections=max(CONNECTION_COUNTS), seconds=seconds)
    before = _Round(loop, by_connections, by_wrk, LoadResult(), LoadResult())
    rate = _OPEN_LOOP_SHARE * before.max_per_second
    paced = lower_bound.run_burst(2 * seconds, rate=rate / workers)
    return replace(before, bare_paced=paced, opened=run_open_loop(port, requests, rate=rate, seconds=2 * seconds))


def _summarize_rounds(rounds: list[_Round]) -> dict[str, Any]:
    bare, paced = [one.lower_bound for one in rounds], [one.paced_lower_bound for one in rounds]
    return {
        "bare": sum(bare, LoadResult()).summarize(),
        "http": {
            str(count): _compare_with_lower_bound([one.closed_loop[count] for one in rounds], bare)
            for count in CONNECTION_COUNTS
        },
        "limit_per_second": round(float(np.median([one.max_per_second for one in rounds])), 1),
        "limit_x_bare": round(
            float(np.median([one.max_per_second * one.lower_bound.p50_seconds for one in rounds])), 3
        ),
        "bare_at_60_percent": sum(paced, LoadResult()).summarize(),
        "open_at_60_percent": _compare_with_lower_bound([one.open_loop for one in rounds], paced),
    }


def _compare_with_lower_bound(loads: list[LoadResult], lower_bound: list[LoadResult]) -> dict[str, Any]:
    """All rounds together; and by round, in the middle of them: what p50 is of the bare calls', and p99."""
    ratios = [one.p50_seconds / other.p50_seconds for one, other in zip(loads, lower_bound, strict=True)]
    p99 = [one.summarize()["p99_ms"] for one in loads]
    return sum(loads, LoadResult()).summarize() | {
        "x_bare_p50": round(float(np.median(ratios)), 3),
        "p99_ms_by_round": p99,
        "p99_ms_median": float(np.median(p99)),
    }


def _measure_ann_recall(store: Path, port: int, requests: list[bytes], histories: list[list[int]]) -> float:
    """Share of the exact answer in the answers over HTTP."""

    async def fetch_ids() -> list[list[int]]:
        line = HttpConnection(port)
        answers = [json.loads((await line.send(request))[1])["ids"] for request in requests]
        line.close()
        return answers

    answers = asyncio.run(fetch_ids())
    release = open_release(Store.open(store))
    shares = []
    for history, ids in zip(histories, answers, strict=False):
        vectors = release.index.get_vectors(release.item_ids.to_rows(history))[None]
        assert release.encoder is not None
        vector = release.encoder.encode_users(to_feature_frame([{}], {}), vectors, np.array([len(history)]))
        exact = release.item_ids.to_ids(release.index.search_exact(vector, K).rows[0])
        shares.append(len(set(exact) & set(ids)) / K)
    return round(float(np.mean(shares)), 4)


def _print_result(encoder: str, result: dict[str, Any]) -> None:
    rows = []
    for processes, served in result["by_processes"].items():
        name = "1 process" if processes == "1" else f"{processes} processes"
        lines = {"bare calls beside it": served["bare"]}
        lines |= {f"{name}, {count} at a time": one for count, one in served["http"].items()}
        lines["bare calls at the pace of 60 %"] = served["bare_at_60_percent"]
        lines[f"{name}, {_OPEN_LOOP_SHARE:.0%} of the limit"] = served["open_at_60_percent"]
        rows += [_format_row(line, one) for line, one in lines.items()]
    columns = ["", "p50 ms", "p99 ms", "p99, middle round", "a second", "x bare p50", "generator, cores"]
    print_table(f"{encoder} tower, k {K}, ANN recall {result['ann_recall']}", columns, rows)
    last, cores = result["by_processes"][str(max(WORKER_COUNTS))], describe_environment()["machine"]["cores"]
    console.print(
        f"limit {last['limit_per_second']:.0f} a second: {last['limit_x_bare'] / cores:.2f} × {cores} cores / bare p50"
    )


def _format_row(name: str, one: Mapping[str, Any]) -> list[str]:
    by_http = "x_bare_p50" in one
    return [
        *(name, f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}", f"{one['p99_ms_median']:.2f}" if by_http else ""),
        *(f"{one['per_second']:.0f}", f"{one['x_bare_p50']:.2f}" if by_http else ""),
        f"{one['generator_cpu']:.2f}" if by_http else "",
    ]


if __name__ == "__main__":
    main()
