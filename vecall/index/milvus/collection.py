"""Collections of a Milvus server: names, life cycle and row counts. A collection holds the vectors of one release."""

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.errors import EngineUnavailableError, StoreError
from vecall.index.milvus.client import MilvusConnection

ROW_FIELD, VECTOR_FIELD = "row", "vector"
ADMIN_TIMEOUT_SECONDS = 30.0  # of calls that only change or read the server's catalogue
MAX_INSERT_ROWS = 10_000
_MAX_MESSAGE_BYTES = 16 * 2**20  # of one insert or query; the server accepts 64 MiB
_LOAD_POLL_SECONDS = 0.2
_NAME_PREFIX = "vecall_"
_INT64, _FLOAT_VECTOR = 5, 101  # of pymilvus.DataType
STORE_ID_PATTERN = r"[0-9a-z]{8,32}"


def make_collection_name(store_id: str, unique_id: str) -> str:
    """Make the name of a collection of a store: `vecall_<store id>_<unique id>`, the latter 32 hexadecimal digits."""
    if not re.fullmatch(STORE_ID_PATTERN, store_id):
        raise StoreError(f"store id {store_id!r} cannot be part of a collection's name: expected {STORE_ID_PATTERN}")
    return f"{_NAME_PREFIX}{store_id}_{unique_id}"


def parse_store_id(name: str) -> str:
    """Return the id of the store that a collection belongs to; empty if its name is not one of vecall's."""
    match = re.fullmatch(f"{_NAME_PREFIX}({STORE_ID_PATTERN})_[0-9a-f]{{32}}", name)
    return match[1] if match else ""


def list_collections(connection: MilvusConnection, store_id: str) -> list[str]:
    """List the collections of a store, sorted; they may be in use, half-built or left over."""
    names: Iterable[str] = connection.call(
        "list_collections", timeout=ADMIN_TIMEOUT_SECONDS, action="listing collections"
    )
    pattern = re.compile(f"{_NAME_PREFIX}{re.escape(store_id)}_[0-9a-f]{{32}}")
    return sorted(name for name in names if pattern.fullmatch(name))


def create_collection(connection: MilvusConnection, name: str, dim: int, *, shards: int) -> None:
    """Create an empty collection of vectors [dim] with int64 rows as keys, searched by inner product.

    Raises:
        EngineUnavailableError: the server does not answer, or refuses.
    """
    schema = connection.client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field(ROW_FIELD, _INT64, is_primary=True)
    schema.add_field(VECTOR_FIELD, _FLOAT_VECTOR, dim=dim)
    connection.call(
        "create_collection",
        name,
        schema=schema,
        num_shards=shards,
        timeout=ADMIN_TIMEOUT_SECONDS,
        action=f"creating collection {name}",
    )


def insert_rows(
    connection: MilvusConnection, name: str, start: int, half_vectors: HalfVectors, *, timeout: float
) -> None:
    """Insert the vectors [n, D] of rows start .. start + n - 1 in one message.

    An insert that failed may have been carried out, and a repeated one adds the rows again.

    Raises:
        EngineUnavailableError: the server does not answer, or refuses.
        StoreError: it counts other rows than were sent.
    """
    vectors = half_vectors.astype(np.float32)
    data = [{ROW_FIELD: start + i, VECTOR_FIELD: vector} for i, vector in enumerate(vectors)]
    answer = connection.call(
        "insert", name, data, timeout=timeout, action=f"inserting rows {start:,} to {start + len(data) - 1:,}"
    )
    if answer["insert_count"] != len(data):
        raise StoreError(
            f"Milvus at {connection.endpoint} reports {answer['insert_count']:,} inserted rows, expected "
            f"{len(data):,}: publish again"
        )


def compute_insert_size(dim: int) -> int:
    """Rows of one insert, at most 10,000: a message must stay well below 64 MiB."""
    return max(1, min(MAX_INSERT_ROWS, _MAX_MESSAGE_BYTES // (4 * dim + 16)))


def flush(connection: MilvusConnection, name: str, *, timeout: float) -> None:
    """Write the inserted rows to the server's storage, and wait for it."""
    connection.call("flush", name, timeout=timeout, action=f"flushing collection {name}")


def count_flushed_rows(connection: MilvusConnection, name: str) -> int:
    """Number of rows in the server's storage, repeated ones included; needs no loaded collection."""
    stats = connection.call(
        "get_collection_stats", name, timeout=ADMIN_TIMEOUT_SECONDS, action=f"counting rows of {name}"
    )
    return int(stats.get("row_count", 0))


def count_rows(connection: MilvusConnection, name: str) -> int:
    """Number of rows of a loaded collection, all acknowledged writes included."""
    answer = connection.call(
        "query",
        name,
        filter="",
        output_fields=["count(*)"],
        consistency_level="Strong",
        timeout=ADMIN_TIMEOUT_SECONDS,
        action=f"counting rows of {name}",
    )
    return int(answer[0]["count(*)"])


def fetch_vectors(connection: MilvusConnection, name: str, rows: Rows, dim: int) -> Vectors:
    """Fetch stored vectors [n, dim] of rows [n] of a loaded collection, in their order; NaN where one is missing."""
    found = np.full((len(rows), dim), np.nan, dtype=np.float32)
    positions = {row: position for position, row in enumerate(rows.tolist())}
    step = compute_insert_size(dim)
    for start in range(0, len(rows), step):
        answer: list[dict[str, Any]] = connection.call(
            "query",
            name,
            filter=f"{ROW_FIELD} in {rows[start : start + step].tolist()}",
            output_fields=[ROW_FIELD, VECTOR_FIELD],
            consistency_level="Strong",
            timeout=ADMIN_TIMEOUT_SECONDS,
            action=f"reading vectors of {name}",
        )
        for entity in answer:  # in any order
            found[positions[entity[ROW_FIELD]]] = entity[VECTOR_FIELD]
    return found


def is_loaded(connection: MilvusConnection, name: str, *, timeout: float = ADMIN_TIMEOUT_SECONDS) -> bool:
    """Whether a collection can be searched.

    Raises:
        EngineUnavailableError: the server does not answer, or has no such collection.
    """
    return _get_load_progress(connection, name, timeout) == 100


def start_loading(
    connection: MilvusConnection, name: str, *, replicas: int, timeout: float = ADMIN_TIMEOUT_SECONDS
) -> None:
    """Let the server load a collection into the memory of its query nodes; returns before it is loaded."""
    connection.call(
        "load_collection",
        name,
        replica_number=replicas,
        _async=True,  # otherwise the client polls, without a look at the progress
        timeout=timeout,
        action=f"loading collection {name}",
    )


def load(connection: MilvusConnection, name: str, *, replicas: int, stall_seconds: float) -> None:
    """Load a collection and wait for it.

    Raises:
        EngineUnavailableError: the server does not answer, refuses, or makes no progress for `stall_seconds`.
    """
    start_loading(connection, name, replicas=replicas)
    progress, last_change = -1, time.monotonic()
    while (now_loaded := _get_load_progress(connection, name, ADMIN_TIMEOUT_SECONDS)) < 100:
        now = time.monotonic()
        if now_loaded != progress:
            progress, last_change = now_loaded, now
        elif now - last_change > stall_seconds:
            raise EngineUnavailableError(
                f"Milvus at {connection.endpoint} has loaded {progress} % of {name} and made no progress for "
                f"{stall_seconds / 60:g} min (index.milvus.build_stall_minutes): look at the server's log, for example "
                "for want of memory or of query nodes for index.milvus.replicas"
            )
        time.sleep(_LOAD_POLL_SECONDS)


def release(connection: MilvusConnection, name: str) -> None:
    """Take a collection out of the memory of the query nodes; it can be loaded again."""
    connection.call("release_collection", name, timeout=ADMIN_TIMEOUT_SECONDS, action=f"releasing collection {name}")


def drop(connection: MilvusConnection, name: str) -> None:
    """Delete a collection and the aliases that name it; one that does not exist is no error."""
    action = f"dropping collection {name}"
    with suppress(EngineUnavailableError):  # there is no such collection, or the next call tells what is wrong
        answer = connection.call("list_aliases", name, timeout=ADMIN_TIMEOUT_SECONDS, action=action)
        for alias in answer.get("aliases", ()):
            connection.call("drop_alias", alias, timeout=ADMIN_TIMEOUT_SECONDS, action=action)
    connection.call("drop_collection", name, timeout=ADMIN_TIMEOUT_SECONDS, action=action)


def point_alias(connection: MilvusConnection, alias: str, name: str) -> None:
    """Let an alias name a collection, for other tools: for a moment searches by it may still reach the old one."""
    action = f"pointing alias {alias} to {name}"
    try:
        connection.call("alter_alias", name, alias, timeout=ADMIN_TIMEOUT_SECONDS, action=action)
    except EngineUnavailableError:  # there is no such alias, or the server does not answer, which the next call tells
        connection.call("create_alias", name, alias, timeout=ADMIN_TIMEOUT_SECONDS, action=action)


def _get_load_progress(connection: MilvusConnection, name: str, timeout: float) -> int:
    """Progress of loading in percent."""
    answer = connection.call("get_load_state", name, timeout=timeout, action=f"asking whether {name} is loaded")
    state = getattr(answer["state"], "name", str(answer["state"]))
    if state == "NotExist":
        raise EngineUnavailableError(
            f"Milvus at {connection.endpoint} has no collection {name}: it was dropped, or the address or "
            "index.milvus.db names another server; activate or publish another release"
        )
    return 100 if state == "Loaded" else min(99, int(answer.get("progress", 0)))
