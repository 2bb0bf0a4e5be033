"""How similar candidates are to the newest items of a history, by the table of the channel `similar`."""

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.channels.similar_items import SimilarItems
from vecall.data.ragged import locate_segments
from vecall.index.row_positions import RowPositions

MAX_ITEMS = 10  # the newest


def compute_similarities(similar: SimilarItems, candidates: Rows, history: Rows) -> tuple[Scores, Scores]:
    """Return two arrays [C]: similarity to the newest item of a history, and its sum over the newest 10.

    Similarities are those of the table, 0 for items that are not among the neighbours of the item of the history.

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
    targets = RowPositions(candidates).find(neighbours)
    is_candidate = targets >= 0
    targets, scores, is_of_newest = targets[is_candidate], scores[is_candidate], is_of_newest[is_candidate]
    last, total = np.zeros(len(candidates), dtype=np.float32), np.zeros(len(candidates), dtype=np.float32)
    np.add.at(total, targets, scores)
    np.add.at(last, targets[is_of_newest], scores[is_of_newest])
    return last, total
