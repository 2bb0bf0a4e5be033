"""Building the collection of a release: it is complete and compared with the local vectors, or dropped."""

import logging
import time
from dataclasses import dataclass

import numpy as np

from vecall import progress
from vecall.arrays import HalfVectors
from vecall.errors import StoreError, VecallError
from vecall.index.milvus import collection
from vecall.index.milvus.client import MilvusConnection
from vecall.index.milvus.hnsw_index import build_index, check_parameters
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.sampling import sample_rows
from vecall.index.scan import to_float32

logger = logging.getLogger(__name__)

_MAX_COMPARED_ROWS = 1_000
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class CollectionParams:
    """What a collection is built with.

    Attributes:
        m: links per vector and level.
        ef_construction: candidates examined for a vector's links.
        settings: of the server.
    """

    m: int
    ef_construction: int
    settings: MilvusSettings

    @property
    def stall_seconds(self) -> float:
        """Longest time without progress."""
        return 60 * self.settings.build_stall_minutes


def build_collection(
    connection: MilvusConnection, name: str, half_vectors: HalfVectors, params: CollectionParams
) -> None:
    """Create a collection, insert all vectors, index and load it, and compare it with the vectors.

    On any error the collection is dropped. Where that fails too, as without the server, it is left over: the caller has
    written down its name, so that it can be swept.

    Args:
        connection: the server.
        name: of the collection, see `make_collection_name`.
        half_vectors: [N, D] vectors by row; may be mapped from a file.
        params: of the index and the server.

    Raises:
        ConfigError: the parameters are out of range.
        StoreError: the collection is not what was inserted, or the server makes no progress.
        EngineUnavailableError: the server does not answer, or refuses.
    """
    check_parameters(params.m, params.ef_construction)
    size, dim = half_vectors.shape
    try:
        collection.create_collection(connection, name, dim, shards=params.settings.shards)
        _insert_all(connection, name, half_vectors, params.stall_seconds)
        _check_count(connection, size, collection.count_flushed_rows(connection, name))
        build_index(
            connection,
            name,
            size,
            m=params.m,
            ef_construction=params.ef_construction,
            stall_seconds=params.stall_seconds,
        )
        collection.load(connection, name, replicas=params.settings.replicas, stall_seconds=params.stall_seconds)
        _check_count(connection, size, collection.count_rows(connection, name))
        compare_vectors(connection, name, half_vectors)
    except BaseException:
        drop_quietly(connection, name)
        raise


def compare_vectors(connection: MilvusConnection, name: str, half_vectors: HalfVectors) -> None:
    """Compare 1,000 random rows of a loaded collection with the local vectors, bit by bit.

    Raises:
        StoreError: a vector is missing or differs.
        EngineUnavailableError: the server does not answer.
    """
    rows = sample_rows(len(half_vectors), _MAX_COMPARED_ROWS, _SAMPLE_SEED)
    expected = to_float32(half_vectors[rows])
    found = collection.fetch_vectors(connection, name, rows, half_vectors.shape[1])
    wrong = np.flatnonzero((found.view(np.int32) != expected.view(np.int32)).any(axis=1))
    if len(wrong):
        missing = int(np.isnan(found[wrong]).all(axis=1).sum())
        raise StoreError(
            f"collection {name} of Milvus at {connection.endpoint}: {len(wrong)} of {len(rows)} compared rows differ "
            f"from the vectors of the release ({missing} are missing), such as row {rows[wrong[0]]}; expected none: "
            "publish again, or let the collection belong to vecall alone"
        )


def drop_quietly(connection: MilvusConnection, name: str) -> bool:
    """Drop a collection; log instead of raising where it fails.

    Returns:
        Whether it is gone.
    """
    try:
        collection.drop(connection, name)
    except VecallError as error:
        logger.warning("collection %s is left over, the next publish or prune drops it: %s", name, error)
        return False
    return True


def _insert_all(connection: MilvusConnection, name: str, half_vectors: HalfVectors, timeout: float) -> None:
    step = collection.compute_insert_size(half_vectors.shape[1])
    start_time = time.monotonic()
    with progress.track("inserting into Milvus", len(half_vectors)) as advance:
        for start in range(0, len(half_vectors), step):
            batch = half_vectors[start : start + step]
            collection.insert_rows(connection, name, start, batch, timeout=timeout)
            advance(len(batch))
    seconds = max(time.monotonic() - start_time, 1e-9)
    progress.announce(
        f"inserted {len(half_vectors):,} rows into Milvus in {progress.format_duration(seconds)}, "
        f"{len(half_vectors) / seconds:,.0f} rows a second"
    )
    collection.flush(connection, name, timeout=timeout)


def _check_count(connection: MilvusConnection, expected: int, counted: int) -> None:
    """Check the number of rows: an insert that the client repeated would have added rows twice."""
    if counted != expected:
        raise StoreError(
            f"Milvus at {connection.endpoint} counts {counted:,} rows, expected {expected:,}: an insert was lost or "
            "repeated; publish again"
        )
