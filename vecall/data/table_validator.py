"""Validation of the columns of one table, row by row."""

import difflib
from collections.abc import Callable
from pathlib import PurePath

import numpy as np
import polars as pl

from vecall.data.casting import CastResult
from vecall.data.frames import build_frame, get_unnamed_column, null_column
from vecall.data.readers import suggest_separator
from vecall.data.settings import CsvSettings
from vecall.data.table_source import TableSource
from vecall.errors import DataError

MAX_EXAMPLES = 3  # in an error text


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

    def handle(
        self,
        source: TableSource,
        column: str,
        cells: pl.Series,
        row_numbers: pl.Series,
        is_valid: pl.Series,
        expected: str,
    ) -> None:
        """Count the invalid cells of a column, or raise.

        Args:
            source: The table.
            column: Name of the column.
            cells: [n] Cells as read.
            row_numbers: [n] Numbers of the rows in the table, from 1.
            is_valid: [n] Mask of the valid cells; at least one is invalid.
            expected: What a valid cell is.

        Raises:
            DataError: Invalid cells are errors.
        """
        is_invalid = ~is_valid
        count = int(is_invalid.sum())
        if self._should_drop:
            reason = f"{PurePath(source.label).name}: {column}: not {expected} (of {len(cells):,} rows)"
            self.dropped_counts[reason] = self.dropped_counts.get(reason, 0) + count
            return
        numbers, values = (part.filter(is_invalid).head(MAX_EXAMPLES).to_list() for part in (row_numbers, cells))
        examples = "; ".join(f"row {number}: {value!r:.80}" for number, value in zip(numbers, values, strict=True))
        raise DataError(
            f"{source.label}: column {column!r}: expected {expected}, got {count} invalid of {len(cells)} rows "
            f"({examples}). {source.describe_remedy()}"
        )


class TableValidator:
    """Validator of one table, which casts its columns one after the other.

    All columns hold the same rows: those that every check so far has kept.

    Args:
        source: The table.
        required_columns: Names of the columns by the keys of vecall.toml that name them.
        csv: Format of a text table.
        bad_rows: Handler of invalid cells.

    Attributes:
        typed_columns: The columns that have been cast, by group and name.

    Raises:
        DataError: The table cannot be read, or lacks a column.
    """

    def __init__(
        self, source: TableSource, required_columns: dict[str, str], csv: CsvSettings, bad_rows: BadRowHandler
    ) -> None:
        table = source.read(csv)
        for key, column in required_columns.items():
            if column not in table.columns:
                raise DataError(_describe_missing_column(source.label, column, key, table.columns))
        self._source, self._bad_rows = source, bad_rows
        self._raw_columns = {column: get_unnamed_column(table, column) for column in required_columns.values()}
        self._row_numbers = pl.Series(np.arange(1, len(table) + 1))  # in the table, for error texts
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
        raw = self._raw_columns[column]
        result = caster(raw)
        values = result.values
        if not result.is_valid.all():
            self._bad_rows.handle(self._source, column, raw, self._row_numbers, result.is_valid, result.expected)
            if not is_required:
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
        if not is_valid.all():
            self._bad_rows.handle(
                self._source, column, self._raw_columns[column], self._row_numbers, is_valid, expected
            )
        self._filter_rows(is_valid)

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


def _describe_missing_column(label: str, column: str, key: str, columns: list[str]) -> str:
    similar = difflib.get_close_matches(column, columns, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else suggest_separator(columns)
    return f"{label}: no column {column!r} ({key}); it has {columns}{hint}"
