"""The one order of answers: score descending, then row ascending, places without an answer last."""

from collections.abc import Sequence

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.index.base import Hits


def make_empty_hits(batch: int, k: int) -> Hits:
    """[batch, k] places without an answer, to be filled."""
    return Hits(np.full((batch, k), -1, dtype=np.int64), np.full((batch, k), -np.inf, dtype=np.float32))


def sort_hits(rows: Rows, scores: Scores, k: int) -> Hits:
    """The k best of C scored rows per query, by a sort of all C.

    Args:
        rows: [B, C] rows, distinct within a query; -1 marks a place without an answer.
        scores: [B, C] scores, -inf where the row is -1.
        k: 1 <= k; more than C gives places with row -1.

    Returns:
        [B, k] hits.
    """
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    hits = make_empty_hits(len(rows), k)
    hits.rows[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    hits.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return hits


def select_top_k_batch(scores: Scores, k: int) -> Hits:
    """The k best of N rows per query, without sorting all N.

    Args:
        scores: [B, N] scores, none of them NaN; -inf marks a row that is no answer.
        k: 1 <= k; more than there are answers gives places with row -1.

    Returns:
        [B, k] hits. Which of equal rows stands at place k is fixed too: the lowest.
    """
    n = scores.shape[1]
    if k >= n:
        rows = np.broadcast_to(np.arange(n), scores.shape)
    else:
        rows = np.argpartition(scores, n - k, axis=1)[:, n - k :]  # [B, k], in no order
        kth = np.take_along_axis(scores, rows, axis=1).min(axis=1)
        # A partition keeps any of the rows that tie at place k.
        for b in np.flatnonzero((scores >= kth[:, None]).sum(axis=1) > k):
            above = np.flatnonzero(scores[b] > kth[b])
            tied = np.flatnonzero(scores[b] == kth[b])
            rows[b] = np.concatenate([above, tied[: k - len(above)]])
    chosen = np.take_along_axis(scores, rows, axis=1)
    return sort_hits(np.where(chosen > -np.inf, rows, -1), chosen, k)


def merge_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of several answers to the same queries, whose rows are distinct.

    Args:
        parts: at least one answer, [B, any] each.
        k: 1 <= k; more than there are answers gives places with row -1.

    Returns:
        [B, k] hits.
    """
    rows = np.concatenate([part.rows for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    return sort_hits(rows, scores, k)
