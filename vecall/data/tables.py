"""Reading of the three tables, with every row validated against the schema."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import polars as pl

from vecall.data.attributes import cast_attribute
from vecall.data.casting import cast_feature, cast_id
from vecall.data.creation_times import cast_creation_time
from vecall.data.id_numbering import IdNumbering
from vecall.data.interaction_table import InteractionReader, InteractionTable, mark_used_codes
from vecall.data.settings import CsvSettings, DataSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import MAX_EXAMPLES, BadRowHandler, TableBatch, TableValidator
from vecall.errors import DataError
from vecall.schema import (
    DEFAULT_TAG_SEPARATOR,
    AttributeType,
    ItemSchema,
    Schema,
    TagsFeature,
    TimeUnit,
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
        interactions: Interactions.
        items: Items; None if there is no such table.
        users: Users; None if there is no such table.
        dropped_counts: Rows dropped, and values replaced by missing ones, under `bad_rows = "drop"`, by reason.
    """

    interactions: InteractionTable
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
        split_column: Column of the interactions that says which part of the split a row belongs to; None without one.
    """

    interactions: Sequence[TableSource]
    items: TableSource | None
    users: TableSource | None
    csv: CsvSettings
    split_column: str | None = None


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
        split_column=settings.split_column,
    )
    tables = validate_tables(sources, schema, BadRowHandler(should_drop=settings.bad_rows == "drop"))
    if not len(tables.interactions):
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
        time_unit = schema.interactions.time_unit
        items = _read_entity_table(
            sources.items, schema.items, sources.csv, bad_rows, None if time_unit == "none" else time_unit
        )
    if sources.users is not None:
        users = _read_entity_table(sources.users, schema.users, sources.csv, bad_rows)
    item_ids, user_ids = (None if table is None else table.ids for table in (items, users))
    reader = InteractionReader(schema, sources.csv, bad_rows, item_ids, user_ids, sources.split_column)
    interactions = reader.read(sources.interactions)
    if users is not None and sources.users is not None and len(interactions):
        _check_user_overlap(interactions, users.ids, sources.users.label)
    for reason, count in bad_rows.dropped_counts.items():
        logger.warning("dropped %d rows or values: %s", count, reason)
    return Tables(interactions, items, users, bad_rows.dropped_counts)


def _check_user_overlap(interactions: InteractionTable, table_users: pl.Series, users_label: str) -> None:
    """Raise if the users table holds no user of the interactions, and warn if it holds fewer than half of them.

    Most likely the ids are formatted differently in the two tables.
    """
    has_interactions = mark_used_codes(interactions.users, len(interactions.user_ids))
    n_users = int(has_interactions.sum())
    n_found = int(has_interactions[: len(table_users)].sum())
    if n_found == 0 and min(len(table_users), n_users) >= _MIN_USERS_TO_COMPARE:
        interaction_users = interactions.user_ids.filter(pl.Series(has_interactions))
        raise DataError(
            f"{users_label}: none of the {n_users:,} users of the interactions is in this table: are the ids "
            f"formatted alike? It has {table_users.head(MAX_EXAMPLES).to_list()}, the interactions have "
            f"{interaction_users.head(MAX_EXAMPLES).to_list()}"
        )
    if 2 * n_found < n_users:
        logger.warning("%s: holds only %d of the %d users of the interactions", users_label, n_found, n_users)


def _read_entity_table(
    source: TableSource,
    schema: ItemSchema | UserSchema,
    csv: CsvSettings,
    bad_rows: BadRowHandler,
    time_unit: TimeUnit | None = None,
) -> EntityTable:
    table = TableValidator(source, _list_entity_columns(schema), csv, bad_rows)
    numbering = IdNumbering(schema.id_type)
    batches = []
    for batch in table.iterate_batches():
        batch.cast("id", schema.id, partial(cast_id, id_type=schema.id_type), is_required=True, name="id")
        _require_new_ids(batch, schema.id, numbering)
        for name, feature in schema.features.items():
            batch.cast("feature", name, partial(cast_feature, feature=feature, decimal=csv.decimal), is_required=False)
        if isinstance(schema, ItemSchema):
            _cast_attributes(batch, schema, csv.decimal)
            if schema.created is not None:
                cast_created = partial(cast_creation_time, time_unit=time_unit, decimal=csv.decimal)
                batch.cast("attribute", schema.created, cast_created, is_required=False)
        batches.append([batch.to_frame(group) for group in ("id", "feature", "attribute")])
    table.handle_invalid_cells()
    ids, features, attributes = map(pl.concat, zip(*batches, strict=True))
    return EntityTable(ids.to_series(), features, attributes)


def _require_new_ids(batch: TableBatch, column: str, numbering: IdNumbering) -> None:
    """Drop the rows with an id that occurs before, in this batch or in an earlier one."""
    n_known = len(numbering.ids)
    codes = pl.Series(numbering.number(batch.typed_columns["id", "id"]))
    batch.require(column, (codes >= n_known) & codes.is_first_distinct(), "a unique id")


def _cast_attributes(batch: TableBatch, schema: ItemSchema, decimal: str) -> None:
    for name, declared_type in _list_attribute_types(schema).items():
        feature = schema.features.get(name)
        attribute_type, separator = declared_type, DEFAULT_TAG_SEPARATOR
        if isinstance(feature, TagsFeature):
            attribute_type, separator = declared_type or "tags", feature.separator
        cast = partial(cast_attribute, attribute_type=attribute_type, separator=separator, decimal=decimal)
        batch.cast("attribute", name, cast, is_required=False)


def _list_attribute_types(schema: ItemSchema) -> dict[str, AttributeType | None]:
    """Return the type of each attribute, the title included, but not `created`; None keeps the type of the table."""
    types = ({schema.title: None} if schema.title is not None else {}) | schema.attributes
    return {name: declared_type for name, declared_type in types.items() if name != schema.created}


def _list_entity_columns(schema: ItemSchema | UserSchema) -> dict[str, str]:
    """Return the columns of an items or users table by the keys of vecall.toml that name them."""
    section = "items" if isinstance(schema, ItemSchema) else "users"
    columns = {f"schema.{section}.id": schema.id}
    columns |= {f"schema.{section}.features.{name}": name for name in schema.features}
    if isinstance(schema, ItemSchema):
        columns |= {f"schema.items.attributes.{name}": name for name in schema.attributes}
        if schema.title is not None:
            columns["schema.items.title"] = schema.title
        if schema.created is not None:
            columns["schema.items.created"] = schema.created
    return columns
