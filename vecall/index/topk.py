"""Selecting and sorting hits: by descending score, then ascending row, padding last."""

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.index.hits import Hits


def make_empty_hits(batch: int, k: int) -> Hits:
    """Allocate hits [batch, k] that hold only padding: row -1, score -inf."""
    return Hits(np.full((batch, k), -1, dtype=np.int64), np.full((batch, k), -np.inf, dtype=np.float32))


def sort_hits(rows: Rows, scores: Scores, k: int) -> Hits:
    """Return the k best of C scored rows per query, by a full sort.

    Args:
        rows: [B, C] distinct rows of each query; -1 is padding.
        scores: [B, C] scores, -inf where the row is -1.
        k: number of rows per query, at least 1; may exceed C.

    Returns:
        Hits [B, k], padded with row -1.
    """
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    hits = make_empty_hits(len(rows), k)
    hits.rows[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    hits.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return hits


def select_top_k_batch(scores: Scores, k: int) -> Hits:
    """Return the k best of N scored rows per query, without sorting all N.

    Args:
        scores: [B, N] scores without NaN; -inf excludes a row.
        k: number of rows per query, at least 1; may exceed N.

    Returns:
        Hits [B, k], padded with row -1. Of rows that tie for position k, the lowest are returned.
    """
    n = scores.shape[1]
    if k >= n:
        rows = np.broadcast_to(np.arange(n), scores.shape)
    else:
        rows = np.argpartition(scores, n - k, axis=1)[:, n - k :]  # [B, k], unsorted
        kth = np.take_along_axis(scores, rows, axis=1).min(axis=1)
        # A partition keeps arbitrary rows of those that tie for position k: replace them by the lowest.
        for b in np.flatnonzero((scores >= kth[:, None]).sum(axis=1) > k):
            above = np.flatnonzero(scores[b] > kth[b])
            tied = np.flatnonzero(scores[b] == kth[b])
            rows[b] = np.concatenate([above, tied[: k - len(above)]])
    top_scores = np.take_along_axis(scores, rows, axis=1)
    return sort_hits(np.where(top_scores > -np.inf, rows, -1), top_scores, k)
