"""Reading of the interactions table, of any number of files, to codes of users and items."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask
from vecall.data.casting import (
    CastResult,
    TimestampCaster,
    cast_boolean,
    cast_feature,
    cast_id,
    cast_number,
    column_to_text_or_null,
    to_feature_dtype,
)
from vecall.data.id_numbering import UNKNOWN_CODE, Codes, IdNumbering
from vecall.data.kind_reader import KindReader
from vecall.data.settings import CsvSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import BadRowHandler, TableBatch, TableValidator
from vecall.data.timestamps import MAX_UNIX_MICROS, MIN_UNIX_MICROS, NS_PER_UNIT
from vecall.errors import DataError
from vecall.schema import InteractionSchema, Schema, TimeUnit

PARTS = ("train", "valid", "test")  # of a split, as a table names them

_CONTEXT_PREFIX = "context."  # of columns that the user names, beside those that this module names
_Columns = dict[str, list[pl.Series]]  # batches of each column


@dataclass(frozen=True)
class InteractionTable:
    """n validated interactions, in the order of the files.

    Attributes:
        user_ids: Distinct ids of users, by code. Those of the users table come first; then those of the interactions,
            and ids of dropped rows, too.
        item_ids: Distinct ids of items, by code: those of the items table if there is one, or like those of users.
        users: [n] Codes of the users.
        items: [n] Codes of the items.
        is_positive: [n] Whether the interaction is positive.
        times: [n] Numbers, or microseconds since 1970 if `has_datetimes`; None without a time column.
        has_datetimes: Whether the time column holds datetimes or ISO 8601 text.
        time_unit: Unit of the times; None if it is not known.
        parts: [n] The part of the split that the table names, as a number of `PARTS`; None if it names none.
        kinds: [n] Number of each interaction's kind in `kind_names`; None without a column of kinds.
        kind_names: The kinds that occur, and those of dropped rows, as `cast_kind` spells them.
        is_impression: [n] Whether the item was shown and not chosen; None without a column that says so.
        context: [n] Rows with a column per context feature; None without such.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    users: Codes
    items: Codes
    is_positive: Mask
    times: NDArray[np.int64] | NDArray[np.float64] | None = None
    has_datetimes: bool = False
    time_unit: TimeUnit | None = None
    parts: NDArray[np.int8] | None = None
    kinds: Codes | None = None
    kind_names: Sequence[str] = ()
    is_impression: Mask | None = None
    context: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.users)


class InteractionReader:
    """Reader of the files of the interactions table in batches, of which only the typed columns are kept.

    Args:
        schema: Columns and types of the tables.
        csv: Format of text tables.
        bad_rows: Handler of invalid rows.
        item_ids: Ids of the items table, to which the interactions must belong; None if there is none.
        user_ids: Ids of the users table; None if there is none.
        split_column: Column that says which part of the split a row belongs to; None without one.
    """

    def __init__(
        self,
        schema: Schema,
        csv: CsvSettings,
        bad_rows: BadRowHandler,
        item_ids: pl.Series | None,
        user_ids: pl.Series | None,
        split_column: str | None = None,
    ) -> None:
        self._schema, self._csv, self._bad_rows, self._split_column = schema, csv, bad_rows, split_column
        self._has_items_table = item_ids is not None
        self._items = IdNumbering(schema.items.id_type, item_ids)
        self._users = IdNumbering(schema.users.id_type, user_ids)
        self._kinds = None if schema.interactions.event is None else KindReader(schema.interactions)

    def read(self, sources: Sequence[TableSource]) -> InteractionTable:
        """Read and validate all files; without a file the table has no rows.

        Raises:
            DataError: As for `read_tables`.
        """
        files = [self._read_file(source) for source in sources]
        if self._schema.interactions.time is not None:
            _check_uniform_time_kind(files, sources)
        times = _pop_column(files, "time", pl.Int64) if self._schema.interactions.time is not None else None
        parts = None if self._split_column is None else _pop_column(files, "part", pl.Int8).to_numpy()
        has_datetimes = times is not None and times.dtype.is_temporal()
        declared_unit = self._schema.interactions.time_unit
        time_unit: TimeUnit | None = "us" if has_datetimes else None if declared_unit == "none" else declared_unit
        if times is not None and time_unit is not None and not has_datetimes:
            _check_time_range(times, time_unit)
        if self._kinds is not None:
            self._kinds.check()
        has_impressions = self._schema.interactions.impression is not None
        return InteractionTable(
            user_ids=self._users.ids,
            item_ids=self._items.ids,
            users=_pop_column(files, "user", pl.Int32).to_numpy(),
            items=_pop_column(files, "item", pl.Int32).to_numpy(),
            is_positive=_pop_column(files, "positive", pl.Boolean).to_numpy(),
            times=None if times is None else times.to_physical().to_numpy(),
            has_datetimes=has_datetimes,
            time_unit=time_unit,
            parts=parts,
            kinds=None if self._kinds is None else _pop_column(files, "kind", pl.Int32).to_numpy(),
            kind_names=() if self._kinds is None else self._kinds.names,
            is_impression=_pop_column(files, "impression", pl.Boolean).to_numpy() if has_impressions else None,
            context=self._pop_context(files),
        )

    def _pop_context(self, files: Sequence[_Columns]) -> pl.DataFrame | None:
        """Remove the context features from all files and return them as a frame; None if there are none."""
        columns = {
            name: _pop_column(files, _CONTEXT_PREFIX + name, to_feature_dtype(feature))
            for name, feature in self._schema.interactions.context.items()
        }
        return pl.DataFrame(columns) if columns else None

    def _read_file(self, source: TableSource) -> _Columns:
        """Return the columns `user` and `item` (codes), `positive`, and others where the settings name them."""
        columns_by_key = _list_columns(self._schema.interactions)
        if self._split_column is not None:
            columns_by_key["data.split_column"] = self._split_column
        table = TableValidator(source, columns_by_key, self._csv, self._bad_rows)
        times = TimestampCaster(self._csv.decimal)
        columns = self._read_batches(table, times)
        if not times.is_consistent:  # the first batch is not like the file
            columns = self._read_batches(table, TimestampCaster(self._csv.decimal, is_number=times.has_more_numbers))
        table.handle_invalid_cells()
        if self._kinds is not None:
            self._kinds.finish_file(source, self._bad_rows)
        return columns

    def _read_batches(self, table: TableValidator, times: TimestampCaster) -> _Columns:
        columns: _Columns = {}
        if self._kinds is not None:
            self._kinds.start_file()
        for batch in table.iterate_batches():
            self._validate(batch, times)
            context = [column.alias(_CONTEXT_PREFIX + column.name) for column in batch.to_frame("context")]
            for column in [*batch.to_frame("interaction"), *context, _is_positive(batch).alias("positive")]:
                columns.setdefault(column.name, []).append(column)
        return columns

    def _validate(self, batch: TableBatch, times: TimestampCaster) -> None:
        """Cast the columns of a batch, drop its invalid rows, and replace the ids of the others by codes."""
        schema, names, decimal = self._schema, self._schema.interactions, self._csv.decimal
        if self._kinds is not None:
            self._kinds.read(batch)
        cast_user, cast_item = (partial(cast_id, id_type=side.id_type) for side in (schema.users, schema.items))
        batch.cast("interaction", names.user, cast_user, is_required=True, name="user")
        batch.cast("interaction", names.item, cast_item, is_required=True, name="item")
        if names.time is not None:
            batch.cast("interaction", names.time, times.cast, is_required=True, name="time")
        if names.label is not None:
            cast_label = partial(_cast_label, positive_threshold=names.positive, decimal=decimal)
            batch.cast("label", names.label, cast_label, is_required=True, name="has_positive_label")
        if names.impression is not None:
            batch.cast("interaction", names.impression, cast_boolean, is_required=True, name="impression")
        if self._split_column is not None:
            batch.cast("interaction", self._split_column, _cast_part, is_required=True, name="part")
        for name, feature in names.context.items():
            batch.cast("context", name, partial(cast_feature, feature=feature, decimal=decimal), is_required=False)
        to_codes = self._items.find if self._has_items_table else self._items.number
        codes = to_codes(batch.typed_columns["interaction", "item"])
        batch.typed_columns["interaction", "item"] = pl.Series(codes)
        if self._has_items_table:
            batch.require(names.item, pl.Series(codes != UNKNOWN_CODE), "an item of the items table")
        users = batch.typed_columns["interaction", "user"]
        batch.typed_columns["interaction", "user"] = pl.Series(self._users.number(users))


def mark_used_codes(codes: Codes, n_codes: int) -> Mask:
    """Return a mask [n_codes] of the codes that occur among n codes."""
    is_used = np.zeros(n_codes, dtype=np.bool_)
    is_used[codes] = True
    return is_used


def _check_uniform_time_kind(files: Sequence[_Columns], sources: Sequence[TableSource]) -> None:
    """Check that the times of all files are numbers, or all are datetimes.

    An empty file is no evidence of either kind: the type of its time column is arbitrary.
    """
    label_by_kind = {
        batch.dtype.is_temporal(): source.label
        for file, source in zip(files, sources, strict=True)
        for batch in file["time"]
        if len(batch)
    }
    if len(label_by_kind) > 1:
        raise DataError(
            f"the times of the files cannot be compared: {label_by_kind[False]} has numbers, {label_by_kind[True]} has "
            "datetimes or ISO 8601 text; write the same kind into all files"
        )


def _check_time_range(times: pl.Series, unit: TimeUnit) -> None:
    """Check that numeric times lie in the years that a datetime supports: others tell of another unit."""
    if times.is_empty():
        return
    numbers = times.to_numpy()
    first, last = numbers.min().item(), numbers.max().item()
    micros_per_unit = NS_PER_UNIT[unit] / NS_PER_UNIT["us"]
    if first * micros_per_unit < MIN_UNIX_MICROS or last * micros_per_unit > MAX_UNIX_MICROS:
        raise DataError(
            f"schema.interactions.time_unit is {unit!r}, but times go from {first} to {last}, which is "
            "beyond the year 9999: set it to their unit since 1970, or to 'none' where they are not of a clock"
        )


def _pop_column(files: Sequence[_Columns], name: str, dtype: type[pl.DataType]) -> pl.Series:
    """Remove a column from all files and concatenate it; integers and floats become floats.

    Only batches with rows count; without any, the column is of `dtype`.
    """
    batches = [batch.to_frame(name) for file in files for batch in file.pop(name) if len(batch)]
    empty = [pl.DataFrame(schema={name: dtype})]
    return pl.concat(batches or empty, how="vertical_relaxed", rechunk=True).to_series()


def _cast_label(column: pl.Series, positive_threshold: float, decimal: str) -> CastResult:
    """Cast labels to whether they reach the threshold.

    They are compared in their own precision: the float32 nearest to 0.7 is below the float64 0.7. In a column of
    decimals the threshold means its decimal spelling.
    """
    labels = cast_number(column, is_optional=False, decimal=decimal)
    if isinstance(column.dtype, pl.Decimal):  # stored as integers
        bound = math.ceil(Fraction(str(positive_threshold)) * 10**column.dtype.scale)
        stored = column.to_physical().cast(pl.Int128)
        bound = min(max(bound, -(10**38)), 10**38)  # a decimal has 38 digits
        is_positive = stored >= pl.Series([bound], dtype=pl.Int128)
        return CastResult(is_positive.fill_null(value=False), labels.is_valid, labels.expected)
    values = column if column.dtype.is_numeric() else labels.values
    threshold = pl.Series([positive_threshold], dtype=pl.Float64)
    if column.dtype.is_float():
        threshold = threshold.cast(column.dtype)
    return CastResult((values >= threshold[0]).fill_null(value=False), labels.is_valid, labels.expected)


def _cast_part(column: pl.Series) -> CastResult:
    """Cast names of parts to their numbers in `PARTS`, Int8."""
    frame = column_to_text_or_null(column).rename("part").to_frame()
    numbers = {name: number for number, name in enumerate(PARTS)}
    values = frame.select(pl.col("part").replace_strict(numbers, default=None, return_dtype=pl.Int8)).to_series()
    return CastResult(values, values.is_not_null(), "'train', 'valid' or 'test'")


def _is_positive(batch: TableBatch) -> pl.Series:
    """Return a mask [n] of the positives: not labelled below the threshold, of no negative kind, no mere impression."""
    is_positive = pl.repeat(value=True, n=len(batch), dtype=pl.Boolean, eager=True)
    labels = batch.typed_columns.get(("label", "has_positive_label"))
    if labels is not None:
        is_positive = is_positive & labels
    for key in (("label", "is_negative_kind"), ("interaction", "impression")):
        is_negative = batch.typed_columns.get(key)
        if is_negative is not None:
            is_positive = is_positive & ~is_negative
    return is_positive


def _list_columns(schema: InteractionSchema) -> dict[str, str]:
    """Return the columns of the interactions table by the keys of vecall.toml that name them."""
    keys = ("user", "item", "time", "label", "impression", "event")
    columns = {f"schema.interactions.{key}": getattr(schema, key) for key in keys if getattr(schema, key) is not None}
    return columns | {f"schema.interactions.context.{name}": name for name in schema.context}
