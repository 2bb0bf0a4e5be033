"""ANN recall: how much of the exact answer was found, by score, so that it makes no difference which of equal rows was.

A row counts when its exact score reaches that of the exact answer's last row. Among many equal vectors that last row is
any of them: counted by rows, an answer that is right would seem wrong.
"""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.index.base import Index


def recall_per_query(index: Index, queries: Vectors, found_rows: Rows, exact_rows: Rows) -> NDArray[np.float64]:
    """Share of the exact answer that was found.

    Args:
        index: has the stored vectors.
        queries: [B, D].
        found_rows: [B, C] rows, -1 being none; a row that stands twice counts once.
        exact_rows: [B, K] the exact answer, best first; -1 after the last where there are fewer.

    Returns:
        [B] shares in 0 .. 1.
    """
    return tail_recall_per_query(index, queries, found_rows, exact_rows, exact_rows.shape[1])


def tail_recall_per_query(
    index: Index, queries: Vectors, found_rows: Rows, exact_rows: Rows, tail_size: int
) -> NDArray[np.float64]:
    """Share of the last `tail_size` rows of the exact answer that was found; the others as in `recall_per_query`."""
    shares = np.empty(len(queries))
    for b, query in enumerate(queries):
        wanted = exact_rows[b][exact_rows[b] >= 0]
        before = max(0, len(wanted) - tail_size)
        borders = index.score(query, wanted[[before - 1, -1]])  # of the row before the tail, and of the last
        scores = index.score(query, np.unique(found_rows[b][found_rows[b] >= 0]))
        reached = min(int(np.count_nonzero(scores >= borders[1])), len(wanted))
        nearer = min(int(np.count_nonzero(scores >= borders[0])), before)
        shares[b] = (reached - nearer) / (len(wanted) - before)
    return shares
