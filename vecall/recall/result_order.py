"""The order of every answer: score descending, then id ascending."""

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.index.kernels import select_top_k
from vecall.live.snapshot import Snapshot

ScoredRows = tuple[Rows, Scores]


def rank_by_score_and_id(snapshot: Snapshot, rows: Rows, scores: Scores, k: int) -> ScoredRows:
    """Return the k best of distinct rows of a snapshot, score descending, then id ascending.

    Rows of the base ascend with their ids and those of the delta do not, so runs of equal scores are sorted by id.
    """
    if not len(rows):
        return rows, scores
    contiguous = np.ascontiguousarray(scores, dtype=np.float32), np.ascontiguousarray(rows, dtype=np.int64)
    if not len(snapshot.delta):
        return select_top_k(*contiguous, k)[:2]
    rows, scores = select_top_k(*contiguous, len(rows))
    is_new_run = np.diff(scores) != 0
    runs = np.concatenate([[0], np.cumsum(is_new_run)])
    is_tied = ~(np.append(True, is_new_run) & np.append(is_new_run, True)) & (runs <= runs[:k].max(initial=0))
    tied = np.flatnonzero(is_tied)
    run_and_id = list(zip(runs[tied].tolist(), snapshot.to_ids(rows[tied]), strict=True))
    rows[tied] = rows[tied][sorted(range(len(tied)), key=run_and_id.__getitem__)]
    return rows[:k], scores[:k]
