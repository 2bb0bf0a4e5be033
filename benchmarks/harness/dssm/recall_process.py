"""A serving process, fresh and without torch: opens a store, answers users one by one, and says what that took.

python benchmarks/served.py STORE USERS.npy ANSWERS.npz --feature profile -k 100 --rounds 5

USERS.npy holds [U, F] features; ANSWERS.npz takes ids and scores [U, k]; stdout takes the JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness.environment import read_load_average

from vecall import Query, open_recaller
from vecall.recall.recaller import Recaller

WARMUP_REQUESTS = 50  # requests that are not timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("users", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--feature", required=True)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    users = np.load(asked.users, allow_pickle=False).tolist()
    requests = [Query(user={asked.feature: one}, k=asked.k, explain=True) for one in users]
    before, began = read_memory_bytes("VmRSS"), time.perf_counter()
    with open_recaller(asked.store) as recaller:
        opened = time.perf_counter() - began
        first = time.perf_counter()
        recaller.recall(requests[0])
        first_ms = (time.perf_counter() - first) * 1e3
        rounds = [time_round(recaller, requests) for _ in range(asked.rounds)]
        answers = [recaller.recall(request) for request in requests]
    np.savez(
        asked.answers, ids=[one.ids for one in answers], scores=np.array([one.scores for one in answers], np.float32)
    )
    measured = {
        "open_seconds": round(opened, 2),
        "rss_before": before,
        "rss_after": read_memory_bytes("VmRSS"),
        "rss_peak": read_memory_bytes("VmHWM"),
        "first_ms": round(first_ms, 2),
        "paths": sorted({str(one.plan.path) for one in answers if one.plan is not None}),
        "rounds": rounds,
        "torch_loaded": "torch" in sys.modules,
    }
    print(json.dumps(measured))


def time_round(recaller: Recaller, requests: list[Query]) -> dict[str, Any]:
    """Milliseconds of one recall, everything included, over all users one after the other."""
    for request in requests[:WARMUP_REQUESTS]:
        recaller.recall(request)
    total, encode, search = [], [], []
    for request in requests:
        began = time.perf_counter()
        answer = recaller.recall(request)
        total.append((time.perf_counter() - began) * 1e3)
        if answer.plan is not None:
            encode.append(answer.plan.ms["encode"])
            search.append(answer.plan.ms["search"])
    p50, p99 = np.percentile(total, [50, 99])
    return {
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(max(total), 3),
        "tower_p50_ms": round(float(np.median(encode)), 3),
        "search_p50_ms": round(float(np.median(search)), 3),
        "load_average": read_load_average(),
    }


def read_memory_bytes(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


if __name__ == "__main__":
    main()
