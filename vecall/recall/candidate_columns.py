"""The columns of recalled items that are handed to ranking: what recall knows of each."""

import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.channels.settings import ChannelName
from vecall.channels.similar_items import SimilarItems
from vecall.data.casting import to_id_dtype
from vecall.data.frames import build_frame, get_unnamed_column
from vecall.live.snapshot import Snapshot
from vecall.ranking.candidate_columns import USER_PREFIX, Numbers, get_list_lengths
from vecall.ranking.history_columns import MAX_HISTORY_ITEMS, list_history_columns
from vecall.ranking.numeric_columns import to_numbers
from vecall.recall.channel_search import ChannelSearchResult
from vecall.recall.history_similarity import HistorySimilarities, compute_similarities
from vecall.recall.item_age import compute_age_days
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.snapshot_items import SnapshotItems

_Column = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64] | pl.Series


class RecalledColumns:
    """The columns of C recalled items in the order of recall; each is made when it is first read.

      - `id`, `score`, `rank` (from 1): of the answer;
      - `channels`: names of the channels that returned the item;
      - `CHANNEL.score`, `CHANNEL.rank`: of each channel that was asked, null where it did not return the item;
      - `user.COLUMN`: features of the user, equal in all rows;
      - `item.popularity`: number of positive interactions, null where it is not known; 0 for new live items;
      - `item.age_days`: days since the item came, by the clock of the data, see `vecall.recall.item_age`; null where it
        is not known;
      - `history.*`: comparisons with the newest items of the history, see `vecall.ranking.history_columns`;
      - `item.recent_popularity`: number of positive interactions of which the latest weigh the most, by the table of
        the channel `popular`, see `vecall.channels.popular_builder`, and `item.recent_share`, its share of
        `item.popularity`; only in a release that has the table;
      - `history.similar_last`, `history.similar_sum`: similarity to the newest item of the history, and its sum over
        the newest 10, by the table of the channel `similar`, whether or not it was asked, and `history.next_last`,
        `history.next_sum`, the part of both that is of histories in which the candidate came later than the item of the
        history; only in a release that has the table;
      - the attributes, under their own names.

    Not thread-safe.

    Args:
        snapshot: What was searched.
        resolved_query: The query.
        search_result: What was recalled.
        now_ns: Present time, nanoseconds since 1970; None for that of the clock.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        resolved_query: ResolvedQuery,
        search_result: ChannelSearchResult,
        *,
        now_ns: int | None = None,
    ) -> None:
        self._snapshot, self._query, self._result = snapshot, resolved_query, search_result
        self._now_ns = time.time_ns() if now_ns is None else now_ns
        self.items = SnapshotItems(snapshot, search_result.rows)
        self._makers = self._list_makers()
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return len(self._result.rows)

    def get_numbers(self, name: str) -> Numbers | None:
        """Return numbers, see `vecall.ranking.candidate_columns.CandidateColumns`."""
        if name not in self._makers:
            return None
        column = self._make(name)
        return to_numbers(column) if isinstance(column, pl.Series) else column

    def get_texts(self, name: str) -> list[str | None] | None:
        """Return texts, see `vecall.ranking.candidate_columns.CandidateColumns`."""
        return None if name not in self._makers else self._to_series(name).cast(pl.String).to_list()

    def get_lengths(self, name: str) -> Numbers | None:
        """Return lengths of lists, see `vecall.ranking.candidate_columns.CandidateColumns`."""
        if name == "channels":
            return self._count_channels()
        return None if name not in self._makers else get_list_lengths(self._to_series(name))

    def to_frame(self, names: Iterable[str] | None = None) -> pl.DataFrame:
        """Return the table of those of the named columns that there are, or of all."""
        kept = self._makers if names is None else [name for name in names if name in self._makers]
        return build_frame({name: self._to_full_series(name) for name in kept}, len(self))

    def _list_makers(self) -> dict[str, Callable[[], _Column]]:
        """Return for each column, in the order of the table, what makes it; of features of users the one value."""
        release, rows = self._snapshot.release, self._result.rows
        makers: dict[str, Callable[[], _Column]] = {
            "id": lambda: pl.Series(self._snapshot.to_ids(rows), dtype=to_id_dtype(release.item_ids.id_type)),
            "score": lambda: self._result.scores,
            "rank": lambda: np.arange(1, len(rows) + 1),
            "channels": self._list_channels,
        }
        for channel in self._result.hits:
            makers[f"{channel}.score"] = partial(self._align_scores, channel)
            makers[f"{channel}.rank"] = partial(self._align_ranks, channel)
        if (features := self._query.user_features) is not None:
            makers |= {USER_PREFIX + name: partial(get_unnamed_column, features, name) for name in features.columns}
        makers["item.popularity"] = partial(_get_popularity, self._snapshot, rows)
        if (popular := release.channels.popular) is not None:
            makers["item.recent_popularity"] = partial(_get_counts, self._snapshot, rows, popular.counts)
            makers["item.recent_share"] = self._compute_recent_shares
        makers["item.age_days"] = partial(compute_age_days, self._snapshot, rows, self._now_ns)
        history, attributes = self._query.history, release.attributes.schema
        newest = SnapshotItems(self._snapshot, history[-MAX_HISTORY_ITEMS:])
        makers |= list_history_columns(attributes, self.items, newest, len(history))
        if (similar := release.channels.similar) is not None:
            similarities = _Similarities(similar, self._snapshot, rows, history)
            makers["history.similar_last"] = lambda: similarities.values.last
            makers["history.similar_sum"] = lambda: similarities.values.total
            makers["history.next_last"] = lambda: similarities.values.next_last
            makers["history.next_sum"] = lambda: similarities.values.next_total
        return makers | {name: partial(self.items.get_values, name) for name in attributes}

    def _make(self, name: str) -> _Column:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self._makers[name]()
        return column

    def _to_series(self, name: str) -> pl.Series:
        column = self._make(name)
        if isinstance(column, pl.Series):
            return column
        series = pl.Series(column, nan_to_null=True)
        return series.cast(pl.Int64) if name.removesuffix(".rank") in self._result.hits else series

    def _to_full_series(self, name: str) -> pl.Series:
        series = self._to_series(name)
        return series.new_from_index(0, len(self)) if name.startswith(USER_PREFIX) else series

    def _list_channels(self) -> pl.Series:
        combinations, positions = self._result.combine_channels(np.arange(len(self)))
        # Gathered from the few distinct lists: Polars converts a list per row slowly.
        return pl.Series(combinations, dtype=pl.List(pl.String)).gather(positions)

    def _count_channels(self) -> NDArray[np.int64]:
        counts = np.zeros(len(self), dtype=np.int64)
        for positions in self._result.positions_by_channel.values():
            counts += positions >= 0
        return counts

    def _compute_recent_shares(self) -> Scores:
        recent, popularity = (self._make(f"item.{name}") for name in ("recent_popularity", "popularity"))
        return np.asarray(recent / np.maximum(popularity, 1), dtype=np.float32)

    def _align_scores(self, name: ChannelName) -> Scores:
        positions, (_, channel_scores) = self._result.positions_by_channel[name], self._result.hits[name]
        return np.append(channel_scores, np.float32(np.nan))[positions]  # position -1 is the last

    def _align_ranks(self, name: ChannelName) -> NDArray[np.float64]:
        positions = self._result.positions_by_channel[name]
        return np.where(positions >= 0, positions + 1.0, np.nan)


class _Similarities:
    """Similarities of candidates to the newest items of the history, computed once for all columns."""

    def __init__(self, similar: SimilarItems, snapshot: Snapshot, rows: Rows, history: Rows) -> None:
        self._similar, self._snapshot, self._rows, self._history = similar, snapshot, rows, history

    @cached_property
    def values(self) -> HistorySimilarities:
        """Those of C candidates."""
        base_rows, base_history = (self._snapshot.to_base_rows(part) for part in (self._rows, self._history))
        return compute_similarities(self._similar, base_rows, base_history)


def _get_popularity(snapshot: Snapshot, rows: Rows) -> Scores:
    popularity = snapshot.release.popularity
    if popularity is None:
        return np.full(len(rows), np.nan, dtype=np.float32)
    return _get_counts(snapshot, rows, popularity)


def _get_counts(snapshot: Snapshot, rows: Rows, counts: Scores) -> Scores:
    """Return [C] the counts of the items, 0 for new live ones, of [N] counts of the release."""
    base_rows = snapshot.to_base_rows(rows)
    return np.where(base_rows >= 0, counts[base_rows], 0).astype(np.float32)
