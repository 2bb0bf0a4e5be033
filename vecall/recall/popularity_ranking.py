"""Ranking of items by a score that is the same for all users, such as their popularity."""

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.index.kernels import bitmap_to_rows, select_top_k
from vecall.live.snapshot import Snapshot
from vecall.recall.candidate_set import CandidateSet
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id


def rank_by_popularity(
    snapshot: Snapshot, candidates: CandidateSet, popularity: Scores, sorted_rows: Rows, k: int
) -> ScoredRows:
    """Return the min(k, eligible) most popular eligible items, score descending, then id ascending.

    A changed item keeps its popularity; an item that is new in the delta has popularity 0.

    Args:
        snapshot: What is searched.
        candidates: Items that may be answers.
        popularity: [N] score of each item of the release.
        sorted_rows: Rows of the release with the highest scores, score descending, then row ascending; not all.
        k: At least 1.
    """
    k = min(k, candidates.eligible_count)
    rows, scores = _rank_base(candidates, popularity, sorted_rows, min(k, candidates.eligible_base_count))
    if not len(candidates.delta_slots) or not k:
        return rows, scores
    base_rows = snapshot.delta.base_rows[candidates.delta_slots]
    delta_scores = np.where(base_rows >= 0, popularity[base_rows], 0).astype(np.float32)
    return rank_by_score_and_id(
        snapshot,
        np.concatenate([rows, candidates.delta_slots + candidates.base_size]),
        np.concatenate([scores, delta_scores]),
        k,
    )


def _rank_base(candidates: CandidateSet, popularity: Scores, sorted_rows: Rows, k: int) -> ScoredRows:
    """Return the k most popular eligible rows of the base, of which the caller ensures that there are k.

    The first of the sorted rows nearly always suffice; otherwise all eligible rows are ranked.
    """
    rows = sorted_rows[candidates.row_filter.find_first(sorted_rows, k)]
    if len(rows) == k:
        return rows, popularity[rows]
    eligible = candidates.build_eligible_bitmap()
    if eligible is None:
        return select_top_k(popularity, None, k)
    rows = bitmap_to_rows(eligible)
    return select_top_k(popularity[rows], rows, k)
