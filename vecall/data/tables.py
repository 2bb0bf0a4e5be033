"""Tables as they come, checked row by row against the schema."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from vecall.data.attributes import cast_attribute
from vecall.data.casting import CastResult, cast_boolean, cast_feature, cast_id, cast_number, cast_timestamp
from vecall.data.frames import build_frame
from vecall.data.frames import get_unnamed_column as column_of
from vecall.data.readers import read_table, suggest_separator
from vecall.data.settings import DataSettings
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

_MAX_EXAMPLES = 3
_MIN_USERS_TO_COMPARE = 10


@dataclass(frozen=True)
class EntityTable:
    """A table of items or of users: n rows.

    Attributes:
        ids: [n] distinct ids.
        features: [n] rows with a column per feature, in the types of `vecall.data.casting.cast_feature`.
        attributes: [n] rows of what `where`, ranking and people look at, the title among them; users have none.
    """

    ids: pl.Series
    features: pl.DataFrame
    attributes: pl.DataFrame


@dataclass(frozen=True)
class Tables:
    """The three tables with columns of known type.

    Attributes:
        interactions: columns `user`, `item`, `positive`, and where the schema names it `time`; in file order. Times
            are numbers or Datetime("us"), see `vecall.data.casting.cast_timestamp`.
        items: None without a table.
        users: None without a table.
        dropped_counts: what was left out under `bad_rows = "drop"`, by reason: rows, or values that are missing now.
    """

    interactions: pl.DataFrame
    items: EntityTable | None
    users: EntityTable | None
    dropped_counts: dict[str, int] = field(default_factory=dict)


def read_tables(settings: DataSettings, schema: Schema) -> Tables:
    """Read and check all tables.

    Raises:
        DataError: a file or column is missing, a row is bad and `bad_rows` is "error", or the tables do not go
            together; the message names file, column and example rows.
    """
    report = _BadRowHandler(should_drop=settings.bad_rows == "drop")
    items = None if settings.items is None else _read_entity_table(settings.items, schema.items, settings, report)
    users = None if settings.users is None else _read_entity_table(settings.users, schema.users, settings, report)
    item_ids = None if items is None else items.ids
    parts = [_read_interactions(path, schema, item_ids, settings, report) for path in settings.interactions]
    if schema.interactions.time is not None:
        parts = _require_uniform_time_kind(parts, settings.interactions)
    interactions = pl.concat(parts, how="vertical_relaxed")
    if interactions.is_empty():
        names = ", ".join(path.name for path in settings.interactions)
        raise DataError(f"{names}: no interaction is left ({report.dropped_counts or 'the tables are empty'})")
    if users is not None:
        _check_user_overlap(interactions["user"], users.ids, settings)
    for reason, count in report.dropped_counts.items():
        logger.warning("left out %d: %s", count, reason)
    return Tables(interactions, items, users, report.dropped_counts)


def _require_uniform_time_kind(parts: list[pl.DataFrame], paths: Sequence[Path]) -> list[pl.DataFrame]:
    """The parts that hold rows; their times must compare."""
    kinds = {part["time"].dtype.is_temporal(): path for part, path in zip(parts, paths, strict=True) if len(part)}
    if len(kinds) > 1:
        raise DataError(
            f"the files' times do not compare: {kinds[False]} has numbers, {kinds[True]} has datetimes or ISO 8601 "
            "text; write one kind into all"
        )
    return [part for part in parts if len(part)] if kinds else parts  # an empty file has times of any kind


def _check_user_overlap(interaction_users: pl.Series, table_users: pl.Series, settings: DataSettings) -> None:
    """A users table in which no user of the interactions stands is most likely spelled in another way."""
    interaction_users = interaction_users.unique(maintain_order=True)
    found = int(interaction_users.is_in(table_users.implode()).sum())
    if found == 0 and min(len(table_users), len(interaction_users)) >= _MIN_USERS_TO_COMPARE:
        raise DataError(
            f"{settings.users}: none of the {len(interaction_users):,} users of the interactions is in this table: are the ids "
            f"spelled alike? It has {table_users.head(_MAX_EXAMPLES).to_list()}, the interactions have "
            f"{interaction_users.head(_MAX_EXAMPLES).to_list()}"
        )
    if 2 * found < len(interaction_users):
        logger.warning(
            "%s: holds only %d of the %d users of the interactions", settings.users, found, len(interaction_users)
        )


class _BadRowHandler:
    """Refuses bad cells with examples, or counts them."""

    def __init__(self, *, should_drop: bool) -> None:
        self.should_drop = should_drop
        self.dropped_counts: dict[str, int] = {}

    def handle(
        self, path: Path, column: str, cells: pl.Series, row_numbers: pl.Series, is_valid: pl.Series, expected: str
    ) -> None:
        """Count the cells that are not good.

        Raises:
            DataError: they are not to be dropped.
        """
        bad = ~is_valid
        count = int(bad.sum())
        if self.should_drop:
            reason = f"{path.name}: {column}: not {expected} (of {len(cells):,} rows)"
            self.dropped_counts[reason] = self.dropped_counts.get(reason, 0) + count
            return
        numbers, values = (part.filter(bad).head(_MAX_EXAMPLES).to_list() for part in (row_numbers, cells))
        shown = "; ".join(f"row {row}: {cell!r:.80}" for row, cell in zip(numbers, values, strict=True))
        raise DataError(
            f"{path}: column {column!r}: expected {expected}, got {count} bad of {len(cells)} rows ({shown}). "
            f'Mend them, or set data.bad_rows = "drop" to leave them out and count them'
        )


class _TableValidator:
    """The columns of one file that are cast so far, each less the rows that were left out.

    Args:
        path: the file.
        required_columns: columns by the key of vecall.toml that names them.
        settings: how tables are read.
        bad_rows: takes bad rows.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """

    def __init__(
        self, path: Path, required_columns: dict[str, str], settings: DataSettings, bad_rows: _BadRowHandler
    ) -> None:
        table = read_table(path, settings.csv)
        for key, column in required_columns.items():
            if column not in table.columns:
                raise DataError(_describe_missing_column(path, column, key, table.columns))
        self._path, self._bad_rows = path, bad_rows
        self._raw_columns = {column: column_of(table, column) for column in required_columns.values()}
        self._row_numbers = pl.Series(np.arange(1, len(table) + 1))  # of the file, for people
        self.typed_columns: dict[tuple[str, str], pl.Series] = {}  # by kind and name

    def __len__(self) -> int:
        return len(self._row_numbers)

    def cast(
        self, group: str, column: str, caster: Callable[[pl.Series], CastResult], *, is_required: bool, name: str = ""
    ) -> None:
        """Cast a column, and keep it as `group`, `name`.

        Args:
            group: of columns that go together.
            column: name in the file.
            caster: makes it what it has to be.
            is_required: rows without a good value are left out; else the value is missing.
            name: under which it is kept; the column's own.
        """
        raw = self._raw_columns[column]
        result = caster(raw)
        values = result.values
        if not result.is_valid.all():
            self._bad_rows.handle(self._path, column, raw, self._row_numbers, result.is_valid, result.expected)
            if not is_required:
                values = values.zip_with(result.is_valid, pl.repeat(None, len(values), dtype=values.dtype, eager=True))
        self.typed_columns[group, name or column] = values
        if is_required:
            self._filter_rows(result.is_valid)

    def require(self, column: str, is_valid: pl.Series, expected: str) -> None:
        """Leave out the rows that are not good, for their cell of a column."""
        if not is_valid.all():
            self._bad_rows.handle(self._path, column, self._raw_columns[column], self._row_numbers, is_valid, expected)
        self._filter_rows(is_valid)

    def _filter_rows(self, mask: pl.Series) -> None:
        if mask.all():
            return
        self._row_numbers = self._row_numbers.filter(mask)
        self._raw_columns = {name: column.filter(mask) for name, column in self._raw_columns.items()}
        self.typed_columns = {key: column.filter(mask) for key, column in self.typed_columns.items()}

    def to_frame(self, group: str) -> pl.DataFrame:
        """The columns of a kind."""
        return build_frame(
            {name: column for (of, name), column in self.typed_columns.items() if of == group}, len(self)
        )


def _describe_missing_column(path: Path, column: str, key: str, columns: list[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else suggest_separator(columns)
    return f"{path}: no column {column!r} ({key}); it has {columns}{hint}"


def _read_interactions(
    path: Path, schema: Schema, item_ids: pl.Series | None, settings: DataSettings, bad_rows: _BadRowHandler
) -> pl.DataFrame:
    names, decimal = schema.interactions, settings.csv.decimal
    table = _TableValidator(path, _list_interaction_columns(names), settings, bad_rows)
    table.cast(
        "interaction", names.user, lambda column: cast_id(column, schema.users.id_type), is_required=True, name="user"
    )
    table.cast(
        "interaction", names.item, lambda column: cast_id(column, schema.items.id_type), is_required=True, name="item"
    )
    if names.time is not None:
        table.cast(
            "interaction",
            names.time,
            lambda column: cast_timestamp(column, decimal=decimal),
            is_required=True,
            name="time",
        )
    if names.label is not None:
        positive = names.positive
        table.cast(
            "label",
            names.label,
            lambda column: _cast_label(column, positive, decimal),
            is_required=True,
            name="has_positive_label",
        )
    if names.impression is not None:
        table.cast("label", names.impression, cast_boolean, is_required=True, name="impression")
    if item_ids is not None:
        known = table.typed_columns["interaction", "item"].is_in(item_ids.implode())
        table.require(names.item, known, "an item of the items table")
    return table.to_frame("interaction").with_columns(_is_positive(table.to_frame("label")).alias("positive"))


def _cast_label(column: pl.Series, positive_threshold: float, decimal: str) -> CastResult:
    """Whether each label reaches a bound: compared in the label's own precision, or 0.7 of a float32 is below 0.7."""
    labels = cast_number(column, is_optional=False, decimal=decimal)
    values = column if column.dtype.is_numeric() else labels.values
    bound = pl.Series([positive_threshold], dtype=pl.Float64)
    if column.dtype.is_float():
        bound = bound.cast(column.dtype)
    return CastResult((values >= bound[0]).fill_null(value=False), labels.is_valid, labels.expected)


def _is_positive(labels: pl.DataFrame) -> pl.Series:
    """[n] whether a row is an item that was taken and liked."""
    positive = pl.repeat(value=True, n=len(labels), dtype=pl.Boolean, eager=True)
    if "has_positive_label" in labels.columns:
        positive = positive & labels["has_positive_label"]
    return positive & ~labels["impression"] if "impression" in labels.columns else positive


def _list_interaction_columns(schema: InteractionSchema) -> dict[str, str]:
    keys = ("user", "item", "time", "label", "impression")
    return {f"schema.interactions.{key}": getattr(schema, key) for key in keys if getattr(schema, key) is not None}


def _read_entity_table(
    path: Path, schema: ItemSchema | UserSchema, settings: DataSettings, bad_rows: _BadRowHandler
) -> EntityTable:
    table = _TableValidator(path, _list_entity_columns(schema), settings, bad_rows)
    decimal = settings.csv.decimal
    table.cast("id", schema.id, lambda column: cast_id(column, schema.id_type), is_required=True)
    table.require(schema.id, table.typed_columns["id", schema.id].is_first_distinct(), "an id that stands once")
    for name, feature in schema.features.items():
        table.cast("feature", name, partial(cast_feature, feature=feature, decimal=decimal), is_required=False)
    if isinstance(schema, ItemSchema):
        _cast_attributes(table, schema, decimal)
    return EntityTable(table.typed_columns["id", schema.id], table.to_frame("feature"), table.to_frame("attribute"))


def _cast_attributes(table: _TableValidator, schema: ItemSchema, decimal: str) -> None:
    for name, declared in _list_attribute_types(schema).items():
        feature = schema.features.get(name)
        tags = isinstance(feature, TagsFeature)
        separator = feature.separator if isinstance(feature, TagsFeature) else DEFAULT_TAG_SEPARATOR
        kind = "tags" if tags and declared is None else declared
        table.cast(
            "attribute",
            name,
            lambda column, kind=kind, separator=separator: cast_attribute(  # type: ignore[misc]
                column, kind, separator=separator, decimal=decimal
            ),
            is_required=False,
        )


def _list_attribute_types(schema: ItemSchema) -> dict[str, AttributeType | None]:
    return ({schema.title: None} if schema.title is not None else {}) | schema.attributes


def _list_entity_columns(schema: ItemSchema | UserSchema) -> dict[str, str]:
    section = "items" if isinstance(schema, ItemSchema) else "users"
    wanted = {f"schema.{section}.id": schema.id}
    wanted |= {f"schema.{section}.features.{name}": name for name in schema.features}
    if isinstance(schema, ItemSchema):
        wanted |= {f"schema.items.attributes.{name}": name for name in schema.attributes}
        if schema.title is not None:
            wanted["schema.items.title"] = schema.title
    return wanted
