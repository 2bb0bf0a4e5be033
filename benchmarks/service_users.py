"""Made-up users of a pool: each has taken items around one place."""

import numpy as np
from clustered import Clusters, Floats
from numpy.typing import NDArray

K, HISTORY = 500, 20
_AT_ONCE = 100  # users


def around(places: Floats, items: Floats, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """For each of [U, D] places the rows of some of the nearest items."""
    histories: list[NDArray[np.int64]] = []
    for part in np.array_split(places, max(1, len(places) // _AT_ONCE)):
        nearest = np.argpartition(-(part @ items.T), 2 * HISTORY, axis=1)[:, : 2 * HISTORY]
        histories += [rng.choice(row, HISTORY, replace=False) for row in nearest]
    return histories


def asked(pool: Clusters) -> list[list[int]]:
    """Histories of other users than those that the index was tuned on."""
    some = pool.block(0).astype(np.float32)
    return [one.tolist() for one in around(pool.queries(1_000), some, np.random.default_rng(1))]
