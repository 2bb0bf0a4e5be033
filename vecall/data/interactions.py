"""Mapping of validated tables from ids to rows, and ordering of the interactions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.casting import to_feature_dtype
from vecall.data.events import compute_kind_weights, list_target_kinds, mark_target_kinds
from vecall.data.frames import build_frame, get_unnamed_column, null_column
from vecall.data.id_map import IdMap, build_id_map
from vecall.data.interaction_table import InteractionTable, mark_used_codes
from vecall.data.ordering import order_by_user_and_time
from vecall.data.repeats import select_distinct
from vecall.data.tables import EntityTable, Tables
from vecall.schema import InteractionSchema, Schema, TimeUnit


@dataclass(frozen=True)
class Interactions:
    """n interactions, ordered by user, then time, then position in the file.

    Attributes:
        users: [n] User rows, ascending, int32.
        items: [n] Item rows, int32.
        times: [n] Numbers of the time column, or microseconds since 1970 if `has_datetimes`; without a time column,
            positions in the file.
        is_positive: [n] Whether the interaction is positive; others have a label below the threshold, or are
            impressions of items that were not chosen.
        has_datetimes: Whether the time column holds datetimes or ISO 8601 text.
        time_unit: Unit of the times since 1970; None if it is not known, or the times are positions.
        has_times: Whether there is a time column.
        parts: [n] The part of the split that the table names, `TRAIN`, `VALID` or `TEST`; None if it names none.
        weights: [n] Weight in the loss of each interaction, if it is positive: 0 is read as history alone; None if all
            positives weigh the same.
        is_target: [n] Whether the interaction may be held out, if it is positive; None if all positives may.
        kinds: [n] Numbers of the kinds, those of impressions apart; None if all interactions are of one kind.
        context: [n] Rows with a column per context feature; None without such.
        target_kinds: The kinds that may be held out, for reports, where they are not all.
    """

    users: Rows
    items: Rows
    times: NDArray[np.int64] | NDArray[np.float64]
    is_positive: Mask
    has_datetimes: bool = False
    time_unit: TimeUnit | None = None
    has_times: bool = False
    parts: NDArray[np.int8] | None = None
    weights: NDArray[np.float32] | None = None
    is_target: Mask | None = None
    kinds: NDArray[np.int32] | None = None
    context: pl.DataFrame | None = None
    target_kinds: Sequence[str] = ()

    @property
    def positives(self) -> "Interactions":
        """The positive interactions, in the same order; not copied where all are positive."""
        return self if self.is_positive.all() else self.filter(self.is_positive)

    @property
    def counted_positives(self) -> "Interactions":
        """The positive interactions of a weight above 0: what baselines, channels and popularity count."""
        positives = self.positives
        if positives.weights is None or positives.weights.all():
            return positives
        return positives.filter(positives.weights > 0)

    def filter(self, mask: Mask) -> "Interactions":
        """Return the interactions where the mask [n] is true, in the same order."""
        return replace(
            self,
            users=self.users[mask],
            items=self.items[mask],
            times=self.times[mask],
            is_positive=self.is_positive[mask],
            parts=None if self.parts is None else self.parts[mask],
            weights=None if self.weights is None else self.weights[mask],
            is_target=None if self.is_target is None else self.is_target[mask],
            kinds=None if self.kinds is None else self.kinds[mask],
            context=None if self.context is None else self.context.filter(pl.Series(mask)),
        )


@dataclass(frozen=True)
class Catalogue:
    """All items and users: their ids, rows, features and attributes.

    Attributes:
        items: Map of all N items: those of the items table, or of the interactions if there is no such table.
        users: Map of all U users: those of the users table and of the interactions.
        item_ids: [N] Item ids in the order of their rows.
        user_ids: [U] User ids in the order of their rows.
        item_features: [N] Rows with a column per item feature; no columns without an items table.
        user_features: [U] Rows with a column per user feature, null for users that the users table lacks; no columns of
            them without that table. Context features are columns of nulls: they are of a request, not of a user.
        item_attributes: [N] Rows with a column per attribute, the title among them.
    """

    items: IdMap
    users: IdMap
    item_ids: pl.Series
    user_ids: pl.Series
    item_features: pl.DataFrame
    user_features: pl.DataFrame
    item_attributes: pl.DataFrame


def build_catalogue(tables: Tables, schema: Schema) -> Catalogue:
    """Assign a row to every item and user of the tables."""
    log, items, users = tables.interactions, tables.items, tables.users
    has_row = mark_used_codes(log.users, len(log.user_ids))
    has_row[: 0 if users is None else len(users.ids)] = True  # the users table comes first
    user_ids = log.user_ids.filter(pl.Series(has_row)).sort()
    item_ids = (
        log.item_ids
        if items is not None
        else log.item_ids.filter(pl.Series(mark_used_codes(log.items, len(log.item_ids))))
    )
    item_ids = item_ids.sort()
    return Catalogue(
        items=build_id_map(item_ids, schema.items.id_type),
        users=build_id_map(user_ids, schema.users.id_type),
        item_ids=item_ids,
        user_ids=user_ids,
        item_features=_align_to_ids(items, "features", item_ids),
        user_features=_add_empty_context(_align_to_ids(users, "features", user_ids), schema.interactions),
        item_attributes=_align_to_ids(items, "attributes", item_ids),
    )


def _align_to_ids(table: EntityTable | None, part: Literal["features", "attributes"], ids: pl.Series) -> pl.DataFrame:
    """Return the features or attributes of a table as rows [len(ids)] in the order of `ids`.

    Rows of ids that the table lacks are null. Without a table there are no columns.
    """
    if table is None:
        return pl.DataFrame(height=len(ids))
    frame: pl.DataFrame = getattr(table, part)
    index_by_id = pl.DataFrame({"id": table.ids, "index": np.arange(len(table.ids), dtype=np.int64)})
    indices = pl.DataFrame({"id": ids}).join(index_by_id, on="id", how="left", maintain_order="left")["index"]
    return build_frame({name: get_unnamed_column(frame, name).gather(indices) for name in frame.columns}, len(ids))


def _add_empty_context(user_features: pl.DataFrame, schema: InteractionSchema) -> pl.DataFrame:
    columns = {name: user_features.get_column(name) for name in user_features.columns}
    empty = {name: null_column(len(user_features), to_feature_dtype(f)) for name, f in schema.context.items()}
    return build_frame(columns | empty, len(user_features))


def build_interactions(
    tables: Tables,
    catalogue: Catalogue,
    schema: InteractionSchema,
    repeats: Literal["keep", "first", "last"] = "keep",
) -> Interactions:
    """Convert the interactions table to rows, in the order of histories.

    Args:
        tables: The tables.
        catalogue: Items and users of the tables.
        schema: Columns of the interactions table, and what its kinds mean.
        repeats: Which to keep of the interactions of the same user, item and kind. Impressions are a kind of their own.
    """
    log = tables.interactions
    users = catalogue.users.column_to_rows(log.user_ids).astype(np.int32)[log.users]
    order = order_by_user_and_time(users, log.times)
    item_row_by_code = catalogue.items.column_to_rows(log.item_ids).astype(np.int32)
    kinds = _number_kinds(log)
    if repeats != "keep":
        kind_numbers = np.zeros(len(log), dtype=np.int32) if kinds is None else kinds
        order = order[select_distinct(users[order], item_row_by_code[log.items[order]], kind_numbers[order], repeats)]
    weights, is_target = _apply_kinds(log, order, schema)
    return Interactions(
        users=users[order],
        items=item_row_by_code[log.items[order]],
        times=order if log.times is None else log.times[order],
        is_positive=log.is_positive[order],
        has_times=log.times is not None,
        has_datetimes=log.has_datetimes,
        time_unit=log.time_unit,
        parts=None if log.parts is None else log.parts[order],
        weights=weights,
        is_target=is_target,
        kinds=None if kinds is None else kinds[order],
        context=None if log.context is None else log.context[order],
        target_kinds=[] if is_target is None else list_target_kinds(log.kind_names, schema),
    )


def _number_kinds(log: InteractionTable) -> NDArray[np.int32] | None:
    """Number the kinds [n] of interactions, those of impressions apart; None if all are of one kind."""
    if log.kinds is None or log.is_impression is None:
        return log.kinds if log.is_impression is None else log.is_impression.astype(np.int32)
    return 2 * log.kinds + log.is_impression


def _apply_kinds(
    log: InteractionTable, order: NDArray[np.int64], schema: InteractionSchema
) -> tuple[NDArray[np.float32] | None, Mask | None]:
    """Return `weights` and `is_target` of the interactions at positions [n] of the table."""
    if log.kinds is None:
        return None, None
    kinds, is_positive = log.kinds[order], log.is_positive[order]
    weights, is_target = compute_kind_weights(log.kind_names, schema), mark_target_kinds(log.kind_names, schema)
    occurs = mark_used_codes(kinds[is_positive], len(weights))  # as a positive
    is_equal = bool((weights[occurs] == weights[occurs].max(initial=0)).all() and weights[occurs].any())
    return None if is_equal else weights[kinds], None if is_target[occurs].all() else is_target[kinds]
