"""The channel of new items, by the user's vector."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vecall.arrays import Rows, Scores, Vectors
from vecall.index.kernels import compute_inner_products
from vecall.live.snapshot import Snapshot
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.item_age import MICROS_PER_DAY, compute_age_days, compute_data_time, get_creation_micros
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id
from vecall.release.creation_times import UNKNOWN_TIME

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)

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
        positions, delta_rows = _find_fresh(query, now_ns)
        times = snapshot.release.creation_times
        base_rows = positions if times is None else times.newest_rows[positions]
        rows = np.concatenate([base_rows, delta_rows]) if len(delta_rows) else base_rows
        matrix = query.resolved_query.query_matrix
        if matrix is None:
            scores = -np.nan_to_num(compute_age_days(snapshot, rows, now_ns), nan=0.0)
        else:
            scores = _score(snapshot, matrix[0], positions, rows)
        return rank_by_score_and_id(snapshot, rows, scores, n)


def _find_fresh(query: ChannelQuery, now_ns: int) -> tuple[Rows, Rows]:
    """Return the eligible new items: positions among the newest rows of the release, and rows of the delta."""
    snapshot, candidates = query.snapshot, query.candidates
    release, slots = snapshot.release, query.candidates.delta_slots
    days, times = release.channels.facts.fresh_days, release.creation_times
    if days is None:
        return _NO_ROWS, _NO_ROWS
    since = compute_data_time(snapshot, now_ns) - int(days * MICROS_PER_DAY)
    positions = _NO_ROWS if times is None else candidates.row_filter.find_first(times.list_since(since), MAX_ROWS)
    if not len(slots):
        return positions, slots
    micros = get_creation_micros(snapshot, slots + candidates.base_size)
    is_new = (micros == UNKNOWN_TIME) & (snapshot.delta.base_rows[slots] < 0)
    return positions, slots[is_new | (micros >= since)] + candidates.base_size


def _score(snapshot: Snapshot, vector: Vectors, positions: Rows, rows: Rows) -> Scores:
    """Return the inner products of a vector with the vectors of new items.

    Args:
        snapshot: Where the vectors are.
        vector: [D].
        positions: [n] positions of the first rows, which are of the base, among the release's newest rows; ascending.
        rows: Rows of the items, those of the delta last.
    """
    release, n_base = snapshot.release, len(positions)
    newest, n_cached = release.newest_vectors, int(np.searchsorted(positions, len(release.newest_vectors)))
    parts = [compute_inner_products(newest, vector, positions[:n_cached])]
    if n_cached < n_base:
        parts.append(release.vectors.score(vector, rows[n_cached:n_base]))
    if n_base < len(rows):
        parts.append(compute_inner_products(snapshot.delta.half_vectors, vector, rows[n_base:] - release.vectors.size))
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


recall_fresh = FreshChannel()
