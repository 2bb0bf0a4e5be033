"""Tables as they come, Parquet or CSV, checked row by row against the schema."""

import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from vecall.data.columns import Cast, cast_feature, cast_flag, cast_id, cast_number, cast_time
from vecall.data.settings import DataSettings
from vecall.errors import DataError
from vecall.schema import Features, IdType, InteractionSchema, ItemSchema, Schema, UserSchema

logger = logging.getLogger(__name__)

EXAMPLES = 3


@dataclass(frozen=True)
class Tables:
    """The three tables with columns of known type.

    Attributes:
        interactions: columns `user`, `item`, and where the schema names them `time`, `label`, `shown`;
            in file order. Times are numbers or Datetime("us"), see `vecall.data.columns.cast_time`.
        items: `id`, then the features, attributes and title under the table's own names; None without a table.
        users: `id`, then the features; None without a table.
        dropped: rows left out under `bad_rows = "drop"`, by reason.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    dropped: dict[str, int] = field(default_factory=dict)


def read_tables(settings: DataSettings, schema: Schema) -> Tables:
    """Read and check all tables.

    Raises:
        DataError: a file or column is missing, or a row is bad and `bad_rows` is "error"; the message names
            file, column and example rows.
    """
    judge = _BadRows(drop=settings.bad_rows == "drop")
    items = None if settings.items is None else _read_entities(settings.items, schema.items, judge)
    users = None if settings.users is None else _read_entities(settings.users, schema.users, judge)
    known_items = None if items is None else items["id"]
    parts = [_read_interactions(path, schema, known_items, judge) for path in settings.interactions]
    if schema.interactions.time is not None:
        _check_times_agree(parts, settings.interactions)
    interactions = pl.concat(parts, how="vertical_relaxed")
    if interactions.is_empty():
        names = ", ".join(path.name for path in settings.interactions)
        raise DataError(f"{names}: no interaction is left ({judge.dropped or 'the tables are empty'})")
    for reason, count in judge.dropped.items():
        logger.warning("dropped %d rows: %s", count, reason)
    return Tables(interactions, items, users, judge.dropped)


def _check_times_agree(parts: list[pl.DataFrame], paths: Sequence[Path]) -> None:
    kinds = {part["time"].dtype.is_temporal(): path for part, path in zip(parts, paths, strict=True) if len(part)}
    if len(kinds) > 1:
        raise DataError(
            f"the files' times do not compare: {kinds[False]} has numbers, {kinds[True]} has datetimes or ISO 8601 "
            "text; write one kind into all"
        )
    if kinds:  # a file of which nothing is left has times of any kind
        parts[:] = [part for part in parts if len(part)]


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet or CSV file; all columns of a CSV come as text, so that no type is guessed from its cells.

    Raises:
        DataError: the file is missing, of another kind, or cannot be parsed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; paths in vecall.toml are relative to its own folder")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)  # a `[` or `*` in a file's name is no pattern
        if path.suffix == ".csv":
            return pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    raise DataError(f"{path}: a table is a .parquet or a .csv file, got {path.suffix or 'no suffix'!r}")


class _BadRows:
    """Refuses bad rows with examples, or drops and counts them."""

    def __init__(self, *, drop: bool) -> None:
        self.drop = drop
        self.dropped: dict[str, int] = {}

    def keep(self, frame: pl.DataFrame, good: pl.Series, file: Path, column: str, expected: str) -> pl.DataFrame:
        """The good rows of `frame`, whose column `#` numbers the file's rows from 1."""
        bad = frame.filter(~good)
        if bad.is_empty():
            return frame
        if self.drop:
            reason = f"{file.name}: {column}: not {expected}"
            self.dropped[reason] = self.dropped.get(reason, 0) + len(bad)
            return frame.filter(good)
        shown = "; ".join(f"row {row['#']}: {row[column]!r}" for row in bad.head(EXAMPLES).iter_rows(named=True))
        raise DataError(
            f"{file}: column {column!r}: expected {expected}, got {len(bad)} bad of {len(frame)} rows ({shown}). "
            f'Mend them, or set data.bad_rows = "drop" to leave them out and count them'
        )

    def cast(self, frame: pl.DataFrame, file: Path, column: str, how: Callable[[pl.Series], Cast]) -> pl.DataFrame:
        """`frame` with `column` cast, less the rows that could not be."""
        cast = how(frame[column])
        kept = self.keep(frame, cast.good, file, column, cast.expected)
        return kept.with_columns(cast.values.filter(cast.good).alias(column))


def _columns(frame: pl.DataFrame, file: Path, wanted: dict[str, str]) -> pl.DataFrame:
    """The wanted columns (name to the key that names it) with a row number `#`."""
    for column, key in wanted.items():
        if column not in frame.columns:
            near = difflib.get_close_matches(column, frame.columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{file}: no column {column!r} ({key}); it has {frame.columns}{hint}")
    return frame.select(list(wanted)).with_row_index("#", offset=1)


def _read_interactions(path: Path, schema: Schema, known_items: pl.Series | None, judge: _BadRows) -> pl.DataFrame:
    names = schema.interactions
    frame = _columns(read_table(path), path, _interaction_columns(names))
    frame = judge.cast(frame, path, names.user, lambda column: cast_id(column, schema.users.id_type))
    frame = judge.cast(frame, path, names.item, lambda column: cast_id(column, schema.items.id_type))
    if names.time is not None:
        frame = judge.cast(frame, path, names.time, cast_time)
    if names.label is not None:
        frame = judge.cast(frame, path, names.label, lambda column: cast_number(column, optional=False))
    if names.shown is not None:
        frame = judge.cast(frame, path, names.shown, cast_flag)
    if known_items is not None:
        known = frame[names.item].is_in(known_items.implode())
        frame = judge.keep(frame, known, path, names.item, "an item of the items table")
    kinds = {
        "user": names.user,
        "item": names.item,
        "time": names.time,
        "label": names.label,
        "shown": names.shown,
    }
    return frame.select(pl.col(column).alias(kind) for kind, column in kinds.items() if column is not None)


def _interaction_columns(names: InteractionSchema) -> dict[str, str]:
    keys = ("user", "item", "time", "label", "shown")
    return {getattr(names, key): f"schema.interactions.{key}" for key in keys if getattr(names, key) is not None}


def _read_entities(path: Path, schema: ItemSchema | UserSchema, judge: _BadRows) -> pl.DataFrame:
    section = "items" if isinstance(schema, ItemSchema) else "users"
    wanted = {schema.id: f"schema.{section}.id"}
    wanted |= {name: f"schema.{section}.features.{name}" for name in schema.features}
    if isinstance(schema, ItemSchema):
        wanted |= {name: "schema.items.attributes" for name in schema.attributes if name not in wanted}
        if schema.title is not None:
            wanted.setdefault(schema.title, "schema.items.title")
    raw = read_table(path)
    frame = _cast_entities(_columns(raw, path, wanted), path, schema.id, schema.id_type, schema.features, judge)
    others = [name for name in wanted if name not in (schema.id, *schema.features)]
    frame = frame.with_columns(_numbers_if_all_are(frame[name]) for name in others)
    return frame.drop("#").rename({schema.id: "id"})


def _cast_entities(
    frame: pl.DataFrame, path: Path, id_column: str, id_type: IdType, features: Features, judge: _BadRows
) -> pl.DataFrame:
    frame = judge.cast(frame, path, id_column, lambda column: cast_id(column, id_type))
    frame = judge.keep(frame, frame[id_column].is_first_distinct(), path, id_column, "an id that stands once")
    for name, feature in features.items():
        frame = judge.cast(frame, path, name, lambda column, feature=feature: cast_feature(column, feature))  # type: ignore[misc]
    return frame


def _numbers_if_all_are(column: pl.Series) -> pl.Series:
    """An attribute of a CSV that is a number in every cell becomes numbers, so that `gt` compares them."""
    if column.dtype != pl.String:
        return column
    for dtype in (pl.Int64, pl.Float64):
        numbers = column.cast(dtype, strict=False)
        if numbers.null_count() == column.null_count() < len(column):
            return numbers
    return column
