"""What is wrong with a CSV file that cannot be parsed: the line and the remedy, which the parser does not tell."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

_MAX_QUOTED_BYTES = 60  # of a line


def find_csv_problem(path: Path, separator: str, quote: str) -> str | None:
    """Describe the first suspicious line of a file; None if there is none to be found.

    A quoted cell may hold line ends, so a line may be suspected in the middle of one. Files of Zstandard are not read.

    Args:
        path: The file, which may not exist.
        separator: Character between cells.
        quote: Character around cells that hold separators or line ends; empty if there is none.
    """
    if not path.is_file() or path.suffix.lower() == ".zst":
        return None
    with suppress(OSError, EOFError, zlib.error):  # a damaged archive, which the parser's error tells
        return next(_iterate_problems(path, separator.encode(), quote.encode()), None)
    return None


def _iterate_problems(path: Path, separator: bytes, quote: bytes) -> Iterator[str]:
    with cast("BinaryIO", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
        n_separators = file.readline().count(separator)
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if problem := _describe_line(line.rstrip(b"\r\n"), separator, quote, n_separators):
                quoted = line[:_MAX_QUOTED_BYTES].decode(errors="backslashreplace").strip()
                yield f"line {number:,}, {quoted!r}, {problem}"


def _describe_line(line: bytes, separator: bytes, quote: bytes, n_separators: int) -> str | None:
    try:
        line.decode()
    except UnicodeDecodeError:
        return "is not UTF-8: convert the file, for example by iconv"
    if quote and quote in line:
        if _is_well_quoted(line, separator, quote):
            return None
        return (
            "has a quote within a cell: quote such cells and double the quotes in them, or set data.csv.quote = '' if "
            "no cell is quoted"
        )
    if line.count(separator) > n_separators:
        return f"has {line.count(separator) + 1} cells, and the first line {n_separators + 1}"
    return None


def _is_well_quoted(line: bytes, separator: bytes, quote: bytes) -> bool:
    """Whether quotes stand around cells alone, or doubled within such cells."""
    cells = line.replace(2 * quote, b"").split(quote)  # unquoted parts at even positions, the content of quotes between
    if len(cells) % 2 == 0:
        return False
    outside = cells[::2]
    starts = all(not part or part.endswith(separator) for part in outside[:-1])
    return starts and all(not part or part.startswith(separator) for part in outside[1:])
