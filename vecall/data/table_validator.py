"""Validation of the columns of one table, row by row, in batches of rows."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
import polars as pl

from vecall.data.casting import CastResult
from vecall.data.datetime_range import is_in_datetime_range
from vecall.data.frames import build_frame, get_unnamed_column, null_column
from vecall.data.readers import suggest_separator
from vecall.data.settings import CsvSettings
from vecall.data.table_source import TableSource
from vecall.errors import DataError

MAX_EXAMPLES = 3  # in an error text


@dataclass
class CellCheck:
    """A check of the cells of a column, in all batches of a table so far.

    Attributes:
        column: Name of the column.
        expected: What a valid cell is.
        n_cells: Number of cells.
        n_invalid: Number of invalid cells.
        examples: The first invalid cells, each with the number of its row.
    """

    column: str
    expected: str
    n_cells: int = 0
    n_invalid: int = 0
    examples: list[str] = field(default_factory=list)

    def add_batch(self, cells: pl.Series, row_numbers: pl.Series, is_valid: pl.Series, expected: str) -> None:
        """Add the cells of a batch.

        Args:
            cells: [n] Cells as read.
            row_numbers: [n] Numbers of the rows in the table, from 1.
            is_valid: [n] Mask of the valid cells.
            expected: What a valid cell is; longer where invalid cells give a hint, which is kept.
        """
        self.n_cells += len(cells)
        self.expected = max(self.expected, expected, key=len)
        if is_valid.all():
            return
        is_invalid = ~is_valid
        self.n_invalid += int(is_invalid.sum())
        n_missing = MAX_EXAMPLES - len(self.examples)
        numbers, values = (part.filter(is_invalid).head(n_missing) for part in (row_numbers, cells))
        if not is_in_datetime_range(values).all():  # no value of Python's: days or fractions of a second since 1970
            values = values.to_physical()
        pairs = zip(numbers.to_list(), values.to_list(), strict=True)
        self.examples += [f"row {number}: {value!r:.80}" for number, value in pairs]


class BadRowHandler:
    """Handler of invalid cells, as `bad_rows` of the settings says.

    Args:
        should_drop: Whether to count invalid cells instead of raising an error with examples.

    Attributes:
        dropped_counts: Number of invalid cells by reason.
    """

    def __init__(self, *, should_drop: bool) -> None:
        self._should_drop = should_drop
        self.dropped_counts: dict[str, int] = {}

    def handle(self, source: TableSource, check: CellCheck) -> None:
        """Count the invalid cells of a column, or raise.

        Args:
            source: The table.
            check: A check of all cells of the column, at least one of which is invalid.

        Raises:
            DataError: Invalid cells are errors.
        """
        if self._should_drop:
            self.count(source, f"{check.column}: not {check.expected} (of {check.n_cells:,} rows)", check.n_invalid)
            return
        raise DataError(
            f"{source.label}: column {check.column!r}: expected {check.expected}, got {check.n_invalid} invalid of "
            f"{check.n_cells} rows ({'; '.join(check.examples)}). {source.describe_remedy()}"
        )

    def count(self, source: TableSource, reason: str, count: int) -> None:
        """Count rows or values of a table that are dropped for a reason."""
        reason = f"{PurePath(source.label).name}: {reason}"
        self.dropped_counts[reason] = self.dropped_counts.get(reason, 0) + count


class TableBatch:
    """Validator of a batch of rows, which casts its columns one after the other.

    All columns hold the same rows: those that every check so far has kept.

    Args:
        raw_columns: Columns as read, by name.
        row_numbers: [n] Numbers of the rows in the table, from 1.
        checks: The checks of the batches before this one, in their order; extended.

    Attributes:
        typed_columns: The columns that have been cast, by group and name.
    """

    def __init__(self, raw_columns: dict[str, pl.Series], row_numbers: pl.Series, checks: list[CellCheck]) -> None:
        self._raw_columns, self._row_numbers, self._checks = raw_columns, row_numbers, checks
        self._n_checked = 0
        self.typed_columns: dict[tuple[str, str], pl.Series] = {}

    def __len__(self) -> int:
        return len(self._row_numbers)

    def cast(
        self, group: str, column: str, caster: Callable[[pl.Series], CastResult], *, is_required: bool, name: str = ""
    ) -> None:
        """Cast a column and add it to `typed_columns`.

        Args:
            group: Group of the column, see `to_frame`.
            column: Name in the table.
            caster: Casts the column.
            is_required: Whether rows with an invalid cell are dropped; otherwise the cell becomes null.
            name: Name in the group; by default that in the table.
        """
        result = caster(self._raw_columns[column])
        values = result.values
        self._record(column, result.is_valid, result.expected)
        if not is_required and not result.is_valid.all():
            values = values.zip_with(result.is_valid, null_column(len(values), values.dtype))
        self.typed_columns[group, name or column] = values
        if is_required:
            self._filter_rows(result.is_valid)

    def require(self, column: str, is_valid: pl.Series, expected: str) -> None:
        """Drop the rows whose cell of a column is invalid.

        Args:
            column: Name in the table.
            is_valid: [n] Mask of the valid rows.
            expected: What a valid cell is.
        """
        self._record(column, is_valid, expected)
        self._filter_rows(is_valid)

    def drop(self, mask: pl.Series) -> None:
        """Drop the rows where the mask [n] is true; they are not invalid, and it is for the caller to count them."""
        self._filter_rows(~mask)

    def _record(self, column: str, is_valid: pl.Series, expected: str) -> None:
        """Add the cells of a column to the check with the number of checks of this batch so far."""
        if self._n_checked == len(self._checks):
            self._checks.append(CellCheck(column, expected))
        self._checks[self._n_checked].add_batch(self._raw_columns[column], self._row_numbers, is_valid, expected)
        self._n_checked += 1

    def _filter_rows(self, mask: pl.Series) -> None:
        if mask.all():
            return
        self._row_numbers = self._row_numbers.filter(mask)
        self._raw_columns = {name: column.filter(mask) for name, column in self._raw_columns.items()}
        self.typed_columns = {key: column.filter(mask) for key, column in self.typed_columns.items()}

    def to_frame(self, group: str) -> pl.DataFrame:
        """Return the columns of a group."""
        columns = {name: values for (key, name), values in self.typed_columns.items() if key == group}
        return build_frame(columns, len(self))


class TableValidator:
    """Validator of one table, all batches of which get the same checks in the same order.

    Args:
        source: The table.
        required_columns: Names of the columns by the keys of vecall.toml that name them.
        csv: Format of a text table.
        bad_rows: Handler of invalid cells.

    Raises:
        DataError: The table cannot be opened, or lacks a column.
    """

    def __init__(
        self, source: TableSource, required_columns: dict[str, str], csv: CsvSettings, bad_rows: BadRowHandler
    ) -> None:
        self._source, self._bad_rows = source, bad_rows
        self._scan = source.scan(csv)
        for key, column in required_columns.items():
            if column not in self._scan.columns:
                raise DataError(_describe_missing_column(source.label, column, key, self._scan.columns))
            if self._scan.is_text and f"{column}_duplicated_0" in self._scan.columns:  # as Polars renames the second
                raise DataError(f"{source.label}: two columns are named {column!r} ({key}); rename one of them")
        self._columns = list(dict.fromkeys(required_columns.values()))
        self._checks: list[CellCheck] = []

    def iterate_batches(self) -> Iterator[TableBatch]:
        """Yield the rows in batches, at least one, for the caller to check.

        Raises:
            DataError: The table cannot be parsed.
        """
        self._checks, n_rows = [], 0
        for frame in self._scan.iterate_batches(self._columns):
            raw_columns = {column: get_unnamed_column(frame, column) for column in self._columns}
            row_numbers = pl.Series(np.arange(n_rows + 1, n_rows + 1 + len(frame)))
            n_rows += len(frame)
            yield TableBatch(raw_columns, row_numbers, self._checks)

    def handle_invalid_cells(self) -> None:
        """Count the invalid cells of all batches, or raise for the first check that found some.

        Raises:
            DataError: A cell is invalid, and `bad_rows` says that this is an error.
        """
        for check in self._checks:
            if check.n_invalid:
                self._bad_rows.handle(self._source, check)


def _describe_missing_column(label: str, column: str, key: str, columns: list[str]) -> str:
    similar = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else suggest_separator(columns)
    return f"{label}: no column {column!r} ({key}); it has {columns}{hint}"
