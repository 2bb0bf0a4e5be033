"""How similar candidates are to the newest items of a history, by the table of the channel `similar`."""

from typing import NamedTuple

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.channels.neighbors import MAX_SHARE
from vecall.channels.similar_items import SimilarItems
from vecall.data.ragged import locate_segments
from vecall.index.row_positions import RowPositions

MAX_ITEMS = 10  # the newest


class HistorySimilarities(NamedTuple):
    """How similar C candidates are to the newest items of a history.

    Attributes:
        last: [C] Similarity to the newest item.
        total: [C] Sum of the similarities to the newest 10.
        next_last: [C] The part of `last` that is of histories in which the candidate came later.
        next_total: [C] The part of `total` likewise.
    """

    last: Scores
    total: Scores
    next_last: Scores
    next_total: Scores


def compute_similarities(similar: SimilarItems, candidates: Rows, history: Rows) -> HistorySimilarities:
    """Return similarities of the table, 0 for items that are not among the neighbours of the item of the history.

    Args:
        similar: Neighbours of the N items of a release.
        candidates: [C] distinct rows of the release; -1 for an item that it does not have.
        history: [L] likewise, not distinct, the oldest first.
    """
    newest = history[-MAX_ITEMS:][::-1]  # the newest first
    is_known = newest >= 0
    starts = similar.offsets[:-1][newest[is_known]]
    lengths = similar.offsets[1:][newest[is_known]] - starts
    positions = locate_segments(starts, lengths)
    neighbours, scores = similar.rows[positions], similar.scores[positions].astype(np.float32)
    is_of_newest = np.repeat(np.flatnonzero(is_known) == 0, lengths)
    next_scores = scores * (similar.later_shares[positions] / np.float32(MAX_SHARE))
    targets = RowPositions(candidates).find(neighbours)
    parts = [
        np.bincount(targets[kept], values[kept], minlength=len(candidates)).astype(np.float32)
        for values in (scores, next_scores)
        for kept in ((targets >= 0) & is_of_newest, targets >= 0)
    ]
    return HistorySimilarities(*parts)
