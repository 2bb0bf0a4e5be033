"""Reading of tables from Parquet and CSV: single files, or directories of part files as Spark writes them."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from vecall.data.frames import build_frame, get_unnamed_column
from vecall.data.settings import CsvSettings
from vecall.errors import ConfigError, DataError
from vecall.runtime.paths import to_absolute_path

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


def read_table(path: Path, csv: CsvSettings | None = None) -> pl.DataFrame:
    """Read a table.

    All columns of a CSV file are text, so that no type is guessed from its cells; an empty cell is null, even in
    quotes.

    Args:
        path: A `.parquet`, `.csv` or `.tsv` file, the latter two possibly compressed, or a directory of such files of
            the same format.
        csv: Format of CSV files.

    Raises:
        DataError: The path is missing, is of another format, or cannot be parsed.
    """
    csv = csv or CsvSettings()
    try:
        to_absolute_path(path)
        if not path.exists():
            raise DataError(f"{path}: no such file; paths in vecall.toml are relative to its own directory")
        if path.is_dir():
            return _read_directory(path, csv)
        return _select_reader(path, csv)(path)
    except (pl.exceptions.PolarsError, ConfigError, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {_summarize_error(error)}") from error


def _summarize_error(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _select_reader(path: Path, csv: CsvSettings) -> Callable[[Path], pl.DataFrame]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_compressed = len(suffixes) > 1 and suffixes[-1] in _COMPRESSED_SUFFIXES
    suffix = suffixes[-2] if is_compressed else "".join(suffixes[-1:])
    if suffix == ".parquet":
        return lambda file: pl.read_parquet(file, glob=False)  # file names may contain `[` and `*`
    if suffix in _TEXT_SUFFIXES:
        return lambda file: _read_csv(file, csv.separator or ("\t" if suffix == ".tsv" else ","))
    raise DataError(f"{path}: expected a {_SUPPORTED_FORMATS}; got {path.suffix or 'no suffix'!r}")


def _read_csv(path: Path, separator: str) -> pl.DataFrame:
    with path.open("rb") as file:
        head = file.read(4)
    for magic_bytes, hint in _MAGIC_BYTE_HINTS.items():
        if head.startswith(magic_bytes):
            raise DataError(f"{path}: is {hint}")
    table = pl.read_csv(path, infer_schema=False, glob=False, separator=separator)
    return build_frame(
        {name: get_unnamed_column(table, name).replace({"": None}) for name in table.columns}, len(table)
    )


def _read_directory(directory: Path, csv: CsvSettings) -> pl.DataFrame:
    if (directory / "_delta_log").exists():
        raise DataError(
            f"{directory}: is a Delta Lake table, whose directory also holds old versions: export it to Parquet"
        )
    files = sorted(file for file in directory.rglob("*") if file.is_file() and not _is_hidden(file, directory))
    suffixes = {_get_table_suffix(file) for file in files}
    if len(suffixes) != 1:
        content = f"files of {len(suffixes)} formats ({', '.join(sorted(suffixes))})" if suffixes else "no table file"
        raise DataError(f"{directory}: expected a {_SUPPORTED_FORMATS}; this directory holds {content}")
    if suffixes == {".parquet"}:
        return pl.scan_parquet(files, glob=False, hive_partitioning=True).collect()
    parts = [_select_reader(file, csv)(file) for file in files]
    return pl.concat([part for part in parts if len(part)] or parts[:1])


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
