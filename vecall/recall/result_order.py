"""The order of every answer: score descending, then id ascending."""

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.index.topk import sort_hits
from vecall.live.snapshot import Snapshot

ScoredRows = tuple[Rows, Scores]


def rank_by_score_and_id(snapshot: Snapshot, rows: Rows, scores: Scores, k: int) -> ScoredRows:
    """Return the k best of distinct rows of a snapshot, score descending, then id ascending.

    Rows of the base ascend with their ids and those of the delta do not, so runs of equal scores are sorted by id.
    """
    hits = sort_hits(rows[None], scores[None], len(rows))
    rows, scores = hits.rows[0], hits.scores[0]
    if not len(snapshot.delta):
        return rows[:k], scores[:k]
    tied = np.flatnonzero(np.diff(scores) == 0)
    for start in tied[np.isin(tied - 1, tied, invert=True)].tolist():  # the first position of each run
        end = start + int(np.searchsorted(-scores[start:], -scores[start], side="right"))
        ids = snapshot.to_ids(rows[start:end])
        rows[start:end] = rows[start:end][sorted(range(end - start), key=ids.__getitem__)]
    return rows[:k], scores[:k]
