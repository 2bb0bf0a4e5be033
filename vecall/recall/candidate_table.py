"""The table of recalled items that is handed to ranking: what recall knows of each."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from vecall.arrays import Rows
from vecall.channels.settings import ChannelName
from vecall.data.casting import to_id_dtype
from vecall.live.snapshot import Snapshot
from vecall.ranking.history_columns import MAX_HISTORY_ITEMS, ItemDescriptions, build_history_columns
from vecall.recall.channel_search import ChannelSearchResult
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.result_order import ScoredRows


def build_candidate_table(
    snapshot: Snapshot, resolved_query: ResolvedQuery, search_result: ChannelSearchResult
) -> pl.DataFrame:
    """Build a frame of C rows, one per recalled item, in the order of recall.

    Returns:
        The columns
          - `id`, `score`, `rank` (from 1): of the answer;
          - `channels`: names of the channels that returned the item;
          - `CHANNEL.score`, `CHANNEL.rank`: of each channel that was asked, null where it did not return the item;
          - `user.COLUMN`: features of the user, equal in all rows;
          - `item.popularity`: number of positive interactions, null where it is not known; 0 for new live items;
          - `history.*`: comparisons with the newest items of the history, see `vecall.ranking.history_columns`;
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
    for name, (scores, ranks) in by_channel.items():
        columns[f"{name}.score"], columns[f"{name}.rank"] = scores, ranks
    features = resolved_query.user_features
    if features is not None:
        columns |= {f"user.{column}": features[column].new_from_index(0, len(rows)) for column in features.columns}
    columns["item.popularity"] = _get_popularity(snapshot, rows)
    recalled = _describe_items(snapshot, rows)
    newest = _describe_items(snapshot, resolved_query.history[-MAX_HISTORY_ITEMS:])
    columns |= build_history_columns(recalled, newest, len(resolved_query.history))
    return pl.DataFrame(columns).hstack(recalled.attributes)


def _describe_items(snapshot: Snapshot, rows: Rows) -> ItemDescriptions:
    return ItemDescriptions(snapshot.get_attributes(rows), snapshot.get_vectors(rows))


def _align(rows: Rows, hits: ScoredRows) -> tuple[pl.Series, pl.Series]:
    """Return score and rank, from 1, of each of `rows` in a channel; null where the channel did not return it."""
    channel_rows, channel_scores = hits
    order = np.argsort(channel_rows)
    positions = np.append(order, -1)[np.searchsorted(channel_rows, rows, sorter=order)]  # -1: beyond the largest row
    is_hit = positions >= 0
    is_hit[is_hit] = channel_rows[positions[is_hit]] == rows[is_hit]
    scores, ranks = np.full(len(rows), np.nan, dtype=np.float32), positions + 1
    scores[is_hit] = channel_scores[positions[is_hit]]
    return pl.Series(scores, nan_to_null=True), pl.select(pl.when(pl.Series(is_hit)).then(pl.Series(ranks))).to_series()


def _list_channels(by_channel: Mapping[ChannelName, tuple[pl.Series, pl.Series]], length: int) -> pl.Series:
    """Return for each row the names of the channels that have a rank for it."""
    names: list[list[str]] = [[] for _ in range(length)]
    for name, (_, ranks) in by_channel.items():
        for position in ranks.is_not_null().arg_true():
            names[position].append(name)
    return pl.Series(names, dtype=pl.List(pl.String))


def _get_popularity(snapshot: Snapshot, rows: Rows) -> pl.Series:
    popularity = snapshot.release.popularity
    if popularity is None:
        return pl.Series([None], dtype=pl.Float32).new_from_index(0, len(rows))
    base_rows = snapshot.to_base_rows(rows)
    return pl.Series(np.where(base_rows >= 0, popularity[base_rows], 0).astype(np.float32))
