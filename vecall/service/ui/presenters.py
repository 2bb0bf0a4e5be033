"""Items as people see them: titles and attributes."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
_MAX_TEXT_LENGTH = 120  # characters of a text
_MAX_MATCHES = 50
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class ItemCard:
    """One item.

    Attributes:
        id: its id.
        title: what people call it; its id where it has no title.
        attributes: (name, value) pairs, as text.
        score: where it was found by one.
    """

    id: Id
    title: str
    attributes: tuple[tuple[str, str], ...]
    score: float | None = None


def build_item_cards(snapshot: Snapshot, rows: Rows, scores: NDArray[np.float32] | None = None) -> list[ItemCard]:
    """Items at some rows of a view, in this order."""
    title = find_title_column(snapshot.release.attributes)
    marks: list[float | None] = [None] * len(rows) if scores is None else scores.tolist()
    table = snapshot.get_attributes(rows)
    described = (
        (dict(zip(table.columns, values, strict=True)) for values in table.iter_rows())
        if table.width
        else repeat({}, len(rows))
    )
    ids = cast("list[Id]", snapshot.to_ids(rows))
    return [_build_item_card(*each, title) for each in zip(ids, described, marks, strict=True)]


def _build_item_card(
    item_id: Id, values: Mapping[str, object], score: float | None, title_name: str | None
) -> ItemCard:
    called = None if title_name is None else values[title_name]
    attributes = [
        (name, _format_value(value)) for name, value in values.items() if name != title_name and value not in (None, [])
    ]
    return ItemCard(
        item_id, str(item_id) if called is None else _format_value(called), tuple(attributes[:_MAX_ATTRIBUTES]), score
    )


def find_title_column(attributes: pl.DataFrame) -> str | None:
    """What people know items by: `title` or `name`, else the first text."""
    texts = [name for name, kind in attributes.schema.items() if kind == pl.String]
    return next((name for name in (*_TITLE_COLUMNS, *texts) if name in texts), None)


def search_items(snapshot: Snapshot, text: str) -> Rows:
    """Rows of items whose title holds a text, letters of either case, or whose id it is; live ones alone."""
    table, title = snapshot.release.attributes, find_title_column(snapshot.release.attributes)
    found = np.empty(0, dtype=np.int64)
    if title is not None:
        for part, offset in ((table, 0), (snapshot.delta.attributes, snapshot.release.index.size)):
            holds = get_unnamed_column(part, title).str.to_lowercase().str.contains(text.lower(), literal=True)
            rows = holds.fill_null(value=False).arg_true().cast(pl.Int64).to_numpy() + offset
            found = np.concatenate([found, rows])
    typed = text if snapshot.release.item_ids.id_type == "string" else int(text) if _is_int64(text) else None
    if typed is not None:
        found = np.concatenate([snapshot.to_rows([typed]), found])
    kept = found[snapshot.is_live(found)]
    return kept[np.sort(np.unique(kept, return_index=True)[1])][:_MAX_MATCHES]


def find_ids_with_prefix(id_map: IdMap, prefix: str, max_ids: int) -> list[Id]:
    """The first ids that begin with a text. Rows ascend with ids, so this is a search and not a scan."""
    if id_map.id_type == "string":
        return list(_iterate_ids_from(id_map, prefix, max_ids, lambda one: str(one).startswith(prefix)))
    if not _is_int64(prefix):
        return []
    found: list[Id] = []
    low = high = int(prefix)  # of the magnitudes that begin so
    while len(found) < max_ids and low >= _MIN_INT64 and high <= _MAX_INT64:
        found += _iterate_ids_from(id_map, low, max_ids - len(found), partial(_is_at_most, high))
        if low == 0:
            break
        low, high = (low * 10, high * 10 + 9) if low > 0 else (low * 10 - 9, high * 10)
        low, high = max(low, _MIN_INT64), min(high, _MAX_INT64)
        if low > high:
            break
    return found


def sample_ids(id_map: IdMap, count: int) -> list[Id]:
    """Ids from all over."""
    return list(id_map.to_ids(evenly_spaced_rows(len(id_map), count)))


def _iterate_ids_from(id_map: IdMap, first_id: Id, max_ids: int, is_match: Callable[[Id], bool]) -> Iterator[Id]:
    begin = bisect_left(range(len(id_map)), first_id, key=lambda row: id_map.to_ids(np.array([row]))[0])
    for one in cast("list[Id]", id_map.to_ids(np.arange(begin, min(begin + max_ids, len(id_map))))):
        if not is_match(one):
            return
        yield one


def _is_at_most(maximum: int, item_id: Id) -> bool:
    return int(item_id) <= maximum


def _is_int64(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) <= 20 and _MIN_INT64 <= int(text) <= _MAX_INT64


def _format_value(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _MAX_TEXT_LENGTH else text[: _MAX_TEXT_LENGTH - 1] + "…"
