"""Made-up users of a pool: each has taken items around one place."""

import numpy as np
from harness.clustered_vectors import ClusteredVectors, Floats
from numpy.typing import NDArray

K, HISTORY_LENGTH = 500, 20
_CHUNK_USERS = 100  # users


def draw_histories(centers: Floats, items: Floats, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """For each of [U, D] places the rows of some of the nearest items."""
    histories: list[NDArray[np.int64]] = []
    for part in np.array_split(centers, max(1, len(centers) // _CHUNK_USERS)):
        nearest = np.argpartition(-(part @ items.T), 2 * HISTORY_LENGTH, axis=1)[:, : 2 * HISTORY_LENGTH]
        histories += [rng.choice(row, HISTORY_LENGTH, replace=False) for row in nearest]
    return histories


def make_query_histories(pool: ClusteredVectors) -> list[list[int]]:
    """Histories of other users than those that the index was tuned on."""
    some = pool.make_block(0).astype(np.float32)
    return [one.tolist() for one in draw_histories(pool.make_queries(1_000), some, np.random.default_rng(1))]
