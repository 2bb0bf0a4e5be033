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

from vecall.data.frames import column
from vecall.data.id_map import Id, Vocabulary
from vecall.index.bitmap import Rows
from vecall.live.snapshot import Snapshot

_TITLES = ("title", "name")
_MOST_ATTRIBUTES = 6
_LONGEST = 120  # characters of a text
_MOST_FOUND = 50
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Shown:
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


def shown(view: Snapshot, rows: Rows, scores: NDArray[np.float32] | None = None) -> list[Shown]:
    """Items at some rows of a view, in this order."""
    title = title_column(view.release.attributes)
    marks: list[float | None] = [None] * len(rows) if scores is None else scores.tolist()
    table = view.attributes(rows)
    described = (
        (dict(zip(table.columns, values, strict=True)) for values in table.iter_rows())
        if table.width
        else repeat({}, len(rows))
    )
    ids = cast("list[Id]", view.ids(rows))
    return [_shown(*each, title) for each in zip(ids, described, marks, strict=True)]


def _shown(one: Id, values: Mapping[str, object], score: float | None, title: str | None) -> Shown:
    called = None if title is None else values[title]
    attributes = [(name, _text(value)) for name, value in values.items() if name != title and value not in (None, [])]
    return Shown(one, str(one) if called is None else _text(called), tuple(attributes[:_MOST_ATTRIBUTES]), score)


def title_column(attributes: pl.DataFrame) -> str | None:
    """What people know items by: `title` or `name`, else the first text."""
    texts = [name for name, kind in attributes.schema.items() if kind == pl.String]
    return next((name for name in (*_TITLES, *texts) if name in texts), None)


def find_items(view: Snapshot, asked: str) -> Rows:
    """Rows of items whose title holds a text, letters of either case, or whose id it is; live ones alone."""
    table, title = view.release.attributes, title_column(view.release.attributes)
    found = np.empty(0, dtype=np.int64)
    if title is not None:
        for part, offset in ((table, 0), (view.delta.attributes, view.release.index.size)):
            holds = column(part, title).str.to_lowercase().str.contains(asked.lower(), literal=True)
            rows = holds.fill_null(value=False).arg_true().cast(pl.Int64).to_numpy() + offset
            found = np.concatenate([found, rows])
    typed = asked if view.release.items.id_type == "string" else int(asked) if _is_integer(asked) else None
    if typed is not None:
        found = np.concatenate([view.rows([typed]), found])
    kept = found[view.has(found)]
    return kept[np.sort(np.unique(kept, return_index=True)[1])][:_MOST_FOUND]


def find_ids(ids: Vocabulary, prefix: str, most: int) -> list[Id]:
    """The first ids that begin with a text. Rows ascend with ids, so this is a search and not a scan."""
    if ids.id_type == "string":
        return list(_from(ids, prefix, most, lambda one: str(one).startswith(prefix)))
    if not _is_integer(prefix):
        return []
    found: list[Id] = []
    low = high = int(prefix)  # of the magnitudes that begin so
    while len(found) < most and low >= _MIN_INTEGER and high <= _MAX_INTEGER:
        found += _from(ids, low, most - len(found), partial(_at_most, high))
        if low == 0:
            break
        low, high = (low * 10, high * 10 + 9) if low > 0 else (low * 10 - 9, high * 10)
        low, high = max(low, _MIN_INTEGER), min(high, _MAX_INTEGER)
        if low > high:
            break
    return found


def some_ids(ids: Vocabulary, count: int) -> list[Id]:
    """Ids from all over."""
    return list(ids.ids(np.unique(np.linspace(0, len(ids) - 1, count).round().astype(np.int64))))


def _from(ids: Vocabulary, first: Id, most: int, fits: Callable[[Id], bool]) -> Iterator[Id]:
    begin = bisect_left(range(len(ids)), first, key=lambda row: ids.ids(np.array([row]))[0])
    for one in cast("list[Id]", ids.ids(np.arange(begin, min(begin + most, len(ids))))):
        if not fits(one):
            return
        yield one


def _at_most(top: int, one: Id) -> bool:
    return int(one) <= top


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) <= 20 and _MIN_INTEGER <= int(text) <= _MAX_INTEGER


def _text(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
