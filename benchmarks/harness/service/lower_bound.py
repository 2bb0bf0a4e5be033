"""The calls under a recall, in a loop and one thread: ids to rows, history vectors, ONNX tower, index.

python benchmarks/service_bare.py STORE

Each line of standard input asks for one burst, `{"seconds": 2, "rate": 500}`; its answer is a line of what each call
took. With a rate calls are due by a Poisson process and wait for one another, as requests at a service do; time counts
from when a call was due.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness.clustered_vectors import ClusteredVectors
from harness.service.load import iterate_arrivals
from harness.service.users import K, make_query_histories

from vecall.data.request_features import to_feature_frame
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.service.threads import limit_faiss_to_one_thread


def main() -> None:
    call = _make_call(Path(sys.argv[1]))
    for _ in range(200):  # warm up
        call()
    for line in sys.stdin:
        burst = json.loads(line)
        began, cpu = time.perf_counter(), time.process_time()
        took = (
            _run_open_loop(call, burst["seconds"], burst["rate"])
            if burst["rate"]
            else _run_closed_loop(call, burst["seconds"])
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"calls": [round(one, 7) for one in took], "took": seconds, "cpu": cpu}), flush=True)


def _make_call(store: Path) -> Callable[[], object]:
    """One recall's calls for the next history."""
    release = open_release(Store.open(store))
    encoder, effort = release.encoder, release.search_param_curve
    if encoder is None or effort is None:
        raise SystemExit(f"{store}: the release needs towers and an index")
    histories = [
        release.item_ids.to_rows(one)
        for one in make_query_histories(ClusteredVectors(release.index.size, release.index.dim))
    ]
    nothing, hard, number = to_feature_frame([{}], {}), effort.look_up(K), 0
    limit_faiss_to_one_thread()

    def recall_once() -> None:
        nonlocal number
        rows = histories[number % len(histories)]
        vector = encoder.encode_users(nothing, release.index.get_vectors(rows)[None], np.array([len(rows)]))
        release.index.search(vector, K, search_params=hard)
        number += 1

    return recall_once


def _run_closed_loop(call: Callable[[], object], seconds: float) -> list[float]:
    took, now = [], time.perf_counter()
    ends = now + seconds
    while now < ends:
        began = time.perf_counter()
        call()
        now = time.perf_counter()
        took.append(now - began)
    return took


def _run_open_loop(call: Callable[[], object], seconds: float, rate: float) -> list[float]:
    took = []
    for due in iterate_arrivals(rate, seconds):
        call()
        took.append(time.perf_counter() - due)
    return took


if __name__ == "__main__":
    main()
