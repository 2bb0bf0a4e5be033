"""The HNSW index of a Milvus collection: its parameters, and building it with a deadline."""

import time

from vecall import progress
from vecall.errors import ConfigError, StoreError
from vecall.index.milvus.client import MilvusConnection
from vecall.index.milvus.collection import ADMIN_TIMEOUT_SECONDS, VECTOR_FIELD

INDEX_NAME = "vecall_hnsw"
# The server accepts other values when the index is created, and then never builds it.
M_RANGE, EF_CONSTRUCTION_RANGE = (4, 64), (8, 512)
_POLL_SECONDS = 0.5


def check_parameters(m: int, ef_construction: int) -> None:
    """Check the parameters of an index.

    Raises:
        ConfigError: the server would not build an index with them.
    """
    for key, value, (lowest, highest) in (
        ("M", m, M_RANGE),
        ("ef_construction", ef_construction, EF_CONSTRUCTION_RANGE),
    ):
        if not lowest <= value <= highest:
            raise ConfigError(
                f"index.{key}: {value} with engine 'milvus'; expected {lowest} to {highest}, other values are never "
                "built by Milvus: change it or leave it out"
            )


def build_index(
    connection: MilvusConnection, name: str, size: int, *, m: int, ef_construction: int, stall_seconds: float
) -> None:
    """Build the index over all N rows of a flushed collection, and wait for it.

    Args:
        connection: the server.
        name: of the collection.
        size: N.
        m: links per vector and level.
        ef_construction: candidates examined for a vector's links.
        stall_seconds: longest time without progress.

    Raises:
        ConfigError: the parameters are out of range.
        StoreError: the server fails to build it, or makes no progress for `stall_seconds`.
        EngineUnavailableError: the server does not answer, or refuses.
    """
    check_parameters(m, ef_construction)
    index_params = connection.client.prepare_index_params()
    index_params.add_index(
        field_name=VECTOR_FIELD,
        index_type="HNSW",
        metric_type="IP",
        index_name=INDEX_NAME,
        params={"M": m, "efConstruction": ef_construction},
    )
    connection.call(
        "create_index",
        name,
        index_params,
        sync=False,  # otherwise the client waits until the first Finished, or for ever
        timeout=ADMIN_TIMEOUT_SECONDS,
        action=f"creating the index of {name}",
    )
    _wait_until_built(connection, name, size, stall_seconds)


def _wait_until_built(connection: MilvusConnection, name: str, size: int, stall_seconds: float) -> None:
    """Wait for state Finished and N indexed rows; either alone comes too early."""
    indexed, last_change = -1, time.monotonic()
    state, pending = "", 0
    with progress.track("building the index in Milvus", size) as advance:
        while True:
            answer = (
                connection.call(
                    "describe_index",
                    name,
                    INDEX_NAME,
                    timeout=ADMIN_TIMEOUT_SECONDS,
                    action=f"asking for the index of {name}",
                )
                or {}
            )
            previous = (indexed, state, pending)
            indexed, pending = int(answer.get("indexed_rows", 0)), int(answer.get("pending_index_rows", 0))
            state = str(answer.get("state", "no index"))
            if (indexed, state, pending) != previous:
                last_change = time.monotonic()
                advance(max(0, min(indexed, size) - max(0, min(previous[0], size))))
            if state == "Finished" and indexed >= size:
                return
            if state == "Failed" or time.monotonic() - last_change > stall_seconds:
                break
            time.sleep(_POLL_SECONDS)
    reason = connection.get_index_failure(name, INDEX_NAME, timeout=ADMIN_TIMEOUT_SECONDS)
    what = "failed" if state == "Failed" else f"made no progress for {stall_seconds / 60:g} min"
    raise StoreError(
        f"Milvus at {connection.endpoint}: building the index of {name} {what}: state {state}, {max(indexed, 0):,} of "
        f"{size:,} rows indexed, {pending:,} pending; the server says: {reason or 'nothing'}; look at its log, and "
        "raise index.milvus.build_stall_minutes if it is only slow"
    )
