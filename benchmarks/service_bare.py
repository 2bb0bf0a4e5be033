"""The calls under a recall, in a loop and one thread: ids to rows, history vectors, ONNX tower, index.

python benchmarks/service_bare.py STORE SECONDS
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from clustered import Clusters
from service_users import K, asked

from vecall.data.fields import frame_of
from vecall.release.bundle import open_release
from vecall.release.store import Store
from vecall.service.threads import one_core_each


def main() -> None:
    store, seconds = Path(sys.argv[1]), float(sys.argv[2])
    release = open_release(Store.open(store))
    encoder, effort = release.encoder, release.effort
    if encoder is None or effort is None:
        raise SystemExit(f"{store}: the release needs towers and an index")
    histories = [release.items.rows(one) for one in asked(Clusters(release.index.size, release.index.dim))]
    nothing, hard = frame_of([{}], {}), effort.at(K)
    one_core_each()
    took: list[float] = []
    ends = time.perf_counter() + seconds + 1
    while time.perf_counter() < ends:
        rows = histories[len(took) % len(histories)]
        began = time.perf_counter()
        vector = encoder.encode_users(nothing, release.index.vectors(rows)[None], np.array([len(rows)]))
        release.index.search(vector, K, effort=hard)
        took.append(time.perf_counter() - began)
    kept = took[len(took) // 10 :]
    p50, p99 = np.percentile(kept, [50, 99]) * 1e3
    print(json.dumps({"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "per_second": round(len(kept) / sum(kept), 1)}))


if __name__ == "__main__":
    main()
