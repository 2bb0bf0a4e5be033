"""Cells of `benchmarks/service.py --channels`: all channels beside vectors alone, and final lists with LightGBM."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

from harness.service.load import (
    HttpConnection,
    LoadResult,
    build_post,
    run_closed_loop,
    run_open_loop,
    summarize_rounds,
)
from harness.service.processes import ServerProcess
from harness.service.users import HISTORY_LENGTH, K

N_CANDIDATES, FINAL_K = 500, 20
_OPEN_LOOP_SHARE = 0.6  # rate of the open loop, of the largest throughput of the closed loops
_LIMIT_CONNECTIONS = (1, 4)


def measure_channels(store: Path, histories: list[list[int]], seconds: float, rounds: int) -> dict[str, Any]:
    """Measure recalls by vectors alone and by all channels in turns, and final lists, with one worker.

    Args:
        store: of a release that asks all channels by default and has a ranker.
        histories: of the requests.
        seconds: duration of each measurement of a round.
        rounds: number of rounds.
    """
    options = {"exclude_seen": False}
    vectors = [build_post("/v1/recall", {"history": h, "k": K, "channels": ["vector"], **options}) for h in histories]
    channels = [build_post("/v1/recall", {"history": h, "k": K, **options}) for h in histories]
    lists = [
        build_post("/v1/recommend", {"history": h, "k": FINAL_K, "candidates": N_CANDIDATES, **options})
        for h in histories
    ]
    loads: dict[str, list[LoadResult]] = {
        "vectors": [],
        "channels": [],
        "lists": [],
        "lists_limit": [],
        "lists_open": [],
    }
    with ServerProcess(store) as server:
        asked = _check_answers(server.port, histories[0])
        for requests in (vectors, channels, lists):
            run_closed_loop(server.port, requests, connections=1, seconds=seconds)  # warm-up
        for _ in range(rounds):
            for name, requests in (("vectors", vectors), ("channels", channels), ("lists", lists)):
                loads[name].append(run_closed_loop(server.port, requests, connections=1, seconds=seconds))
            limits = [
                run_closed_loop(server.port, lists, connections=count, seconds=seconds) for count in _LIMIT_CONNECTIONS
            ]
            best = max(limits, key=lambda load: load.requests_per_second)
            loads["lists_limit"].append(best)
            rate = _OPEN_LOOP_SHARE * best.requests_per_second
            loads["lists_open"].append(run_open_loop(server.port, lists, rate=rate, seconds=2 * seconds))
    ratios = [
        both.p50_seconds / alone.p50_seconds for both, alone in zip(loads["channels"], loads["vectors"], strict=True)
    ]
    summaries = {name: sum(parts, LoadResult()).summarize() for name, parts in loads.items()}
    summaries["lists_open"] = summarize_rounds(loads["lists_open"])
    return {
        "k": K,
        "history": HISTORY_LENGTH,
        "candidates": N_CANDIDATES,
        "asked": asked,
        "channels_x_vectors_p50": round(float(np.median(ratios)), 3),
        **summaries,
    }


def _check_answers(port: int, history: list[int]) -> dict[str, int]:
    """Return the number of items of each channel that a recall asks, after checking that final lists are ranked.

    Raises:
        SystemExit: nothing was ranked.
    """

    async def fetch(path: str) -> Any:
        connection = HttpConnection(port)
        request = {"history": history, "exclude_seen": False, "explain": True}
        body = (await connection.send(build_post(path, request)))[1]
        connection.close()
        return json.loads(body)

    final = asyncio.run(fetch("/v1/recommend"))
    if final["ranker"] != "lightgbm" or final["degraded"]:
        raise SystemExit(f"ranked by {final['ranker']}, without {final['degraded']}: is lightgbm installed?")
    return {name: facts["count"] for name, facts in final["plan"]["channels"].items()}
