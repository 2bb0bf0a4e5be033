"""The order of every answer: score descending, then id ascending."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.index.kernels import select_top_k
from vecall.live.snapshot import Snapshot

ScoredRows = tuple[Rows, Scores]


def rank_by_score_and_id(snapshot: Snapshot, rows: Rows, scores: Scores | NDArray[np.float64], k: int) -> ScoredRows:
    """Return the k best of distinct rows of a snapshot, by float32 score descending, then id ascending.

    Rows of the base ascend with their ids and those of the delta do not, so runs of equal scores with one of these are
    sorted by id.
    """
    if not len(rows):
        return rows, scores.astype(np.float32)
    scores, rows = np.ascontiguousarray(scores, dtype=np.float32), np.ascontiguousarray(rows, dtype=np.int64)
    best_rows, best_scores = select_top_k(scores, rows, k)
    base_size = snapshot.release.vectors.size
    if not len(snapshot.delta) or rows.max() < base_size:
        return best_rows, best_scores
    if len(rows) > k:  # of all rows with the k-th score, those with the lowest ids belong to the answer
        is_candidate = scores >= best_scores[-1]
        best_rows, best_scores = select_top_k(scores[is_candidate], rows[is_candidate], len(rows))
    _sort_ties_by_id(snapshot, best_rows, best_scores)
    return best_rows[:k], best_scores[:k]


def _sort_ties_by_id(snapshot: Snapshot, rows: Rows, scores: Scores) -> None:
    """Sort rows of equal scores by id, in place, where one of them is of the delta.

    Args:
        snapshot: What has the rows.
        rows: [n] by score, then row.
        scores: [n] descending.
    """
    runs = np.concatenate([[0], np.cumsum(np.diff(scores) != 0)])
    in_delta = rows >= snapshot.release.vectors.size
    is_mixed = (np.bincount(runs, in_delta) > 0) & (np.bincount(runs) > 1)
    tied = np.flatnonzero(is_mixed[runs])
    run_and_id = list(zip(runs[tied].tolist(), snapshot.to_ids(rows[tied]), strict=True))
    rows[tied] = rows[tied][sorted(range(len(tied)), key=run_and_id.__getitem__)]
