"""Reading of tables from Parquet and CSV: single files, or directories of part files as Spark writes them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress, groupby
from pathlib import Path
from urllib.parse import unquote

import polars as pl
from polars import selectors

from vecall.data.csv_problems import find_csv_problem
from vecall.data.frames import build_frame, get_unnamed_column
from vecall.data.settings import CsvSettings
from vecall.errors import ConfigError, DataError
from vecall.runtime.paths import to_absolute_path

_BATCH_ROWS = 2**22  # rows read at a time, to bound memory

_TEXT_SUFFIXES = (".csv", ".tsv")
_COMPRESSED_SUFFIXES = (".gz", ".zst")
_SUPPORTED_FORMATS = (
    ".parquet, .csv or .tsv file (.csv.gz and .csv.zst too), or a directory of such files as Spark writes it"
)
# First bytes of other files that are often named .csv.
_MAGIC_BYTE_HINTS = {
    b"PAR1": "Parquet by its content: rename it to .parquet",
    b"PK\x03\x04": "a spreadsheet or an archive: export the table as CSV",
    b"\xff\xfe": "text in UTF-16: convert it to UTF-8",
    b"\xfe\xff": "text in UTF-16: convert it to UTF-8",
}
_CANDIDATE_SEPARATORS = (",", ";", "\t", "|")
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # the value of a key in a path, as Hive and Spark write null


@dataclass(frozen=True)
class TableScan:
    """A table that is read in batches of rows.

    All columns of a CSV file are text, so that no type is guessed from its cells; an empty cell is null, even in
    quotes.

    Attributes:
        label: What error texts call the table.
        frame: The table, not read yet.
        columns: Names of its columns.
        csv: Format of a CSV file, in which empty text is null; None for other tables.
    """

    label: str
    frame: pl.LazyFrame
    columns: list[str]
    csv: CsvSettings | None = None

    @property
    def is_text(self) -> bool:
        """Whether the table is a CSV file."""
        return self.csv is not None

    @classmethod
    def from_frame(cls, label: str, frame: pl.DataFrame) -> "TableScan":
        """Return the scan of a frame in memory."""
        return cls(label, frame.lazy(), frame.columns)

    def iterate_batches(self, columns: Collection[str]) -> Iterator[pl.DataFrame]:
        """Read the table in batches, in the order of its rows.

        Args:
            columns: Names of the columns to read, distinct.

        Yields:
            At least one batch, with the columns in the order of the table.

        Raises:
            DataError: The table cannot be parsed.
        """
        with _describe_read_errors(self.label, self.csv):
            selected = self.frame.select(selectors.by_name(*columns))  # exactly these names: none is a pattern
            is_empty = True
            for batch in selected.collect_batches(chunk_size=_BATCH_ROWS):
                yield _nullify_empty_text(batch) if self.is_text else batch
                is_empty = False
            if is_empty:
                yield selected.head(0).collect()

    def read(self) -> pl.DataFrame:
        """Read the whole table.

        Raises:
            DataError: The table cannot be parsed.
        """
        with _describe_read_errors(self.label, self.csv):
            table = self.frame.collect()
            return _nullify_empty_text(table) if self.is_text else table


def read_table(path: Path, csv: CsvSettings | None = None) -> pl.DataFrame:
    """Read a whole table; see `scan_table`."""
    return scan_table(path, csv).read()


def is_table_path(path: Path) -> bool:
    """Return whether a path has the suffix of a table, compressed or not."""
    return _get_table_format(path) in (".parquet", *_TEXT_SUFFIXES)


def scan_table(path: Path, csv: CsvSettings | None = None) -> TableScan:
    """Open a table.

    Args:
        path: A `.parquet`, `.csv` or `.tsv` file, the latter two possibly compressed, or a directory of such files of
            the same format.
        csv: Format of CSV files.

    Raises:
        DataError: The path is missing, is of another format, or cannot be parsed.
    """
    csv = csv or CsvSettings()
    with _describe_read_errors(str(path), csv):
        to_absolute_path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file; paths in vecall.toml are relative to its own directory")
        frame, is_text = _scan_directory(path, csv) if path.is_dir() else _scan_file(path, csv)
        return TableScan(str(path), frame, frame.collect_schema().names(), csv if is_text else None)


@contextmanager
def _describe_read_errors(label: str, csv: CsvSettings | None) -> Iterator[None]:
    """Raise errors of reading as `DataError`, of a CSV file with the line that may be the cause.

    Args:
        label: The path, or what else error texts call the table.
        csv: Format, if the table may be a CSV file.
    """
    try:
        yield
    except pl.exceptions.ComputeError as error:
        problem = None if csv is None else _find_csv_problem(Path(label), csv)
        raise DataError(f"{label}: cannot be read: {problem or _summarize_error(error)}") from error
    except (pl.exceptions.PolarsError, ConfigError, OSError, ValueError) as error:
        raise DataError(f"{label}: cannot be read: {_summarize_error(error)}") from error


def _find_csv_problem(path: Path, csv: CsvSettings) -> str | None:
    """Describe the first suspicious line of a file, or of the files of a directory."""
    is_directory = path.is_dir()
    for file in _list_files(path) if is_directory else [path]:
        if problem := find_csv_problem(file, _get_separator(file, csv), csv.quote):
            return f"{file.name}, {problem}" if is_directory else problem
    return None


def _nullify_empty_text(table: pl.DataFrame) -> pl.DataFrame:
    columns = {name: get_unnamed_column(table, name).replace({"": None}) for name in table.columns}
    return build_frame(columns, len(table))


def _summarize_error(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _scan_file(path: Path, csv: CsvSettings) -> tuple[pl.LazyFrame, bool]:
    """Return the table in a file, and whether it is text."""
    suffix = _get_table_format(path)
    if suffix == ".parquet":
        return pl.scan_parquet(path, glob=False), False  # file names may contain `[` and `*`
    if suffix in _TEXT_SUFFIXES:
        return _scan_csv(path, csv), True
    raise DataError(f"{path}: expected a {_SUPPORTED_FORMATS}; got {path.suffix or 'no suffix'!r}")


def _get_table_format(path: Path) -> str:
    """Return the suffix of a path in lower case, that before `.gz` or `.zst` if it is compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_compressed = len(suffixes) > 1 and suffixes[-1] in _COMPRESSED_SUFFIXES
    return suffixes[-2] if is_compressed else "".join(suffixes[-1:])


def _get_separator(path: Path, csv: CsvSettings) -> str:
    return csv.separator or ("\t" if _get_table_format(path) == ".tsv" else ",")


def _scan_csv(path: Path, csv: CsvSettings) -> pl.LazyFrame:
    with path.open("rb") as file:
        head = file.read(4)
    for magic_bytes, hint in _MAGIC_BYTE_HINTS.items():
        if head.startswith(magic_bytes):
            raise DataError(f"{path}: is {hint}")
    separator = _get_separator(path, csv)
    frame = pl.scan_csv(path, infer_schema=False, glob=False, separator=separator, quote_char=csv.quote or None)
    if not csv.quote:
        return frame
    # Polars leaves quotes in names doubled, unlike those in cells.
    doubled = 2 * csv.quote
    return frame.rename({name: name.replace(doubled, csv.quote) for name in frame.collect_schema() if doubled in name})


def _scan_directory(directory: Path, csv: CsvSettings) -> tuple[pl.LazyFrame, bool]:
    """Return the table in the files of a directory, and whether it is text."""
    if (directory / "_delta_log").exists():
        raise DataError(
            f"{directory}: is a Delta Lake table, whose directory also holds old versions: export it to Parquet"
        )
    files = _list_files(directory)
    suffixes = {_get_table_suffix(file) for file in files}
    if len(suffixes) != 1:
        content = f"files of {len(suffixes)} formats ({', '.join(sorted(suffixes))})" if suffixes else "no table file"
        raise DataError(f"{directory}: expected a {_SUPPORTED_FORMATS}; this directory holds {content}")
    if suffixes == {".parquet"}:
        return _scan_partitions(directory, files), False
    parts = [_scan_file(file, csv) for file in files]
    frames = [frame for frame, _ in parts]
    has_rows = [not frame.head(1).collect().is_empty() for frame in frames]
    return pl.concat(list(compress(frames, has_rows)) or frames[:1]), parts[0][1]


def _scan_partitions(directory: Path, files: Sequence[Path]) -> pl.LazyFrame:
    """Return the table in Parquet files, with a text column for each `key=value` in their paths below the directory.

    Polars would read the keys of directories above, too, and guess types that lose leading zeros.
    """
    frames = []
    for parent, group in groupby(files, key=lambda file: file.parent):
        pairs = (part.partition("=") for part in parent.relative_to(directory).parts if "=" in part)
        keys = {key: None if value == _NULL_PARTITION else unquote(value) for key, _, value in pairs}
        scanned = pl.scan_parquet(list(group), glob=False, hive_partitioning=False)
        frames.append(scanned.with_columns(**{key: pl.lit(value, pl.String) for key, value in keys.items()}))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _list_files(directory: Path) -> list[Path]:
    """List the files of a table, without those that a writer of tables leaves beside them."""
    return sorted(file for file in directory.rglob("*") if file.is_file() and not _is_hidden(file, directory))


def _is_hidden(file: Path, directory: Path) -> bool:
    return any(part.startswith(("_", ".")) for part in file.relative_to(directory).parts)


def _get_table_suffix(file: Path) -> str:
    return "".join(suffix for suffix in file.suffixes[-2:] if suffix in (".parquet", *_TEXT_SUFFIXES)) or file.suffix


def suggest_separator(columns: list[str]) -> str:
    """Return a hint for an error text if the only column's name contains a separator, else an empty string."""
    if len(columns) != 1:
        return ""
    separators = [separator for separator in _CANDIDATE_SEPARATORS if separator in columns[0]]
    return f"; its columns seem to be separated by {separators[0]!r}: set data.csv.separator" if separators else ""
