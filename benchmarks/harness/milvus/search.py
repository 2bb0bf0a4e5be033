"""Recalls through a Milvus server, beside bare searches of the client, and under filters."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from harness.filters.grid import CALLS_PER_TURN, KS, REGION_KINDS, FilterPool, measure_cells
from harness.milvus.pool import MilvusPool
from harness.timing import compute_percentiles, time_ms
from vecall import Query, open_recaller
from vecall.index.ann_recall import recall_per_query
from vecall.index.milvus.client import MilvusConnection
from vecall.recall.recaller import Recaller

_QUERIES = 500
_WARM_UP = 50
_THEMES = 10
_RATES = (0.5, 0.1, 0.01)
_EXCLUDED = (0, 500)


def measure_search(pool: MilvusPool) -> dict[str, Any]:
    """Measure whole recalls and bare searches with the same limit and ef, in turns.

    Where the planner scans rather than ask the server, as in small pools, there is no cell.
    """
    with open_recaller(pool.store) as recaller:
        if recaller.live_index.snapshot.seq:
            raise SystemExit(f"{pool.store} has the changes of a soak: give another --scratch")
        cells = [_measure_k(pool, recaller, k) for k in KS]
    return {"cells": [cell for cell in cells if cell]}


def _measure_k(pool: MilvusPool, recaller: Recaller, k: int) -> dict[str, Any] | None:
    vectors, snapshot = pool.clusters.make_queries(_QUERIES), recaller.live_index.snapshot
    stored, client = snapshot.release.vectors, pool.connection.client
    queries = [Query(vector=vector, k=k) for vector in vectors]
    with _record_searches() as searches:
        found = np.array([snapshot.to_rows(recaller.recall(query).ids) for query in queries])
    if not searches:
        return None
    name, options = searches[-1]
    recalls = recall_per_query(stored, vectors, found, stored.search_exact(vectors, k).rows)
    own_ms, bare_ms = [], []
    for start in range(0, len(vectors), CALLS_PER_TURN):
        turn = slice(start, start + CALLS_PER_TURN)
        own_ms += [time_ms(partial(recaller.recall, query)) for query in queries[turn]]
        bare_ms += [time_ms(partial(client.search, name, [vector], **options)) for vector in vectors[turn]]
    return {
        "k": k,
        "limit": options["limit"],
        "ef": options["search_params"]["params"]["ef"],
        "searches": len(searches),  # of the server; fewer than queries where a scan was cheaper
        "queries": len(queries),
        "recall": round(float(recalls.mean()), 4),
        "worst_1_percent": round(float(np.sort(recalls)[: _QUERIES // 100].mean()), 4),
        **compute_percentiles(own_ms[_WARM_UP:]),
        **{f"bare_{name}": value for name, value in compute_percentiles(bare_ms[_WARM_UP:]).items()},
    }


@contextmanager
def _record_searches() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yield a list of the searches that the client is asked for: collection, and options of the client's `search`."""
    searches: list[tuple[str, dict[str, Any]]] = []
    original = MilvusConnection.call

    def call(self: MilvusConnection, method: str, *arguments: Any, timeout: float, action: str, **options: Any) -> Any:
        if method == "search":
            searches.append((arguments[0], options))
        return original(self, method, *arguments, timeout=timeout, action=action, **options)

    MilvusConnection.call = call  # type: ignore[method-assign]
    try:
        yield searches
    finally:
        MilvusConnection.call = original  # type: ignore[method-assign]


def measure_filters(pool: MilvusPool, *, queries: int) -> dict[str, Any]:
    """Measure filtered recalls: random filters, and filters with, against and across the query's region."""
    filtered = FilterPool.open(pool.clusters, pool.directory, queries=queries, themes=_THEMES)
    return {
        "cells": [
            {"kind": kind} | cell
            for kind in ("random", *REGION_KINDS)
            for cell in measure_cells(filtered, kind, _RATES, _EXCLUDED)
        ]
    }
