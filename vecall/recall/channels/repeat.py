"""The channel of what the user takes again: the history, the more often and the more lately the better."""

import numpy as np

from vecall.recall.channels.base import ChannelQuery
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id

_DECAY = 0.98  # of an interaction's weight per later interaction


def recall_repeats(query: ChannelQuery, n: int) -> ScoredRows:
    """Return items of the history by Σ 0.98^age over their interactions; the age of the newest interaction is 0.

    Items that are excluded, as seen ones are by default, are not returned.
    """
    history = query.resolved_query.history
    rows, positions = np.unique(history, return_inverse=True)
    weights = _DECAY ** np.arange(len(history) - 1, -1, -1, dtype=np.float64)
    scores = np.bincount(positions, weights, minlength=len(rows)).astype(np.float32)
    is_eligible = query.candidates.is_eligible(rows)
    return rank_by_score_and_id(query.snapshot, rows[is_eligible], scores[is_eligible], n)
