"""Checked tables as rows and ordered histories: where ids end and rows begin."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.frames import build_frame, get_unnamed_column
from vecall.data.id_map import IdMap, build_id_map
from vecall.data.tables import EntityTable, Tables
from vecall.schema import Schema


@dataclass(frozen=True)
class Interactions:
    """n interactions ordered by user, then time, then place in the file.

    Attributes:
        users: [n] user rows, ascending.
        items: [n] item rows.
        times: [n] the time column's own numbers, or microseconds since 1970 if `has_datetimes`; without such a column the
            place in the file.
        is_positive: [n] whether the user took the item and liked it; the others are labelled negatives and
            impressions not taken.
        has_datetimes: whether `times` are microseconds since 1970, from datetimes or ISO 8601 text.
    """

    users: Rows
    items: Rows
    times: NDArray[np.int64] | NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    has_datetimes: bool = False

    def filter(self, mask: NDArray[np.bool_]) -> "Interactions":
        """The marked ones, in the same order."""
        return Interactions(
            self.users[mask], self.items[mask], self.times[mask], self.is_positive[mask], self.has_datetimes
        )


@dataclass(frozen=True)
class Catalogue:
    """Both vocabularies and, row by row, what is known of users and items.

    Attributes:
        items: vocabulary of all N items: those of the items table, or without one all that were interacted with.
        users: vocabulary of all U users, of the users table and of the interactions.
        item_ids: [N] the items' ids in vocabulary order.
        user_ids: [U] the users' ids likewise.
        item_features: [N] rows with a column per item feature; no column without a table.
        user_features: [U] rows with a column per user feature, null for a user that the users table lacks.
        item_attributes: [N] rows with a column per attribute, the title among them.
    """

    items: IdMap
    users: IdMap
    item_ids: pl.Series
    user_ids: pl.Series
    item_features: pl.DataFrame
    user_features: pl.DataFrame
    item_attributes: pl.DataFrame


def build_catalogue(tables: Tables, schema: Schema) -> Catalogue:
    """Give every item and user of the tables a row."""
    items, users = tables.items, tables.users
    item_ids = (tables.interactions["item"].unique() if items is None else items.ids).sort()
    user_ids = tables.interactions["user"]
    if users is not None:
        user_ids = pl.concat([users.ids.rename("user"), user_ids])
    user_ids = user_ids.unique().sort()
    return Catalogue(
        items=build_id_map(item_ids, schema.items.id_type),
        users=build_id_map(user_ids, schema.users.id_type),
        item_ids=item_ids,
        user_ids=user_ids,
        item_features=_align_to_ids(items, "features", item_ids),
        user_features=_align_to_ids(users, "features", user_ids),
        item_attributes=_align_to_ids(items, "attributes", item_ids),
    )


def _align_to_ids(table: EntityTable | None, part: Literal["features", "attributes"], ids: pl.Series) -> pl.DataFrame:
    """[len(ids)] rows of a part of a table; null where it has no such id, without columns where there is none."""
    if table is None:
        return pl.DataFrame(height=len(ids))
    frame: pl.DataFrame = getattr(table, part)
    places = pl.DataFrame({"id": table.ids, "place": np.arange(len(table.ids), dtype=np.int64)})
    found = pl.DataFrame({"id": ids}).join(places, on="id", how="left", maintain_order="left")["place"]
    return build_frame({name: get_unnamed_column(frame, name).gather(found) for name in frame.columns}, len(ids))


def build_interactions(tables: Tables, catalogue: Catalogue) -> Interactions:
    """Interactions as rows, in the order that histories are read in."""
    frame = tables.interactions
    users = catalogue.users.column_to_rows(frame["user"])
    items = catalogue.items.column_to_rows(frame["item"])
    dated = "time" in frame.columns and frame["time"].dtype.is_temporal()
    times = frame["time"].to_physical().to_numpy() if "time" in frame.columns else np.arange(len(frame))
    positive = frame["positive"].to_numpy()
    order = np.lexsort((times, users))  # stable: equal times keep the file's order
    return Interactions(users[order], items[order], times[order], positive[order], dated)
