"""The channel of what the user takes again: the history, the more often and the more lately the better."""

import numpy as np

from vecall.index.row_scores import RowScores
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id

_DECAY = 0.98  # of an interaction's weight per later interaction


def recall_repeats(query: ChannelQuery, n: int) -> ScoredRows:
    """Return items of the history by Σ 0.98^age over their interactions; the age of the newest interaction is 0.

    Items that are excluded, as seen ones are by default, are not returned.
    """
    history = query.resolved_query.history
    weights = _DECAY ** np.arange(len(history) - 1, -1, -1, dtype=np.float64)
    scores = RowScores(len(history))
    scores.add(history, weights)
    return rank_by_score_and_id(query.snapshot, *query.candidates.row_filter.select(scores.rows, scores.scores), n)
