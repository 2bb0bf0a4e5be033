"""Tables as they come, checked row by row against the schema."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from vecall.data.attributes import cast_attribute
from vecall.data.casting import Cast, cast_feature, cast_flag, cast_id, cast_number, cast_time
from vecall.data.frames import column as column_of
from vecall.data.frames import frame_from
from vecall.data.readers import read_table, separator_hint
from vecall.data.settings import DataSettings
from vecall.errors import DataError
from vecall.schema import DEFAULT_TAG_SEPARATOR, AttributeType, InteractionSchema, ItemSchema, Schema, Tags, UserSchema

logger = logging.getLogger(__name__)

_MAX_EXAMPLES = 3
_MIN_USERS_TO_COMPARE = 10


@dataclass(frozen=True)
class Entities:
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
            are numbers or Datetime("us"), see `vecall.data.casting.cast_time`.
        items: None without a table.
        users: None without a table.
        dropped: what was left out under `bad_rows = "drop"`, by reason: rows, or values that are missing now.
    """

    interactions: pl.DataFrame
    items: Entities | None
    users: Entities | None
    dropped: dict[str, int] = field(default_factory=dict)


def read_tables(settings: DataSettings, schema: Schema) -> Tables:
    """Read and check all tables.

    Raises:
        DataError: a file or column is missing, a row is bad and `bad_rows` is "error", or the tables do not go
            together; the message names file, column and example rows.
    """
    report = _BadRowReport(drop=settings.bad_rows == "drop")
    items = None if settings.items is None else _read_entities(settings.items, schema.items, settings, report)
    users = None if settings.users is None else _read_entities(settings.users, schema.users, settings, report)
    item_ids = None if items is None else items.ids
    parts = [_read_interactions(path, schema, item_ids, settings, report) for path in settings.interactions]
    if schema.interactions.time is not None:
        parts = _parts_of_one_time_kind(parts, settings.interactions)
    interactions = pl.concat(parts, how="vertical_relaxed")
    if interactions.is_empty():
        names = ", ".join(path.name for path in settings.interactions)
        raise DataError(f"{names}: no interaction is left ({report.dropped or 'the tables are empty'})")
    if users is not None:
        _check_users_are_known(interactions["user"], users.ids, settings)
    for reason, count in report.dropped.items():
        logger.warning("left out %d: %s", count, reason)
    return Tables(interactions, items, users, report.dropped)


def _parts_of_one_time_kind(parts: list[pl.DataFrame], paths: Sequence[Path]) -> list[pl.DataFrame]:
    """The parts that hold rows; their times must compare."""
    kinds = {part["time"].dtype.is_temporal(): path for part, path in zip(parts, paths, strict=True) if len(part)}
    if len(kinds) > 1:
        raise DataError(
            f"the files' times do not compare: {kinds[False]} has numbers, {kinds[True]} has datetimes or ISO 8601 "
            "text; write one kind into all"
        )
    return [part for part in parts if len(part)] if kinds else parts  # an empty file has times of any kind


def _check_users_are_known(taking: pl.Series, known: pl.Series, settings: DataSettings) -> None:
    """A users table in which no user of the interactions stands is most likely spelled in another way."""
    taking = taking.unique(maintain_order=True)
    found = int(taking.is_in(known.implode()).sum())
    if found == 0 and min(len(known), len(taking)) >= _MIN_USERS_TO_COMPARE:
        raise DataError(
            f"{settings.users}: none of the {len(taking):,} users of the interactions is in this table: are the ids "
            f"spelled alike? It has {known.head(_MAX_EXAMPLES).to_list()}, the interactions have "
            f"{taking.head(_MAX_EXAMPLES).to_list()}"
        )
    if 2 * found < len(taking):
        logger.warning("%s: holds only %d of the %d users of the interactions", settings.users, found, len(taking))


class _BadRowReport:
    """Refuses bad cells with examples, or counts them."""

    def __init__(self, *, drop: bool) -> None:
        self.drop = drop
        self.dropped: dict[str, int] = {}

    def add(self, file: Path, column: str, cells: pl.Series, rows: pl.Series, good: pl.Series, expected: str) -> None:
        """Count the cells that are not good.

        Raises:
            DataError: they are not to be dropped.
        """
        bad = ~good
        count = int(bad.sum())
        if self.drop:
            reason = f"{file.name}: {column}: not {expected} (of {len(cells):,} rows)"
            self.dropped[reason] = self.dropped.get(reason, 0) + count
            return
        numbers, values = (part.filter(bad).head(_MAX_EXAMPLES).to_list() for part in (rows, cells))
        shown = "; ".join(f"row {row}: {cell!r:.80}" for row, cell in zip(numbers, values, strict=True))
        raise DataError(
            f"{file}: column {column!r}: expected {expected}, got {count} bad of {len(cells)} rows ({shown}). "
            f'Mend them, or set data.bad_rows = "drop" to leave them out and count them'
        )


class _TableCheck:
    """The columns of one file that are cast so far, each less the rows that were left out.

    Args:
        path: the file.
        wanted: columns by the key of vecall.toml that names them.
        settings: how tables are read.
        report: takes bad rows.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """

    def __init__(self, path: Path, wanted: dict[str, str], settings: DataSettings, report: _BadRowReport) -> None:
        table = read_table(path, settings.csv)
        for key, column in wanted.items():
            if column not in table.columns:
                raise DataError(_missing_column(path, column, key, table.columns))
        self._path, self._report = path, report
        self._raw = {column: column_of(table, column) for column in wanted.values()}
        self._rows = pl.Series(np.arange(1, len(table) + 1))  # of the file, for people
        self.columns: dict[tuple[str, str], pl.Series] = {}  # by kind and name

    def __len__(self) -> int:
        return len(self._rows)

    def cast(self, kind: str, column: str, cast: Callable[[pl.Series], Cast], *, needed: bool, name: str = "") -> None:
        """Cast a column, and keep it as `kind`, `name`.

        Args:
            kind: of columns that go together.
            column: name in the file.
            cast: makes it what it has to be.
            needed: rows without a good value are left out; else the value is missing.
            name: under which it is kept; the column's own.
        """
        raw = self._raw[column]
        result = cast(raw)
        values = result.values
        if not result.good.all():
            self._report.add(self._path, column, raw, self._rows, result.good, result.expected)
            if not needed:
                values = values.zip_with(result.good, pl.repeat(None, len(values), dtype=values.dtype, eager=True))
        self.columns[kind, name or column] = values
        if needed:
            self._keep(result.good)

    def require(self, column: str, good: pl.Series, expected: str) -> None:
        """Leave out the rows that are not good, for their cell of a column."""
        if not good.all():
            self._report.add(self._path, column, self._raw[column], self._rows, good, expected)
        self._keep(good)

    def _keep(self, good: pl.Series) -> None:
        if good.all():
            return
        self._rows = self._rows.filter(good)
        self._raw = {name: column.filter(good) for name, column in self._raw.items()}
        self.columns = {key: column.filter(good) for key, column in self.columns.items()}

    def frame(self, kind: str) -> pl.DataFrame:
        """The columns of a kind."""
        return frame_from({name: column for (of, name), column in self.columns.items() if of == kind}, len(self))


def _missing_column(path: Path, column: str, key: str, columns: list[str]) -> str:
    near = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else separator_hint(columns)
    return f"{path}: no column {column!r} ({key}); it has {columns}{hint}"


def _read_interactions(
    path: Path, schema: Schema, item_ids: pl.Series | None, settings: DataSettings, report: _BadRowReport
) -> pl.DataFrame:
    names, decimal = schema.interactions, settings.csv.decimal
    table = _TableCheck(path, _interaction_columns(names), settings, report)
    table.cast("log", names.user, lambda column: cast_id(column, schema.users.id_type), needed=True, name="user")
    table.cast("log", names.item, lambda column: cast_id(column, schema.items.id_type), needed=True, name="item")
    if names.time is not None:
        table.cast("log", names.time, lambda column: cast_time(column, decimal=decimal), needed=True, name="time")
    if names.label is not None:
        positive = names.positive
        table.cast("mark", names.label, lambda column: _at_least(column, positive, decimal), needed=True, name="liked")
    if names.shown is not None:
        table.cast("mark", names.shown, cast_flag, needed=True, name="shown")
    if item_ids is not None:
        known = table.columns["log", "item"].is_in(item_ids.implode())
        table.require(names.item, known, "an item of the items table")
    return table.frame("log").with_columns(_is_positive(table.frame("mark")).alias("positive"))


def _at_least(column: pl.Series, least: float, decimal: str) -> Cast:
    """Whether each label reaches a bound: compared in the label's own precision, or 0.7 of a float32 is below 0.7."""
    labels = cast_number(column, optional=False, decimal=decimal)
    values = column if column.dtype.is_numeric() else labels.values
    bound = pl.Series([least], dtype=pl.Float64)
    if column.dtype.is_float():
        bound = bound.cast(column.dtype)
    return Cast((values >= bound[0]).fill_null(value=False), labels.good, labels.expected)


def _is_positive(marks: pl.DataFrame) -> pl.Series:
    """[n] whether a row is an item that was taken and liked."""
    positive = pl.repeat(value=True, n=len(marks), dtype=pl.Boolean, eager=True)
    if "liked" in marks.columns:
        positive = positive & marks["liked"]
    return positive & ~marks["shown"] if "shown" in marks.columns else positive


def _interaction_columns(names: InteractionSchema) -> dict[str, str]:
    keys = ("user", "item", "time", "label", "shown")
    return {f"schema.interactions.{key}": getattr(names, key) for key in keys if getattr(names, key) is not None}


def _read_entities(
    path: Path, schema: ItemSchema | UserSchema, settings: DataSettings, report: _BadRowReport
) -> Entities:
    table = _TableCheck(path, _entity_columns(schema), settings, report)
    decimal = settings.csv.decimal
    table.cast("id", schema.id, lambda column: cast_id(column, schema.id_type), needed=True)
    table.require(schema.id, table.columns["id", schema.id].is_first_distinct(), "an id that stands once")
    for name, feature in schema.features.items():
        table.cast("feature", name, lambda column, of=feature: cast_feature(column, of, decimal=decimal), needed=False)  # type: ignore[misc]
    if isinstance(schema, ItemSchema):
        _cast_attributes(table, schema, decimal)
    return Entities(table.columns["id", schema.id], table.frame("feature"), table.frame("attribute"))


def _cast_attributes(table: _TableCheck, schema: ItemSchema, decimal: str) -> None:
    for name, declared in _attributes(schema).items():
        feature = schema.features.get(name)
        tags = isinstance(feature, Tags)
        separator = feature.separator if isinstance(feature, Tags) else DEFAULT_TAG_SEPARATOR
        kind = "tags" if tags and declared is None else declared
        table.cast(
            "attribute",
            name,
            lambda column, kind=kind, separator=separator: cast_attribute(  # type: ignore[misc]
                column, kind, separator=separator, decimal=decimal
            ),
            needed=False,
        )


def _attributes(schema: ItemSchema) -> dict[str, AttributeType | None]:
    return ({schema.title: None} if schema.title is not None else {}) | schema.attributes


def _entity_columns(schema: ItemSchema | UserSchema) -> dict[str, str]:
    section = "items" if isinstance(schema, ItemSchema) else "users"
    wanted = {f"schema.{section}.id": schema.id}
    wanted |= {f"schema.{section}.features.{name}": name for name in schema.features}
    if isinstance(schema, ItemSchema):
        wanted |= {f"schema.items.attributes.{name}": name for name in schema.attributes}
        if schema.title is not None:
            wanted["schema.items.title"] = schema.title
    return wanted
