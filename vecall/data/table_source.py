"""Source of a table: a file, a directory of files, or a frame in memory."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.data.readers import TableScan, scan_table
from vecall.data.settings import CsvSettings
from vecall.errors import DataError


@dataclass(frozen=True)
class TableSource:
    """A table that is read when it is needed.

    Attributes:
        label: What error texts call the table: its path, or for a frame a name such as "items".
        content: Path of the table, or the frame.
    """

    label: str
    content: Path | pl.DataFrame

    @classmethod
    def from_path(cls, path: Path) -> "TableSource":
        """Return the source of a table in a file or directory."""
        return cls(str(path), path)

    @classmethod
    def from_argument(cls, name: str, table: object) -> "TableSource":
        """Return the source that an argument of a public function names.

        Args:
            name: Name of the argument.
            table: A path, or a Polars frame.

        Raises:
            DataError: It is neither.
        """
        if isinstance(table, pl.DataFrame):
            return cls(name, table)
        if isinstance(table, (str, Path)):
            return cls.from_path(Path(table))
        raise DataError(
            f"{name}: expected the path of a Parquet or CSV table, or a polars.DataFrame, got {type(table).__name__}; "
            "convert other frames, for example with polars.from_pandas(frame)"
        )

    def scan(self, csv: CsvSettings) -> TableScan:
        """Open the table.

        Raises:
            DataError: The file is missing or is of another format.
        """
        if isinstance(self.content, pl.DataFrame):
            return TableScan.from_frame(self.label, self.content)
        return scan_table(self.content, csv)

    def describe_remedy(self) -> str:
        """Say what to do about invalid rows."""
        if isinstance(self.content, pl.DataFrame):
            return "Fix or filter them before the call"
        return 'Fix them, or set data.bad_rows = "drop" to drop and count them'
