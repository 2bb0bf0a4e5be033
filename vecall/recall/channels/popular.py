"""The channel of what many took lately, more so within what this user's history or features say."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.channels.popular_items import PopularItems, PopularLists
from vecall.data.canonical import scalar_to_text
from vecall.data.frames import get_unnamed_column
from vecall.index.kernels import select_top_k_superset, sum_by_row
from vecall.live.snapshot import Snapshot
from vecall.recall.candidate_set import is_in_sorted
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.popularity_ranking import rank_by_popularity
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id

HISTORY_LENGTH = 50  # newest items whose values count
MAX_VALUES = 8  # most frequent values of the history whose lists are read

_Shares = tuple[Rows, NDArray[np.float64]]


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
    shares = [*_list_history_shares(query, popular), *_list_user_shares(query, popular)]
    if not any(len(rows) for rows, _ in shares):
        return hits
    rows, scores = _score(query, popular, hits[0], shares)  # of the items without a share, the best n suffice
    best = select_top_k_superset(scores, n)
    return rank_by_score_and_id(snapshot, rows[best], scores[best], n)


def _list_history_shares(query: ChannelQuery, popular: PopularItems) -> list[_Shares]:
    """Return rows and shares of the values that the history has."""
    history = query.resolved_query.history[-HISTORY_LENGTH:]
    if popular.by is None or not len(history):
        return []
    codes, counts = np.unique(_list_codes(query.snapshot, popular.by, history), return_counts=True)
    best = np.argsort(-counts, kind="stable")[:MAX_VALUES]  # the values ascend with their codes
    return [popular.by.list_shares(codes[best].tolist(), (counts[best] / len(history)).tolist())]


def _list_codes(snapshot: Snapshot, lists: PopularLists, rows: Rows) -> Rows:
    """Return the indices of the values that items of the snapshot have now, those of all items together."""
    codes_by_item, slots = snapshot.release.popular_codes, rows - snapshot.release.vectors.size
    base_rows = rows[slots < 0]
    parts = [] if codes_by_item is None else [codes_by_item[row] for row in base_rows.tolist()]
    codes = np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, dtype=np.int64)
    if len(base_rows) == len(rows):
        return codes
    cells = get_unnamed_column(snapshot.delta.attributes, lists.column).gather(slots[slots >= 0])
    return np.concatenate([codes, lists.encode(cells).values])


def _list_user_shares(query: ChannelQuery, popular: PopularItems) -> list[_Shares]:
    """Return rows and shares of the user's value."""
    lists, features = popular.by_user, query.resolved_query.user_features
    if lists is None or features is None or lists.column not in features.columns:
        return []
    code = _find_code(lists, features)
    return [] if code is None else [lists.list_shares([code], [1.0])]


def _find_code(lists: PopularLists, features: pl.DataFrame) -> int | None:
    value = features.get_column(lists.column)[0]
    return None if value is None else lists.codes.get(scalar_to_text(value))


def _score(query: ChannelQuery, popular: PopularItems, best_rows: Rows, shares: list[_Shares]) -> ScoredRows:
    """Return the eligible items that have a share or are among the best without one, with their scores.

    Args:
        query: The query.
        popular: Counts.
        best_rows: Rows of the snapshot.
        shares: Rows of the release, and the shares to be added up.
    """
    snapshot, candidates = query.snapshot, query.candidates
    best_base_rows = snapshot.to_base_rows(best_rows)
    is_new = best_base_rows < 0
    parts = [(best_base_rows[~is_new], np.zeros(np.count_nonzero(~is_new))), *shares]
    base_rows, lifts = sum_by_row(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    scores = (popular.counts[base_rows] + popular.total * lifts).astype(np.float32)
    is_eligible = candidates.is_eligible(base_rows)
    rows, row_scores = [base_rows[is_eligible]], [scores[is_eligible]]
    if len(slots := candidates.delta_slots):
        order = np.argsort(base_rows)
        slot_base_rows = snapshot.delta.base_rows[slots]
        is_changed = is_in_sorted(slot_base_rows, base_rows[order])
        positions = np.searchsorted(base_rows, slot_base_rows[is_changed], sorter=order)
        rows += [slots[is_changed] + candidates.base_size, best_rows[is_new]]
        row_scores += [scores[order[positions]], np.zeros(np.count_nonzero(is_new), dtype=np.float32)]
    return np.concatenate(rows), np.concatenate(row_scores)
