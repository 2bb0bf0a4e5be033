"""The channel of new items, by the user's vector."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vecall.arrays import Rows, Scores, Vectors
from vecall.index.kernels import compute_inner_products, select_top_k_superset
from vecall.live.snapshot import Snapshot
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.item_age import MICROS_PER_DAY, compute_age_days, compute_data_time, get_creation_micros
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id
from vecall.release.creation_times import UNKNOWN_TIME

MAX_ROWS = 10_000  # of the release that are scored: the newest eligible ones


@dataclass(frozen=True)
class FreshChannel:
    """Recall of new items.

    Attributes:
        clock: Returns the present time, nanoseconds since 1970.
    """

    clock: Callable[[], int] = time.time_ns

    def __call__(self, query: ChannelQuery, n: int) -> ScoredRows:
        """Return new items by the inner product with the user's vector; without a vector the newest first.

        New are items that came at most `days` ago by the clock of the data, see `vecall.recall.item_age`; of those that
        are not live changes the newest 10,000 eligible ones count. New, too, are live items that the release does not
        have and whose time is not known. Without a vector the score is minus the age in days; an unknown age counts as
        0.
        """
        now_ns, snapshot = self.clock(), query.snapshot
        rows = _list_fresh_rows(query, now_ns)
        matrix = query.resolved_query.query_matrix
        if matrix is None:
            scores = -np.nan_to_num(compute_age_days(snapshot, rows, now_ns), nan=0.0)
        else:
            scores = _score(snapshot, matrix[0], rows)
        best = select_top_k_superset(scores, n)
        return rank_by_score_and_id(snapshot, rows[best], scores[best], n)


def _list_fresh_rows(query: ChannelQuery, now_ns: int) -> Rows:
    """Return the eligible new items, those of the base before those of the delta."""
    snapshot, candidates = query.snapshot, query.candidates
    release = snapshot.release
    days, times = release.channels.facts.fresh_days, release.creation_times
    if days is None:
        return np.empty(0, dtype=np.int64)
    since = compute_data_time(snapshot, now_ns) - int(days * MICROS_PER_DAY)
    base_rows = np.empty(0, dtype=np.int64)
    if times is not None:
        base_rows = times.list_since(since)
        base_rows = base_rows[candidates.is_eligible(base_rows)][:MAX_ROWS]
    slots = candidates.delta_slots
    micros = get_creation_micros(snapshot, slots + candidates.base_size)
    is_new = (micros == UNKNOWN_TIME) & (snapshot.delta.base_rows[slots] < 0)
    is_fresh = is_new | (micros >= since)
    return np.concatenate([base_rows, slots[is_fresh] + candidates.base_size])


def _score(snapshot: Snapshot, vector: Vectors, rows: Rows) -> Scores:
    """Return the inner products of a vector [D] with the vectors of rows [n], those of the base first."""
    base_size = snapshot.release.vectors.size
    in_base = rows < base_size
    base_scores = snapshot.release.vectors.score(vector, rows[in_base])
    if in_base.all():
        return base_scores
    delta_scores = compute_inner_products(snapshot.delta.half_vectors, vector, rows[~in_base] - base_size)
    return np.concatenate([base_scores, delta_scores])


recall_fresh = FreshChannel()
