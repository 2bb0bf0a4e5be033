"""Partial upserts made whole: an item's columns as they are now, with those that were given in their place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import spell
from vecall.data.frames import column
from vecall.data.id_map import Id
from vecall.errors import QueryError
from vecall.live.column_validation import to_json_value
from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot
from vecall.release.item_features import stored_names

Item = dict[str, Any]


class Completer:
    """Completes partial items of one request, each on top of those before it.

    Args:
        view: what is served.
        journal: with the fields of live items.
    """

    def __init__(self, view: Snapshot, journal: Journal) -> None:
        self._view, self._journal = view, journal
        self._made: dict[Id, Item] = {}

    def complete(self, location: str, one: Id, item: Mapping[str, Any]) -> Item:
        """The whole item.

        Args:
            location: of the item in the request, such as `items[3]`.
            one: its id.
            item: as it was given, with checked fields.

        Raises:
            QueryError: no item has this id, or what it has cannot be written down.
        """
        before = self._made.get(one) or self._current(location, one)
        whole = {**before, "fields": {**before["fields"], **(item.get("fields") or {})}}
        if item.get("vector") is not None:
            whole |= {key: item.get(key) for key in ("vector", "encoder")}
        self._made[one] = whole
        return whole

    def _current(self, location: str, one: Id) -> Item:
        rows = self._view.rows([one])
        if not self._view.has(rows)[0]:
            raise QueryError(
                f"{location}.id: no item has the id {one!r:.80}, and a partial upsert changes items that are there; "
                "give the whole item, without `partial`",
                field=f"{location}.id",
            )
        operation = self._journal.find(one)
        if operation is None or operation.seq <= self._view.release.manifest.journal_seq:
            return self._of_base(location, one, int(rows[0]))
        return self._of_journal(location, operation)

    def _of_journal(self, location: str, operation: Operation) -> Item:
        item: Item = {"id": operation.id, "fields": operation.fields or {}}
        if not operation.given:
            return item
        if operation.encoder != self._view.release.manifest.encoder:
            raise QueryError(
                f"{location}: the item's vector was given for another encoder than that of release "
                f"{self._view.release.name!r}: give the whole item",
                field=f"{location}.vector",
            )
        return item | {"vector": operation.vector, "encoder": operation.encoder}

    def _of_base(self, location: str, one: Id, row: int) -> Item:
        release, rows = self._view.release, np.array([row])
        fields = _json_fields(location, release.attributes[rows])
        if release.encoder is not None:
            features = release.encoder.state.items.features
            if missing := stored_names(features, release.attributes.columns):
                if release.features is None:
                    raise QueryError(
                        f"{location}: release {release.name!r} does not hold the items' {missing}: give the whole "
                        "item, or publish the release again",
                        field=f"{location}.fields",
                    )
                fields |= _json_fields(location, release.features.take(rows))
            if row not in release.given_rows:
                return {"id": one, "fields": fields}
        vector = release.index.vectors(rows)[0]
        return {"id": one, "fields": fields, "vector": vector, "encoder": release.manifest.encoder}


def _json_fields(location: str, row: pl.DataFrame) -> dict[str, Any]:
    """A frame of one row as an upsert gives it; what is null is left out."""
    fields = {}
    for name in row.columns:
        cells = column(row, name)
        if isinstance(cells.dtype, pl.Datetime):  # Python's own would lose nanoseconds
            cells = spell(cells)
        value = cells.to_list()[0]
        try:
            fields[name] = to_json_value(value, cells.dtype)
        except ValueError as error:
            raise QueryError(f"{location}.fields.{name}: {error}: give the whole item", field=location) from error
    return {name: value for name, value in fields.items() if value is not None}
