"""The table of recalled items that is handed to ranking: what recall knows of each."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from vecall.arrays import Mask, Rows
from vecall.channels.settings import ChannelName
from vecall.data.casting import to_id_dtype
from vecall.live.snapshot import Snapshot
from vecall.ranking.history_columns import MAX_HISTORY_ITEMS, ItemDescriptions, build_history_columns
from vecall.recall.channel_search import ChannelSearchResult, combine_channels
from vecall.recall.history_similarity import compute_similarities
from vecall.recall.item_age import compute_age_days
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.result_order import ScoredRows


def build_candidate_table(
    snapshot: Snapshot,
    resolved_query: ResolvedQuery,
    search_result: ChannelSearchResult,
    *,
    now_ns: int | None = None,
) -> pl.DataFrame:
    """Build a frame of C rows, one per recalled item, in the order of recall.

    Args:
        snapshot: What was searched.
        resolved_query: The query.
        search_result: What was recalled.
        now_ns: Present time, nanoseconds since 1970; None for that of the clock.

    Returns:
        The columns
          - `id`, `score`, `rank` (from 1): of the answer;
          - `channels`: names of the channels that returned the item;
          - `CHANNEL.score`, `CHANNEL.rank`: of each channel that was asked, null where it did not return the item;
          - `user.COLUMN`: features of the user, equal in all rows;
          - `item.popularity`: number of positive interactions, null where it is not known; 0 for new live items;
          - `item.age_days`: days since the item came, by the clock of the data, see `vecall.recall.item_age`; null
            where it is not known;
          - `history.*`: comparisons with the newest items of the history, see `vecall.ranking.history_columns`;
          - `history.similar_last`, `history.similar_sum`: similarity to the newest item of the history, and its sum
            over the newest 10, by the table of the channel `similar`, whether or not it was asked; only in a release
            that has the table;
          - the attributes, under their own names.
    """
    rows = search_result.rows
    by_channel = {name: _align(rows, hits) for name, hits in search_result.hits.items()}
    columns: dict[str, pl.Series] = {
        "id": pl.Series(snapshot.to_ids(rows), dtype=to_id_dtype(snapshot.release.item_ids.id_type)),
        "score": pl.Series(search_result.scores, dtype=pl.Float32),
        "rank": pl.Series(np.arange(1, len(rows) + 1)),
        "channels": _list_channels(by_channel, len(rows)),
    }
    for name, aligned in by_channel.items():
        columns[f"{name}.score"], columns[f"{name}.rank"] = aligned.scores, aligned.ranks
    features = resolved_query.user_features
    if features is not None:
        columns |= {f"user.{column}": features[column].new_from_index(0, len(rows)) for column in features.columns}
    columns["item.popularity"] = _get_popularity(snapshot, rows)
    ages = compute_age_days(snapshot, rows, time.time_ns() if now_ns is None else now_ns)
    columns["item.age_days"] = pl.Series(ages, nan_to_null=True)
    recalled = _describe_items(snapshot, rows)
    newest = _describe_items(snapshot, resolved_query.history[-MAX_HISTORY_ITEMS:])
    columns |= build_history_columns(recalled, newest, len(resolved_query.history))
    if (similar := snapshot.release.channels.similar) is not None:
        base_rows, base_history = (snapshot.to_base_rows(part) for part in (rows, resolved_query.history))
        last, total = compute_similarities(similar, base_rows, base_history)
        columns |= {"history.similar_last": pl.Series(last), "history.similar_sum": pl.Series(total)}
    return pl.DataFrame(columns).hstack(recalled.attributes)


def _describe_items(snapshot: Snapshot, rows: Rows) -> ItemDescriptions:
    return ItemDescriptions(snapshot.get_attributes(rows), snapshot.get_vectors(rows))


@dataclass(frozen=True)
class _AlignedHits:
    """What a channel says of R rows.

    Attributes:
        is_hit: [R] whether the channel returned the row.
        scores: [R] its scores; null where it did not.
        ranks: [R] its ranks, from 1; null where it did not.
    """

    is_hit: Mask
    scores: pl.Series
    ranks: pl.Series


def _align(rows: Rows, hits: ScoredRows) -> _AlignedHits:
    channel_rows, channel_scores = hits
    order = np.argsort(channel_rows)
    positions = np.append(order, -1)[np.searchsorted(channel_rows, rows, sorter=order)]  # -1: beyond the largest row
    is_hit = positions >= 0
    is_hit[is_hit] = channel_rows[positions[is_hit]] == rows[is_hit]
    scores, ranks = np.full(len(rows), np.nan, dtype=np.float32), np.full(len(rows), np.nan)
    scores[is_hit], ranks[is_hit] = channel_scores[positions[is_hit]], positions[is_hit] + 1
    # Expressions of Polars would take longer than all else here: each starts its thread pool.
    return _AlignedHits(is_hit, pl.Series(scores, nan_to_null=True), pl.Series(ranks, nan_to_null=True).cast(pl.Int64))


def _list_channels(by_channel: Mapping[ChannelName, _AlignedHits], length: int) -> pl.Series:
    """Return for each row the names of the channels that returned it."""
    masks = {name: hits.is_hit for name, hits in by_channel.items()}
    combinations, positions = combine_channels(masks, length)
    # Gathered from the few distinct lists: Polars converts a list per row slowly.
    return pl.Series(combinations, dtype=pl.List(pl.String)).gather(positions)


def _get_popularity(snapshot: Snapshot, rows: Rows) -> pl.Series:
    popularity = snapshot.release.popularity
    if popularity is None:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, len(rows))
    base_rows = snapshot.to_base_rows(rows)
    return pl.Series(np.where(base_rows >= 0, popularity[base_rows], 0).astype(np.float32))
