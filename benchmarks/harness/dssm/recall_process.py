"""Time recalls in a new process without torch: open a store, recall for users one by one, report as JSON.

python -m harness.dssm.recall_process STORE USERS.npy --feature profile -k 100 --rounds 5

USERS.npy holds features [U, F]. The JSON goes to standard output.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.environment import read_load_average, read_memory_bytes
from harness.timing import compute_percentiles
from vecall import Query, open_recaller
from vecall.recall.recaller import Recaller

WARMUP_REQUESTS = 50


def main() -> None:
    """Measure what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("users", type=Path)
    parser.add_argument("--feature", required=True)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    users = np.load(options.users, allow_pickle=False).tolist()
    requests = [Query(user={options.feature: features}, k=options.k, explain=True) for features in users]
    bytes_before, start = read_memory_bytes(), time.perf_counter()
    with open_recaller(options.store) as recaller:
        open_seconds = time.perf_counter() - start
        start = time.perf_counter()
        recaller.recall(requests[0])
        first_ms = (time.perf_counter() - start) * 1e3
        rounds = [time_round(recaller, requests) for _ in range(options.rounds)]
        answers = [recaller.recall(request) for request in requests]
    measured = {
        "open_seconds": round(open_seconds, 2),
        "rss_before": bytes_before,
        "rss_after": read_memory_bytes(),
        "rss_peak": read_memory_bytes("VmHWM"),
        "first_ms": round(first_ms, 2),
        "paths": sorted({str(answer.plan.path) for answer in answers if answer.plan is not None}),
        "rounds": rounds,
        "torch_loaded": "torch" in sys.modules,
    }
    print(json.dumps(measured))


def time_round(recaller: Recaller, requests: list[Query]) -> dict[str, Any]:
    """Time whole recalls of all users, one after another, and their parts as `explain` reports them."""
    for request in requests[:WARMUP_REQUESTS]:
        recaller.recall(request)
    total_ms, encode_ms, search_ms = [], [], []
    for request in requests:
        start = time.perf_counter()
        answer = recaller.recall(request)
        total_ms.append((time.perf_counter() - start) * 1e3)
        if answer.plan is not None:
            encode_ms.append(answer.plan.ms["encode"])
            search_ms.append(answer.plan.ms["search"])
    return {
        **compute_percentiles(total_ms),
        "max_ms": round(max(total_ms), 3),
        "tower_p50_ms": round(float(np.median(encode_ms)), 3),
        "search_p50_ms": round(float(np.median(search_ms)), 3),
        "load_average": read_load_average(),
    }


if __name__ == "__main__":
    main()
