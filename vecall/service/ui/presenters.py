"""Items and ids for display: cards with titles and attributes, searches by title, samples."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.frames import get_unnamed_column
from vecall.data.id_map import Id, IdMap
from vecall.index.sampling import evenly_spaced_rows
from vecall.live.snapshot import Snapshot

_TITLE_COLUMNS = ("title", "name")
_MAX_ATTRIBUTES = 6
_MAX_TEXT_LENGTH = 120  # characters
_MAX_MATCHES = 50
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class ItemCard:
    """An item for display.

    Attributes:
        id: item id.
        title: its title; its id if it has none.
        attributes: (name, value) pairs, as text.
        score: its score in a result; None outside of results.
        channels: names of the channels that recalled it; empty where there is only one, or outside of results.
    """

    id: Id
    title: str
    attributes: tuple[tuple[str, str], ...]
    score: float | None = None
    channels: tuple[str, ...] = ()


def build_item_cards(
    snapshot: Snapshot,
    rows: Rows,
    scores: NDArray[np.floating] | None = None,
    *,
    channels: Sequence[Sequence[str]] | None = None,
    max_attributes: int | None = _MAX_ATTRIBUTES,
) -> list[ItemCard]:
    """Cards of the items at some rows of a snapshot, in this order.

    Args:
        snapshot: where the items are.
        rows: [n] rows.
        scores: [n] scores in a result.
        channels: [n] names of the channels that recalled each item.
        max_attributes: number of attributes of a card; None: all.
    """
    title_column = find_title_column(snapshot.release.attributes)
    card_scores: list[float | None] = [None] * len(rows) if scores is None else scores.tolist()
    frame = snapshot.get_attributes(rows)
    attributes = (
        (dict(zip(frame.columns, values, strict=True)) for values in frame.iter_rows())
        if frame.width
        else repeat({}, len(rows))
    )
    ids = cast("list[Id]", snapshot.to_ids(rows))
    cards = [
        _build_item_card(item_id, values, score, title_column, max_attributes)
        for item_id, values, score in zip(ids, attributes, card_scores, strict=True)
    ]
    if channels is None:
        return cards
    return [replace(card, channels=tuple(names)) for card, names in zip(cards, channels, strict=True)]


def _build_item_card(
    item_id: Id,
    values: Mapping[str, object],
    score: float | None,
    title_column: str | None,
    max_attributes: int | None,
) -> ItemCard:
    title = None if title_column is None else values[title_column]
    attributes = [
        (name, _format_value(value))
        for name, value in values.items()
        if name != title_column and value not in (None, [])
    ]
    return ItemCard(
        item_id, str(item_id) if title is None else _format_value(title), tuple(attributes[:max_attributes]), score
    )


def find_title_column(attributes: pl.DataFrame) -> str | None:
    """The column that people know items by: `title` or `name`, else the first text column; None without any."""
    text_columns = [name for name, dtype in attributes.schema.items() if dtype == pl.String]
    return next((name for name in (*_TITLE_COLUMNS, *text_columns) if name in text_columns), None)


def search_items(snapshot: Snapshot, text: str) -> Rows:
    """Rows of live items with this id, or with a title that contains the text in any case; at most 50."""
    attributes, title_column = snapshot.release.attributes, find_title_column(snapshot.release.attributes)
    rows = np.empty(0, dtype=np.int64)
    if title_column is not None:
        for frame, offset in ((attributes, 0), (snapshot.delta.attributes, snapshot.release.vectors.size)):
            titles = get_unnamed_column(frame, title_column).str.to_lowercase()
            is_match = titles.str.contains(text.lower(), literal=True).fill_null(value=False)
            rows = np.concatenate([rows, is_match.arg_true().cast(pl.Int64).to_numpy() + offset])
    item_id = text if snapshot.release.item_ids.id_type == "string" else int(text) if _is_int64(text) else None
    if item_id is not None:
        rows = np.concatenate([snapshot.to_rows([item_id]), rows])
    live_rows = rows[snapshot.is_live(rows)]
    first_positions = np.sort(np.unique(live_rows, return_index=True)[1])
    return live_rows[first_positions][:_MAX_MATCHES]


def suggest_items(snapshot: Snapshot, count: int) -> Rows:
    """Rows of the most popular live items, as recall falls back on; evenly spaced ones if popularity is unknown."""
    popular = snapshot.release.channels.popular
    popular_rows = snapshot.release.popular_rows if popular is None else popular.sorted_rows
    if not len(popular_rows):
        size = snapshot.release.vectors.size
        popular_rows = np.unique(np.linspace(0, size - 1, count).round().astype(np.int64))
    candidates = snapshot.to_latest_rows(popular_rows)
    return candidates[snapshot.is_live(candidates)][:count]


def find_ids_with_prefix(id_map: IdMap, prefix: str, max_ids: int) -> list[Id]:
    """The first ids that start with a text. Rows ascend with ids, so this is a binary search, not a scan."""
    if id_map.id_type == "string":
        return list(_iterate_ids_from(id_map, prefix, max_ids, lambda item_id: str(item_id).startswith(prefix)))
    if not _is_int64(prefix):
        return []
    ids: list[Id] = []
    low = high = int(prefix)  # the integers that start with the prefix and have the same number of digits
    while len(ids) < max_ids and low >= _MIN_INT64 and high <= _MAX_INT64:
        ids += _iterate_ids_from(id_map, low, max_ids - len(ids), partial(_is_not_above, high))
        if low == 0:
            break
        low, high = (low * 10, high * 10 + 9) if low > 0 else (low * 10 - 9, high * 10)
        low, high = max(low, _MIN_INT64), min(high, _MAX_INT64)
        if low > high:
            break
    return ids


def sample_ids(id_map: IdMap, count: int) -> list[Id]:
    """Evenly spaced ids."""
    return list(id_map.to_ids(evenly_spaced_rows(len(id_map), count)))


def _iterate_ids_from(id_map: IdMap, first_id: Id, max_ids: int, is_match: Callable[[Id], bool]) -> Iterator[Id]:
    start = bisect_left(range(len(id_map)), first_id, key=lambda row: id_map.to_ids(np.array([row]))[0])
    for item_id in cast("list[Id]", id_map.to_ids(np.arange(start, min(start + max_ids, len(id_map))))):
        if not is_match(item_id):
            return
        yield item_id


def _is_not_above(maximum: int, item_id: Id) -> bool:
    return int(item_id) <= maximum


def _is_int64(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) <= 20 and _MIN_INT64 <= int(text) <= _MAX_INT64


def _format_value(value: object) -> str:
    """The value as text, booleans as filters expect them."""
    values = value if isinstance(value, list) else [value]
    text = ", ".join(str(part).lower() if isinstance(part, bool) else str(part) for part in values)
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
