"""Lower bound of a recall's latency: its computations in one thread, without a service around them.

    python -m harness.service.lower_bound STORE

A call maps ids to rows, gathers the vectors of the history, runs the ONNX tower and searches the index. Each line of
standard input requests a burst, `{"seconds": 2, "rate": 500}`; each is answered by a line of JSON with the latencies.
Without a rate (null) calls follow one another. With a rate they are due by a Poisson process and queue like requests at
a service, and latency counts from the time when a call was due.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from harness.clustered_vectors import ClusteredVectors
from harness.service.load import iterate_arrivals
from harness.service.users import K, make_query_histories
from vecall.data.request_features import to_feature_frame
from vecall.release.release import open_release
from vecall.release.store import Store

_WARMUP_CALLS = 200


def main() -> None:
    """Serve bursts until standard input ends."""
    call = _make_call(Path(sys.argv[1]))
    for _ in range(_WARMUP_CALLS):
        call()
    for line in sys.stdin:
        burst = json.loads(line)
        start, cpu_start = time.perf_counter(), time.process_time()
        if burst["rate"]:
            latencies = _run_open_loop(call, burst["seconds"], burst["rate"])
        else:
            latencies = _run_closed_loop(call, burst["seconds"])
        wall_seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        result = {
            "latencies_seconds": [round(seconds, 7) for seconds in latencies],
            "wall_seconds": wall_seconds,
            "cpu_seconds": cpu_seconds,
        }
        print(json.dumps(result), flush=True)


def _make_call(store: Path) -> Callable[[], object]:
    """Return a function that performs the computations of a recall, for the next history at each call."""
    release = open_release(Store.open(store))
    encoder, curve = release.encoder, release.search_param_curve
    if encoder is None or curve is None:
        raise SystemExit(f"{store}: the release needs towers and a tuned index")
    pool = ClusteredVectors(release.vectors.size, release.vectors.dim)
    histories = [release.item_ids.to_rows(history) for history in make_query_histories(pool)]
    no_features, search_params, index = to_feature_frame([{}], {}), curve.look_up(K), 0
    faiss.omp_set_num_threads(1)  # as in the service

    def recall_once() -> None:
        nonlocal index
        rows = histories[index % len(histories)]
        vector = encoder.encode_users(no_features, release.vectors.get_vectors(rows)[None], np.array([len(rows)]))
        release.index.search(vector, K, search_params=search_params)
        index += 1

    return recall_once


def _run_closed_loop(call: Callable[[], object], seconds: float) -> list[float]:
    latencies, now = [], time.perf_counter()
    deadline = now + seconds
    while now < deadline:
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        latencies.append(now - start)
    return latencies


def _run_open_loop(call: Callable[[], object], seconds: float, rate: float) -> list[float]:
    latencies = []
    for due in iterate_arrivals(rate, seconds):
        call()
        latencies.append(time.perf_counter() - due)
    return latencies


if __name__ == "__main__":
    main()
