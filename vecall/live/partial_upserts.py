"""Partial upserts: complete an item with the current values of the columns that the caller left out."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import column_to_text
from vecall.data.frames import get_unnamed_column
from vecall.data.id_map import Id
from vecall.errors import QueryError
from vecall.live.column_validation import to_json_value
from vecall.live.item_columns import ItemColumns
from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot
from vecall.release.item_features import list_stored_features

ItemPayload = dict[str, Any]


class PartialItemMerger:
    """Completes the partial items of one request. Several items with the same id build on each other.

    Args:
        snapshot: the state that is served.
        journal: the journal, which holds the fields of upserted items.
    """

    def __init__(self, snapshot: Snapshot, journal: Journal) -> None:
        self._snapshot, self._journal = snapshot, journal
        self._items_by_id: dict[Id, ItemPayload] = {}

    @cached_property
    def _columns(self) -> ItemColumns:
        return ItemColumns.from_release(self._snapshot.release)

    def merge(self, location: str, item_id: Id, item: Mapping[str, Any]) -> ItemPayload:
        """Return the complete item.

        Args:
            location: the item's location in the request, such as `items[3]`.
            item_id: the item's id.
            item: the partial item; its fields are checked.

        Raises:
            QueryError: no item has this id, or its current values cannot be written as JSON.
        """
        if item.get("encoder") is not None and item.get("vector") is None:
            raise QueryError(
                f"{location}.encoder: is given without a vector; give both or neither", field=f"{location}.encoder"
            )
        current = self._items_by_id.get(item_id) or self._read_current(location, item_id)
        merged = {**current, "fields": {**current["fields"], **(item.get("fields") or {})}}
        if item.get("vector") is not None:
            merged |= {key: item.get(key) for key in ("vector", "encoder")}
        self._items_by_id[item_id] = merged
        return merged

    def _read_current(self, location: str, item_id: Id) -> ItemPayload:
        rows = self._snapshot.to_rows([item_id])
        if not self._snapshot.is_live(rows)[0]:
            raise QueryError(
                f"{location}.id: no item has the id {item_id!r:.80}, and a partial upsert changes existing items only: "
                "give the complete item, without `partial`",
                field=f"{location}.id",
            )
        operation = self._journal.find_last(item_id)
        if operation is None or operation.seq <= self._snapshot.release.manifest.journal_seq:
            return self._read_from_base(location, item_id, int(rows[0]))
        return self._read_from_journal(location, operation)

    def _read_from_journal(self, location: str, operation: Operation) -> ItemPayload:
        # An earlier release may have had other columns: an upsert does not take fields of columns that are gone.
        fields = self._columns.select_compatible_fields(operation.fields or {})
        item: ItemPayload = {"id": operation.id, "fields": fields}
        if not operation.has_external_vector:
            return item
        if operation.encoder_hash != self._snapshot.release.manifest.encoder:
            raise QueryError(
                f"{location}: the item's vector was given for another encoder than that of release "
                f"{self._snapshot.release.name!r}: give the complete item",
                field=f"{location}.vector",
            )
        return item | {"vector": operation.vector, "encoder": operation.encoder_hash}

    def _read_from_base(self, location: str, item_id: Id, row: int) -> ItemPayload:
        release, rows = self._snapshot.release, np.array([row])
        fields = _to_json_fields(location, release.attributes[rows])
        if release.encoder is not None:
            features = release.encoder.state.items.features
            if missing := list_stored_features(features, release.attributes.columns):
                if release.item_features is None:
                    raise QueryError(
                        f"{location}: release {release.name!r} does not store the item features {missing}: give the "
                        "complete item, or publish the release again",
                        field=f"{location}.fields",
                    )
                fields |= _to_json_fields(location, release.item_features.take(rows))
            if row not in release.external_vector_rows:
                return {"id": item_id, "fields": fields}
        vector = release.vectors.get_vectors(rows)[0]
        return {"id": item_id, "fields": fields, "vector": vector, "encoder": release.manifest.encoder}


def _to_json_fields(location: str, frame: pl.DataFrame) -> dict[str, Any]:
    """Convert a frame of one row to the fields that an upsert would give; null fields are left out."""
    fields = {}
    for name in frame.columns:
        column = get_unnamed_column(frame, name)
        inner = column.dtype.inner if isinstance(column.dtype, (pl.List, pl.Array)) else column.dtype
        if isinstance(inner, pl.Datetime):  # Python's datetime would lose the nanoseconds
            column = column_to_text(column)
        value = column.to_list()[0]
        try:
            fields[name] = to_json_value(value, column.dtype)
        except ValueError as error:
            raise QueryError(f"{location}.fields.{name}: {error}: give the complete item", field=location) from error
    return {name: value for name, value in fields.items() if value is not None}
