"""Raw search of a Milvus collection: rows as the server ranks them, without a filter."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vecall.arrays import Vectors
from vecall.errors import EngineUnavailableError, QueryError
from vecall.index.hits import Hits
from vecall.index.milvus.client import MilvusConnection
from vecall.index.milvus.collection import VECTOR_FIELD
from vecall.index.topk import make_empty_hits

MAX_K = 16_384  # Milvus's limit
MAX_EF = 32_768
_MAX_HITS_PER_CALL = 200_000  # an answer must stay well below 64 MiB


def search_collection(
    connection: MilvusConnection, name: str, size: int, queries: Vectors, k: int, *, ef: int, timeout: float
) -> Hits:
    """Search a loaded collection.

    Args:
        connection: the server.
        name: of the collection.
        size: N, the number of its rows.
        queries: [B, D], finite: to a query with NaN the server answers nothing, and reports no error.
        k: number of rows per query, 1 to 16,384; may exceed N.
        ef: size of the candidate list; raised to k if it is lower, and lowered to 32,768.
        timeout: seconds for each call: B k / 200,000 calls, at least one.

    Returns:
        Hits [B, k] in the server's order, with the server's scores. A query with fewer than min(k, N) rows was answered
        short.

    Raises:
        QueryError: k is out of range, or a query is not finite.
        EngineUnavailableError: the server does not answer, or returns rows that cannot be.
    """
    if not 1 <= k <= MAX_K:
        raise QueryError(f"k is {k}; a search of Milvus expects 1 to {MAX_K}: scan the vectors instead", field="k")
    if not np.isfinite(queries).all():
        raise QueryError("a query vector has a value that is not finite: check how it was computed", field="vector")
    hits = make_empty_hits(len(queries), k)
    step = max(1, _MAX_HITS_PER_CALL // k)
    for start in range(0, len(queries), step):
        batch = np.ascontiguousarray(queries[start : start + step], dtype=np.float32)
        answer = connection.call(
            "search",
            name,
            list(batch),
            anns_field=VECTOR_FIELD,
            limit=min(k, size),
            search_params={"metric_type": "IP", "params": {"ef": min(max(ef, k), MAX_EF)}},
            consistency_level="Eventually",  # a collection never changes after it was published
            timeout=timeout,
            action=f"searching {name}",
        )
        if len(answer) != len(batch):
            raise EngineUnavailableError(
                f"Milvus at {connection.endpoint} answered {len(answer)} of {len(batch)} queries: look at its log"
            )
        for offset, found in enumerate(answer):
            _fill(hits, start + offset, found.ids, found.distances)
    _check_rows(connection, name, hits, size)
    return hits


def count_short_answers(hits: Hits, size: int) -> int:
    """Number of queries with fewer than min(k, N) rows."""
    expected = min(hits.rows.shape[1], size)
    return int(np.count_nonzero((hits.rows >= 0).sum(axis=1) < expected))


def _fill(hits: Hits, position: int, ids: Sequence[Any], distances: Sequence[Any]) -> None:
    count = min(len(ids), hits.rows.shape[1])
    hits.rows[position, :count] = np.asarray(ids[:count], dtype=np.int64)
    hits.scores[position, :count] = np.asarray(distances[:count], dtype=np.float32)


def _check_rows(connection: MilvusConnection, name: str, hits: Hits, size: int) -> None:
    """Check that the answer can be of this collection: rows in range, and none twice."""
    ordered = np.sort(hits.rows, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if hits.rows.max(initial=-1) >= size or hits.rows.min(initial=-1) < -1 or repeated.any():
        raise EngineUnavailableError(
            f"collection {name} of Milvus at {connection.endpoint} returned rows that are not distinct rows in 0 to "
            f"{size - 1}: it is not what was published; publish again"
        )
