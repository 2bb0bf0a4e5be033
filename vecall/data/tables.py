"""Reading of the three tables, with every row validated against the schema."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from vecall.data.attributes import cast_attribute
from vecall.data.casting import (
    CastResult,
    cast_boolean,
    cast_feature,
    cast_id,
    cast_number,
    cast_timestamp,
    to_id_dtype,
)
from vecall.data.settings import CsvSettings, DataSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import MAX_EXAMPLES, BadRowHandler, TableValidator
from vecall.errors import DataError
from vecall.schema import (
    DEFAULT_TAG_SEPARATOR,
    AttributeType,
    InteractionSchema,
    ItemSchema,
    Schema,
    TagsFeature,
    UserSchema,
)

logger = logging.getLogger(__name__)

_MIN_USERS_TO_COMPARE = 10


@dataclass(frozen=True)
class EntityTable:
    """A table of n items or users.

    Attributes:
        ids: [n] Distinct ids.
        features: [n] Rows with a column per feature, of the types that `cast_feature` returns.
        attributes: [n] Rows with a column per attribute, the title among them; no columns for users.
    """

    ids: pl.Series
    features: pl.DataFrame
    attributes: pl.DataFrame


@dataclass(frozen=True)
class Tables:
    """The three tables with validated columns.

    Attributes:
        interactions: Columns `user`, `item`, `positive`, and `time` if the schema names one; in file order. Times are
            numbers or Datetime("us"), see `cast_timestamp`.
        items: Items; None if there is no such table.
        users: Users; None if there is no such table.
        dropped_counts: Rows dropped, and values replaced by missing ones, under `bad_rows = "drop"`, by reason.
    """

    interactions: pl.DataFrame
    items: EntityTable | None
    users: EntityTable | None
    dropped_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TableSources:
    """Where the three tables come from.

    Attributes:
        interactions: Parts of the interactions table; may be empty.
        items: The items table; None if there is none.
        users: The users table; None if there is none.
        csv: Format of text tables.
    """

    interactions: Sequence[TableSource]
    items: TableSource | None
    users: TableSource | None
    csv: CsvSettings


def read_tables(settings: DataSettings, schema: Schema) -> Tables:
    """Read and validate the tables that the settings name.

    Args:
        settings: Paths and formats of the tables.
        schema: Columns and types of the tables.

    Raises:
        DataError: A file or column is missing, a row is invalid and `bad_rows` is "error", or the tables do not match
            each other; the message names file, column and example rows.
    """
    sources = TableSources(
        interactions=[TableSource.from_path(path) for path in settings.interactions],
        items=None if settings.items is None else TableSource.from_path(settings.items),
        users=None if settings.users is None else TableSource.from_path(settings.users),
        csv=settings.csv,
    )
    tables = validate_tables(sources, schema, BadRowHandler(should_drop=settings.bad_rows == "drop"))
    if tables.interactions.is_empty():
        names = ", ".join(path.name for path in settings.interactions)
        raise DataError(f"{names}: no interactions are left ({tables.dropped_counts or 'the tables are empty'})")
    return tables


def validate_tables(sources: TableSources, schema: Schema, bad_rows: BadRowHandler) -> Tables:
    """Read and validate tables; without interactions, their table has no rows.

    Args:
        sources: The tables.
        schema: Columns and types of the tables.
        bad_rows: Handler of invalid rows.

    Raises:
        DataError: As for `read_tables`.
    """
    items = users = None
    if sources.items is not None:
        items = _read_entity_table(sources.items, schema.items, sources.csv, bad_rows)
    if sources.users is not None:
        users = _read_entity_table(sources.users, schema.users, sources.csv, bad_rows)
    item_ids = None if items is None else items.ids
    parts = [_read_interactions(source, schema, item_ids, sources.csv, bad_rows) for source in sources.interactions]
    if schema.interactions.time is not None:
        parts = _require_uniform_time_kind(parts, sources.interactions)
    interactions = pl.concat(parts, how="vertical_relaxed") if parts else _build_empty_interactions(schema)
    if users is not None and sources.users is not None and len(interactions):
        _check_user_overlap(interactions["user"], users.ids, sources.users.label)
    for reason, count in bad_rows.dropped_counts.items():
        logger.warning("dropped %d rows or values: %s", count, reason)
    return Tables(interactions, items, users, bad_rows.dropped_counts)


def _build_empty_interactions(schema: Schema) -> pl.DataFrame:
    id_dtypes = {"user": to_id_dtype(schema.users.id_type), "item": to_id_dtype(schema.items.id_type)}
    return pl.DataFrame(schema=id_dtypes | {"positive": pl.Boolean})


def _require_uniform_time_kind(parts: list[pl.DataFrame], sources: Sequence[TableSource]) -> list[pl.DataFrame]:
    """Return the non-empty parts, whose times must be all numbers or all datetimes; all parts if all are empty.

    An empty part is no evidence of either kind: the type of its time column is arbitrary.
    """
    label_by_kind = {
        part["time"].dtype.is_temporal(): source.label for part, source in zip(parts, sources, strict=True) if len(part)
    }
    if len(label_by_kind) > 1:
        raise DataError(
            f"the times of the files cannot be compared: {label_by_kind[False]} has numbers, {label_by_kind[True]} has "
            "datetimes or ISO 8601 text; write the same kind into all files"
        )
    return [part for part in parts if len(part)] if label_by_kind else parts


def _check_user_overlap(interaction_users: pl.Series, table_users: pl.Series, users_label: str) -> None:
    """Raise if the users table holds no user of the interactions, and warn if it holds fewer than half of them.

    Most likely the ids are formatted differently in the two tables.
    """
    interaction_users = interaction_users.unique(maintain_order=True)
    n_users = len(interaction_users)
    n_found = int(interaction_users.is_in(table_users.implode()).sum())
    if n_found == 0 and min(len(table_users), n_users) >= _MIN_USERS_TO_COMPARE:
        raise DataError(
            f"{users_label}: none of the {n_users:,} users of the interactions is in this table: are the ids "
            f"formatted alike? It has {table_users.head(MAX_EXAMPLES).to_list()}, the interactions have "
            f"{interaction_users.head(MAX_EXAMPLES).to_list()}"
        )
    if 2 * n_found < n_users:
        logger.warning("%s: holds only %d of the %d users of the interactions", users_label, n_found, n_users)


def _read_interactions(
    source: TableSource, schema: Schema, item_ids: pl.Series | None, csv: CsvSettings, bad_rows: BadRowHandler
) -> pl.DataFrame:
    names, decimal = schema.interactions, csv.decimal
    table = TableValidator(source, _list_interaction_columns(names), csv, bad_rows)
    cast_user = partial(cast_id, id_type=schema.users.id_type)
    cast_item = partial(cast_id, id_type=schema.items.id_type)
    table.cast("interaction", names.user, cast_user, is_required=True, name="user")
    table.cast("interaction", names.item, cast_item, is_required=True, name="item")
    if names.time is not None:
        cast_time = partial(cast_timestamp, decimal=decimal)
        table.cast("interaction", names.time, cast_time, is_required=True, name="time")
    if names.label is not None:
        cast_label = partial(_cast_label, positive_threshold=names.positive, decimal=decimal)
        table.cast("label", names.label, cast_label, is_required=True, name="has_positive_label")
    if names.impression is not None:
        table.cast("label", names.impression, cast_boolean, is_required=True, name="impression")
    if item_ids is not None:
        is_known = table.typed_columns["interaction", "item"].is_in(item_ids.implode())
        table.require(names.item, is_known, "an item of the items table")
    return table.to_frame("interaction").with_columns(_is_positive(table.to_frame("label")).alias("positive"))


def _cast_label(column: pl.Series, positive_threshold: float, decimal: str) -> CastResult:
    """Cast labels to whether they reach the threshold.

    They are compared in their own precision: the float32 nearest to 0.7 is below the float64 0.7.
    """
    labels = cast_number(column, is_optional=False, decimal=decimal)
    values = column if column.dtype.is_numeric() else labels.values
    threshold = pl.Series([positive_threshold], dtype=pl.Float64)
    if column.dtype.is_float():
        threshold = threshold.cast(column.dtype)
    return CastResult((values >= threshold[0]).fill_null(value=False), labels.is_valid, labels.expected)


def _is_positive(labels: pl.DataFrame) -> pl.Series:
    """Return a mask [n] of the positives: neither labelled below the threshold nor a mere impression."""
    is_positive = pl.repeat(value=True, n=len(labels), dtype=pl.Boolean, eager=True)
    if "has_positive_label" in labels.columns:
        is_positive = is_positive & labels["has_positive_label"]
    return is_positive & ~labels["impression"] if "impression" in labels.columns else is_positive


def _list_interaction_columns(schema: InteractionSchema) -> dict[str, str]:
    """Return the columns of the interactions table by the keys of vecall.toml that name them."""
    keys = ("user", "item", "time", "label", "impression")
    return {f"schema.interactions.{key}": getattr(schema, key) for key in keys if getattr(schema, key) is not None}


def _read_entity_table(
    source: TableSource, schema: ItemSchema | UserSchema, csv: CsvSettings, bad_rows: BadRowHandler
) -> EntityTable:
    table = TableValidator(source, _list_entity_columns(schema), csv, bad_rows)
    decimal = csv.decimal
    table.cast("id", schema.id, partial(cast_id, id_type=schema.id_type), is_required=True)
    table.require(schema.id, table.typed_columns["id", schema.id].is_first_distinct(), "a unique id")
    for name, feature in schema.features.items():
        table.cast("feature", name, partial(cast_feature, feature=feature, decimal=decimal), is_required=False)
    if isinstance(schema, ItemSchema):
        _cast_attributes(table, schema, decimal)
    return EntityTable(table.typed_columns["id", schema.id], table.to_frame("feature"), table.to_frame("attribute"))


def _cast_attributes(table: TableValidator, schema: ItemSchema, decimal: str) -> None:
    for name, declared_type in _list_attribute_types(schema).items():
        feature = schema.features.get(name)
        attribute_type, separator = declared_type, DEFAULT_TAG_SEPARATOR
        if isinstance(feature, TagsFeature):
            attribute_type, separator = declared_type or "tags", feature.separator
        cast = partial(cast_attribute, attribute_type=attribute_type, separator=separator, decimal=decimal)
        table.cast("attribute", name, cast, is_required=False)


def _list_attribute_types(schema: ItemSchema) -> dict[str, AttributeType | None]:
    """Return the type of each attribute, the title included; None keeps the type of the table."""
    return ({schema.title: None} if schema.title is not None else {}) | schema.attributes


def _list_entity_columns(schema: ItemSchema | UserSchema) -> dict[str, str]:
    """Return the columns of an items or users table by the keys of vecall.toml that name them."""
    section = "items" if isinstance(schema, ItemSchema) else "users"
    columns = {f"schema.{section}.id": schema.id}
    columns |= {f"schema.{section}.features.{name}": name for name in schema.features}
    if isinstance(schema, ItemSchema):
        columns |= {f"schema.items.attributes.{name}": name for name in schema.attributes}
        if schema.title is not None:
            columns["schema.items.title"] = schema.title
    return columns
