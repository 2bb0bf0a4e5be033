"""Checked tables as rows and ordered histories: where ids end and rows begin."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.sequences import Rows
from vecall.data.tables import Tables
from vecall.data.vocabulary import Vocabulary, build_vocabulary
from vecall.schema import Schema


@dataclass(frozen=True)
class Interactions:
    """n interactions ordered by user, then time, then place in the file.

    Attributes:
        users: [n] user rows, ascending.
        items: [n] item rows.
        times: [n] the time column's own numbers, or microseconds since 1970 if `dated`; without such a column the
            place in the file.
        positive: [n] whether the user took the item and liked it; the others are labelled negatives and
            impressions not taken.
        dated: whether `times` are microseconds since 1970, from datetimes or ISO 8601 text.
    """

    users: Rows
    items: Rows
    times: NDArray[np.int64] | NDArray[np.float64]
    positive: NDArray[np.bool_]
    dated: bool = False

    def where(self, keep: NDArray[np.bool_]) -> "Interactions":
        """The marked ones, in the same order."""
        return Interactions(self.users[keep], self.items[keep], self.times[keep], self.positive[keep], self.dated)


@dataclass(frozen=True)
class Catalogue:
    """Both vocabularies and, row by row, what is known of users and items.

    Attributes:
        items: vocabulary of all N items: those of the items table, or without one all that were interacted with.
        users: vocabulary of all U users, of the users table and of the interactions.
        item_fields: [N] rows in vocabulary order: `id`, features, attributes and title; only `id` without a table.
        user_fields: [U] rows likewise: `id` and features, null for a user that the users table lacks.
    """

    items: Vocabulary
    users: Vocabulary
    item_fields: pl.DataFrame
    user_fields: pl.DataFrame


def build_catalogue(tables: Tables, schema: Schema) -> Catalogue:
    """Give every item and user of the tables a row."""
    item_table = tables.items if tables.items is not None else _ids_alone(tables.interactions["item"])
    user_ids = _ids_alone(tables.interactions["user"])
    user_table = user_ids
    if tables.users is not None:
        every_user = pl.concat([tables.users.select("id"), user_ids]).unique()
        user_table = every_user.join(tables.users, on="id", how="left")
    return Catalogue(
        items=build_vocabulary(item_table["id"], schema.items.id_type),
        users=build_vocabulary(user_table["id"], schema.users.id_type),
        item_fields=item_table.sort("id"),
        user_fields=user_table.sort("id"),
    )


def _ids_alone(column: pl.Series) -> pl.DataFrame:
    return column.unique().rename("id").to_frame()


def order_interactions(tables: Tables, catalogue: Catalogue, schema: Schema) -> Interactions:
    """Interactions as rows, in the order that histories are read in."""
    frame = tables.interactions
    users = catalogue.users.rows_of(frame["user"])
    items = catalogue.items.rows_of(frame["item"])
    dated = "time" in frame.columns and frame["time"].dtype.is_temporal()
    times = frame["time"].to_physical().to_numpy() if "time" in frame.columns else np.arange(len(frame))
    positive = np.ones(len(frame), dtype=np.bool_)
    if "label" in frame.columns:
        positive &= (frame["label"] >= schema.interactions.positive).to_numpy()
    if "shown" in frame.columns:
        positive &= ~frame["shown"].to_numpy()
    order = np.lexsort((times, users))  # stable: equal times keep the file's order
    return Interactions(users[order], items[order], times[order], positive[order], dated)
