"""Publishing into Milvus, beside plain calls of the client that insert and index the same vectors."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.filters.grid import publish_pool
from harness.milvus.pool import EF_CONSTRUCTION, M, MilvusPool

_COLLECTION = "bare"
_INSERT_ROWS = 10_000
_INT64, _FLOAT_VECTOR = 5, 101  # of pymilvus.DataType
_POLL_SECONDS = 0.5
_TIMEOUT_SECONDS = 600.0


def measure_publish(pool: MilvusPool) -> dict[str, Any]:
    """Measure the seconds of the client's own calls, then those of `publish_vectors`, tuning included.

    The release stays for the other parts.
    """
    stages = _measure_bare_build(pool)
    start = time.perf_counter()
    publish_pool(pool.clusters, pool.directory, pool.index_settings)
    return {
        "publish_seconds": round(time.perf_counter() - start, 1),
        "bare_seconds": round(sum(stages.values()), 1),
        "bare_stages": stages,
    }


def _measure_bare_build(pool: MilvusPool) -> dict[str, float]:
    """Seconds by stage; the collection is dropped afterwards."""
    client = pool.connection.client
    if client.has_collection(_COLLECTION):
        client.drop_collection(_COLLECTION)
    items = pool.items
    stages: dict[str, Callable[[], None]] = {
        "insert": lambda: _insert(client, items),
        "flush": lambda: client.flush(_COLLECTION, timeout=_TIMEOUT_SECONDS),
        "index": lambda: _build_index(client, len(items)),
        "load": lambda: client.load_collection(_COLLECTION, timeout=_TIMEOUT_SECONDS),
    }
    seconds = {}
    for stage, run in stages.items():
        start = time.perf_counter()
        run()
        seconds[stage] = round(time.perf_counter() - start, 1)
    client.drop_collection(_COLLECTION)
    return seconds


def _insert(client: Any, items: Any) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", _INT64, is_primary=True)
    schema.add_field("vector", _FLOAT_VECTOR, dim=items.shape[1])
    client.create_collection(_COLLECTION, schema=schema)
    for start in range(0, len(items), _INSERT_ROWS):
        batch = items[start : start + _INSERT_ROWS].astype(np.float32)
        client.insert(_COLLECTION, [{"row": start + i, "vector": vector} for i, vector in enumerate(batch)])


def _build_index(client: Any, size: int) -> None:
    params = client.prepare_index_params()
    build = {"M": M, "efConstruction": EF_CONSTRUCTION}
    params.add_index(field_name="vector", index_type="HNSW", metric_type="IP", params=build, index_name="vector")
    client.create_index(_COLLECTION, params, sync=False)
    while True:
        state = client.describe_index(_COLLECTION, "vector")
        if str(state["state"]) == "Finished" and int(state["indexed_rows"]) >= size:
            return
        time.sleep(_POLL_SECONDS)
