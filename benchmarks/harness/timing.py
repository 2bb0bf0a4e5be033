"""Latencies of calls, in milliseconds."""

import time
from collections.abc import Callable, Sequence

import numpy as np


def time_ms(call: Callable[[], object]) -> float:
    """Return the wall time of a call in milliseconds."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def compute_percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile as `p50_ms` and `p99_ms`; NaN of no latencies."""
    p50, p99 = np.percentile(latencies_ms, [50, 99]) if len(latencies_ms) else (float("nan"),) * 2
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
