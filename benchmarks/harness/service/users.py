"""Synthetic users of a pool: the history of each lies around a point of the vector space."""

from pathlib import Path

import numpy as np

from harness.clustered_vectors import ClusteredVectors
from vecall.arrays import Rows, Vectors

K, HISTORY_LENGTH = 500, 20
_CHUNK_USERS = 100  # users whose distances to all items are held at a time


def draw_histories(centers: Vectors, items: Vectors, rng: np.random.Generator) -> list[Rows]:
    """Draw a history around each center, among its nearest 2 * HISTORY_LENGTH items.

    Args:
        centers: [U, D].
        items: [N, D].
        rng: source of randomness.

    Returns:
        [HISTORY_LENGTH] rows of items for each center.
    """
    histories: list[Rows] = []
    for chunk in np.array_split(centers, max(1, len(centers) // _CHUNK_USERS)):
        nearest = np.argpartition(-(chunk @ items.T), 2 * HISTORY_LENGTH, axis=1)[:, : 2 * HISTORY_LENGTH]
        histories += [rng.choice(rows, HISTORY_LENGTH, replace=False) for rows in nearest]
    return histories


def make_query_histories(pool: ClusteredVectors) -> list[list[int]]:
    """Draw 1,000 histories among the first block of items; the index was tuned on other users."""
    items = pool.make_block(0).astype(np.float32)
    histories = draw_histories(pool.make_queries(1_000), items, np.random.default_rng(1))
    return [history.tolist() for history in histories]


def locate_vectors(store: Path, pool: ClusteredVectors) -> Path:
    """Return the file beside a store that holds the pool."""
    seed = f"-{pool.seed}" if pool.seed else ""
    return store.with_name(f"pool-{pool.n_items}-{pool.dim}{seed}.npy")


def to_string_id(row: int) -> str:
    """Return the id of an item in releases with string ids."""
    return f"item-{row:08d}"
