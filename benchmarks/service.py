"""Measure recalls over HTTP against the lower bound of their own computations: a history in, 500 ids and scores out.

    python benchmarks/service.py [--items 1_000_000] [--dim 128] [--seconds 2] [--rounds 5] [--channels]

The lower bound encodes a history by ONNX Runtime and searches the index, in one thread of a process of its own. HTTP is
`vecall serve` with one worker and with one per core; this process sends it the same histories. Both take turns of a few
seconds, so that a ratio compares measurements of the same minute. Calls with pauses between them are slower than calls
in a loop, which keep code and data in the processor's caches: the lower bound is measured at the pace of the open loop
too. The maximum throughput is also measured by `wrk`, where it is installed. ANN recall is that of HTTP answers.

With --rates instead, of releases with string ids of the given sizes: memory of one process and of one per core, recalls
over one connection and at 500 per second, the highest rate whose p99 is below 10 ms, and, with --switches, answers and
memory while two releases take turns.

    python benchmarks/service.py --rates 1_000_000 10_000_000 --switches

With --channels instead: recalls by all channels beside recalls by vectors alone, in turns, and final lists of 20 out of
500 candidates that a LightGBM ranker of 300 trees orders.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.clustered_vectors import ClusteredVectors
from harness.environment import (
    RESULTS_DIR,
    describe_environment,
    make_child_environment,
    read_json,
    read_load_average,
    write_json,
)
from harness.service.channel_cells import measure_channels
from harness.service.load import (
    HttpConnection,
    LoadResult,
    build_post,
    run_closed_loop,
    run_open_loop,
    run_wrk,
    summarize_rounds,
)
from harness.service.processes import WORKER_COUNTS, LowerBoundProcess, ServerProcess
from harness.service.rate_cells import RELEASE_NAMES, measure_rates, measure_switches, print_rates
from harness.service.users import HISTORY_LENGTH, K, locate_vectors, make_query_histories
from harness.tables import console, print_table
from vecall.data.request_features import to_feature_frame
from vecall.release.release import open_release
from vecall.release.store import Store

CONNECTION_COUNTS = (1, 2, 4, 8)
_OPEN_LOOP_SHARE = 0.6  # rate of the open loop, of the maximum that the closed loops reached
_RECALL_QUERIES = 100  # HTTP answers that ANN recall is measured on


def main() -> None:
    """Measure each encoder, publishing its store first where --work lacks it."""
    options = _parse_options()
    options.work.mkdir(parents=True, exist_ok=True)
    pool = ClusteredVectors(options.items, options.dim)
    if options.channels:
        store = _publish(options, "mean", "--channels")
        result = {"facts": describe_environment()}
        result |= measure_channels(store, make_query_histories(pool), options.seconds, options.rounds)
        write_json(options.out, read_json(options.out) | {"channels": result | {"load_after": read_load_average()}})
        _print_channels(result)
        return
    if options.rates:
        _measure_rates(options)
        return
    for encoder in options.encoders:
        store = _publish(options, encoder)
        result = {"facts": describe_environment()} | measure(store, pool, options.seconds, options.rounds)
        write_json(options.out, read_json(options.out) | {encoder: result | {"load_after": read_load_average()}})
        _print_result(encoder, result)


def _publish(options: argparse.Namespace, encoder: str, *flags: str) -> Path:
    """Publish a store in --work, unless it is there, and return its directory."""
    name = "-".join([encoder, *(flag.strip("-") for flag in flags), str(options.items), str(options.dim)])
    store: Path = options.work / name
    if not (store / "CURRENT").exists():
        _run_publisher(store, options.items, options.dim, "--encoder", encoder, *flags)
    return store


def _run_publisher(store: Path, items: int, dim: int, *flags: str) -> None:
    """Publish in a process of its own, so that torch is not loaded here."""
    command = [sys.executable, "-m", "harness.service.store", str(store), "--items", str(items), "--dim", str(dim)]
    subprocess.run([*command, *flags], check=True, env=make_child_environment())


def _measure_rates(options: argparse.Namespace) -> None:
    """Measure releases of each size; what was measured before is kept under its size."""
    for items in options.rates:
        pools = [ClusteredVectors(items, options.dim, seed) for seed in range(len(RELEASE_NAMES))]
        store = options.work / f"strings-{items}-{options.dim}"
        for pool, name in zip(pools if options.switches else pools[:1], RELEASE_NAMES, strict=False):
            if not (store / "releases" / name).exists():
                flags = ["--string-ids", "--name", name, "--seed", str(pool.seed)]
                _run_publisher(store, items, options.dim, *flags)
        Store.open(store).activate(RELEASE_NAMES[0])
        result = {"facts": describe_environment()} | measure_rates(store, pools[0], options.seconds, options.rounds)
        if options.switches:
            files = [locate_vectors(store, pool) for pool in pools]
            result["switches"] = measure_switches(store, pools[0], files, options.switch_seconds)
        result["load_after"] = read_load_average()
        write_json(options.rates_out, read_json(options.rates_out) | {f"{items} items": result})
        print_rates(items, result)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=["mean", "causal"])
    parser.add_argument("--channels", action="store_true", help="measure channels and final lists instead")
    parser.add_argument(
        "--rates", type=int, nargs="+", metavar="ITEMS", help="measure fixed rates at these sizes instead"
    )
    parser.add_argument("--switches", action="store_true", help="with --rates: switch between two releases, too")
    parser.add_argument("--switch-seconds", type=float, default=30, help="until all processes must have followed")
    parser.add_argument("--rates-out", type=Path, default=RESULTS_DIR / "service-rates.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vecall-service")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "service.json")
    return parser.parse_args()


def measure(store: Path, pool: ClusteredVectors, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure the lower bound and HTTP in turns, by number of workers and connections.

    Args:
        store: of a release with towers over the pool.
        pool: item vectors.
        seconds: duration of each measurement of a round.
        rounds: number of rounds per number of workers.
    """
    histories = make_query_histories(pool)
    requests = [build_post("/v1/recall", {"history": ids, "k": K, "exclude_seen": False}) for ids in histories]
    with ServerProcess(store) as server:
        recall = _measure_ann_recall(store, server.port, requests[:_RECALL_QUERIES], histories)
    by_workers = {}
    with LowerBoundProcess(store) as lower_bound:
        for workers in WORKER_COUNTS:
            with ServerProcess(store, "--workers", str(workers)) as server:
                run_closed_loop(server.port, requests, connections=4 * workers, seconds=seconds)  # warm-up
                measured = [_measure_round(lower_bound, server.port, workers, requests, seconds) for _ in range(rounds)]
            by_workers[str(workers)] = _summarize_rounds(measured)
    return {"k": K, "history": HISTORY_LENGTH, "ann_recall": recall, "by_processes": by_workers}


@dataclass(frozen=True)
class _Round:
    """Measurements of about a minute, short enough that the machine's other load hits all of them alike.

    Attributes:
        lower_bound: calls in a loop.
        closed_loop: HTTP by number of connections.
        wrk_per_second: answers per second; None without `wrk`.
        paced_lower_bound: calls at the rate of `open_loop` per worker.
        open_loop: HTTP at a share of this round's maximum throughput.
    """

    lower_bound: LoadResult
    closed_loop: dict[int, LoadResult]
    wrk_per_second: float | None
    paced_lower_bound: LoadResult
    open_loop: LoadResult

    @property
    def max_per_second(self) -> float:
        """Largest throughput of the closed loops, in answers per second."""
        rates = [load.requests_per_second for load in self.closed_loop.values()]
        return max(rates + ([self.wrk_per_second] if self.wrk_per_second else []))


def _measure_round(
    lower_bound: LowerBoundProcess, port: int, workers: int, requests: list[bytes], seconds: float
) -> _Round:
    loop = lower_bound.run_burst(seconds)
    by_connections = {
        count: run_closed_loop(port, requests, connections=count, seconds=seconds) for count in CONNECTION_COUNTS
    }
    wrk_per_second = run_wrk(port, requests, connections=max(CONNECTION_COUNTS), seconds=seconds)
    closed = _Round(loop, by_connections, wrk_per_second, LoadResult(), LoadResult())
    rate = _OPEN_LOOP_SHARE * closed.max_per_second
    paced = lower_bound.run_burst(2 * seconds, rate=rate / workers)
    opened = run_open_loop(port, requests, rate=rate, seconds=2 * seconds)
    return replace(closed, paced_lower_bound=paced, open_loop=opened)


def _summarize_rounds(rounds: list[_Round]) -> dict[str, Any]:
    loops, paced = [r.lower_bound for r in rounds], [r.paced_lower_bound for r in rounds]
    max_per_second = np.median([r.max_per_second for r in rounds])
    max_by_lower_bound = np.median([r.max_per_second * r.lower_bound.p50_seconds for r in rounds])
    return {
        "bare": sum(loops, LoadResult()).summarize(),
        "http": {
            str(count): _compare_with_lower_bound([r.closed_loop[count] for r in rounds], loops)
            for count in CONNECTION_COUNTS
        },
        "limit_per_second": round(float(max_per_second), 1),
        "limit_x_bare": round(float(max_by_lower_bound), 3),
        "bare_at_60_percent": sum(paced, LoadResult()).summarize(),
        "open_at_60_percent": _compare_with_lower_bound([r.open_loop for r in rounds], paced),
    }


def _compare_with_lower_bound(loads: list[LoadResult], lower_bound: list[LoadResult]) -> dict[str, Any]:
    """Summarize the rounds, and add the median over rounds of the p50's ratio."""
    ratios = [load.p50_seconds / bound.p50_seconds for load, bound in zip(loads, lower_bound, strict=True)]
    return summarize_rounds(loads) | {"x_bare_p50": round(float(np.median(ratios)), 3)}


def _measure_ann_recall(store: Path, port: int, requests: list[bytes], histories: list[list[int]]) -> float:
    """Return the mean share of the exact result in HTTP answers.

    Args:
        store: what the service serves.
        port: of the service.
        requests: Q of them.
        histories: of the requests; more than Q are ignored.
    """

    async def fetch_ids() -> list[list[int]]:
        connection = HttpConnection(port)
        answers = [json.loads((await connection.send(request))[1])["ids"] for request in requests]
        connection.close()
        return answers

    answers = asyncio.run(fetch_ids())
    release = open_release(Store.open(store))
    assert release.encoder is not None
    recalls = []
    for history, ids in zip(histories, answers, strict=False):
        vectors = release.vectors.get_vectors(release.item_ids.to_rows(history))[None]  # [1, L, D]
        query = release.encoder.encode_users(to_feature_frame([{}], {}), vectors, np.array([len(history)]))
        exact_ids = release.item_ids.to_ids(release.vectors.search_exact(query, K).rows[0])
        recalls.append(len(set(exact_ids) & set(ids)) / K)
    return round(float(np.mean(recalls)), 4)


def _print_result(encoder: str, result: dict[str, Any]) -> None:
    rows = []
    for workers, measured in result["by_processes"].items():
        name = "1 worker" if workers == "1" else f"{workers} workers"
        lines = {"lower bound": measured["bare"]}
        lines |= {f"{name}, {count} connections": load for count, load in measured["http"].items()}
        lines[f"lower bound, paced at {_OPEN_LOOP_SHARE:.0%}"] = measured["bare_at_60_percent"]
        lines[f"{name}, open loop at {_OPEN_LOOP_SHARE:.0%} of the limit"] = measured["open_at_60_percent"]
        rows += [_format_row(line, load) for line, load in lines.items()]
    columns = ["", "p50 ms", "p99 ms", "p99, median round", "per second", "x lower bound p50", "generator, cores"]
    print_table(f"{encoder} tower, k {K}, ANN recall {result['ann_recall']}", columns, rows)
    last, cores = result["by_processes"][str(max(WORKER_COUNTS))], describe_environment()["machine"]["cores"]
    console.print(
        f"limit {last['limit_per_second']:.0f} per second: {last['limit_x_bare'] / cores:.2f} × {cores} cores / "
        "p50 of the lower bound"
    )


def _print_channels(result: dict[str, Any]) -> None:
    labels = {
        "vectors": "recall, vectors alone",
        "channels": "recall, all channels",
        "lists": f"final list of {result['candidates']} candidates",
        "lists_limit": "final lists, as many as there can be",
        "lists_open": f"final lists, open loop at {_OPEN_LOOP_SHARE:.0%} of the limit",
    }
    rows = [
        [label, f"{load['p50_ms']:.2f}", f"{load['p99_ms']:.2f}", f"{load['per_second']:.0f}", str(load["failed"])]
        for label, load in ((label, result[name]) for name, label in labels.items())
    ]
    print_table(f"k {result['k']}, one worker", ["", "p50 ms", "p99 ms", "per second", "failed"], rows)
    console.print(f"all channels: {result['channels_x_vectors_p50']:.2f} × the p50 of vectors alone; {result['asked']}")


def _format_row(name: str, load: Mapping[str, Any]) -> list[str]:
    is_http = "x_bare_p50" in load
    latencies = [f"{load['p50_ms']:.2f}", f"{load['p99_ms']:.2f}", f"{load['p99_ms_median']:.2f}" if is_http else ""]
    ratio = f"{load['x_bare_p50']:.2f}" if is_http else ""
    generator = f"{load['generator_cpu']:.2f}" if is_http else ""
    return [name, *latencies, f"{load['per_second']:.0f}", ratio, generator]


if __name__ == "__main__":
    main()
