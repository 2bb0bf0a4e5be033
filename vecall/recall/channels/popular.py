"""The channel of what many took lately, more so within what this user's history or features say."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows, Scores
from vecall.channels.popular_items import PopularItems, PopularLists
from vecall.data.canonical import scalar_to_text
from vecall.data.frames import get_unnamed_column
from vecall.index.kernels import select_top_k
from vecall.index.row_scores import RowScores
from vecall.live.snapshot import Snapshot
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.popularity_ranking import rank_by_popularity
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id

HISTORY_LENGTH = 50  # newest items whose values count
MAX_VALUES = 8  # most frequent values of the history whose lists are read


def recall_popular(query: ChannelQuery, n: int) -> ScoredRows:
    """Return the min(n, eligible) best items by this score.

        c(i) + C · ( Σ_v h(v) · s(v, i) / S(v)  +  s(u, i) / S(u) )

    Here c(i) is the count of item i and C the sum of all; v the at most 8 most frequent values that the newest 50
    items of the history have of the attribute `by` (of equally frequent ones the first by text), and h(v) the share of
    these items with v; u the user's value of the feature `by_user`; s(v, i) the score of item i in the list of a value,
    0 where it is not in it, and S(v) the sum of the list. Without `by`, `by_user`, history or value, what is missing
    contributes 0.

    Where the release has no counts, items are ranked by popularity. A changed item keeps its counts, and its membership
    of lists, as of publishing; the values of the history are those that its items have now. New items score 0.
    """
    snapshot, candidates, release = query.snapshot, query.candidates, query.snapshot.release
    popular = release.channels.popular
    if popular is None and release.popularity is not None:
        return rank_by_popularity(snapshot, candidates, release.popularity, release.popular_rows, n)
    if popular is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    hits = rank_by_popularity(snapshot, candidates, popular.counts, popular.sorted_rows, n)
    lists = [*_weigh_history_lists(query, popular), *_weigh_user_list(query, popular)]
    if not any(part.length for part in lists):
        return hits
    rows, scores = _score(query, popular, hits[0], lists)  # of the items without a share, the best n suffice
    return rank_by_score_and_id(snapshot, rows, scores, n)


@dataclass(frozen=True)
class _WeightedLists:
    """Some lists of a table: where they start and end [s], and the factors [s] that turn their scores into shares."""

    table: PopularLists
    segments: tuple[Offsets, Offsets]
    factors: NDArray[np.float64]

    @property
    def length(self) -> int:
        """Number of rows in all lists."""
        starts, ends = self.segments
        return int((ends - starts).sum())


def _weigh_history_lists(query: ChannelQuery, popular: PopularItems) -> list[_WeightedLists]:
    """Return the lists of the values that the history has."""
    history = query.resolved_query.history[-HISTORY_LENGTH:]
    if popular.by is None or not len(history):
        return []
    counts = _count_codes(query.snapshot, popular.by, history)
    codes, frequencies = select_top_k(counts.scores.astype(np.float32), counts.rows, MAX_VALUES)  # then by text
    weights = frequencies.astype(np.float64) / len(history)
    return [_WeightedLists(popular.by, *popular.by.locate_lists(codes, weights))]


def _count_codes(snapshot: Snapshot, lists: PopularLists, rows: Rows) -> RowScores:
    """Return by index of a value how many items of the snapshot have it now."""
    codes_by_item, slots = snapshot.release.popular_codes, rows - snapshot.release.vectors.size
    if codes_by_item is None:
        return RowScores(0)
    parts, base_rows = [], rows[slots < 0]
    if len(base_rows):
        starts, ends = codes_by_item.offsets[base_rows], codes_by_item.offsets[base_rows + 1]
        parts.append((codes_by_item.values, starts, ends))
    if len(base_rows) < len(rows):
        codes = lists.encode(get_unnamed_column(snapshot.delta.attributes, lists.column).gather(slots[slots >= 0]))
        parts.append((codes.values, codes.offsets[:1], codes.offsets[-1:]))
    counts = RowScores(sum(int((ends - starts).sum()) for _, starts, ends in parts))
    for codes_of_part, starts, ends in parts:
        counts.count(codes_of_part, (starts, ends))
    return counts


def _weigh_user_list(query: ChannelQuery, popular: PopularItems) -> list[_WeightedLists]:
    """Return the list of the user's value."""
    lists, features = popular.by_user, query.resolved_query.user_features
    if lists is None or features is None or lists.column not in features.columns:
        return []
    code = _find_code(lists, features)
    return [] if code is None else [_WeightedLists(lists, *lists.locate_lists(np.array([code]), np.ones(1)))]


def _find_code(lists: PopularLists, features: pl.DataFrame) -> int | None:
    value = features.get_column(lists.column)[0]
    return None if value is None else lists.codes.get(scalar_to_text(value))


def _score(
    query: ChannelQuery, popular: PopularItems, best_rows: Rows, lists: list[_WeightedLists]
) -> tuple[Rows, Scores]:
    """Return the eligible items that have a share or are among the best without one, with their scores.

    Args:
        query: The query.
        popular: Counts.
        best_rows: Rows of the snapshot.
        lists: Of what the shares are added up.
    """
    snapshot, candidates = query.snapshot, query.candidates
    best_base_rows = snapshot.to_base_rows(best_rows)
    is_new = best_base_rows < 0
    shares = RowScores(len(best_rows) + sum(part.length for part in lists))
    shares.add(best_base_rows[~is_new], np.zeros(len(best_rows) - np.count_nonzero(is_new)))
    for part in lists:
        shares.add_segments(part.table.rows, part.table.scores, part.segments, part.factors)
    rows, lifts = candidates.row_filter.select(shares.rows, shares.scores)
    scores = popular.compute_scores(rows, lifts)
    if not len(slots := candidates.delta_slots):
        return rows, scores
    base_rows = snapshot.delta.base_rows[slots]
    slots, base_rows = slots[base_rows >= 0], base_rows[base_rows >= 0]
    has_share, lifts = shares.look_up(base_rows)
    changed_scores = popular.compute_scores(base_rows[has_share], lifts[has_share])
    changed_rows, new_rows = slots[has_share] + candidates.base_size, best_rows[is_new]
    return (
        np.concatenate([rows, changed_rows, new_rows]),
        np.concatenate([scores, changed_scores, np.zeros(len(new_rows), dtype=np.float32)]),
    )
