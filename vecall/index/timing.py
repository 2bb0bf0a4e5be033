"""Milliseconds of searches and scans of single queries, measured on this machine."""

import time

import numpy as np

from vecall.arrays import Vectors
from vecall.index.base import Index, SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.sampling import sample_bitmap
from vecall.index.stored_vectors import StoredVectors

TIMED_QUERIES = 60  # queries of which a median latency is taken
_SCAN_SAMPLE_ROWS = 100_000  # rows of a timed scan; fewer would fit into the CPU cache


def measure_median_ms(
    index: Index, queries: Vectors, k: int, search_params: SearchParams, allowed: Bitmap | None = None
) -> float:
    """Median milliseconds of a search of one query."""
    seconds = []
    for query in queries[:TIMED_QUERIES]:
        start = time.perf_counter()
        index.search(query[None], k, search_params=search_params, allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(seconds)), 4)


def measure_scan_ms_per_row(vectors: StoredVectors, queries: Vectors) -> float:
    """Median milliseconds per row of an exact scan of random rows."""
    allowed = sample_bitmap(vectors.size, min(vectors.size, _SCAN_SAMPLE_ROWS))
    seconds = []
    for query in queries[: TIMED_QUERIES // 3]:
        start = time.perf_counter()
        vectors.search_exact(query[None], min(100, allowed.count), allowed=allowed)
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds)) / allowed.count
