"""Recall for many: a file of users or of requests in, one Parquet table out."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import polars as pl

from vecall import progress
from vecall.data.casting import cast_id, to_id_dtype
from vecall.data.readers import read_table
from vecall.errors import DataError, QueryError, StoreError
from vecall.recall.query import Query, Recalled
from vecall.recall.recaller import Recaller
from vecall.runtime.paths import to_absolute_path

_TABLE_SUFFIXES = (".parquet", ".csv")
_USER_ID_COLUMN = "user_id"
_CHUNK_USERS = 4_096  # users whose answers are in memory


@dataclass(frozen=True)
class BatchResult:
    """What was done.

    Attributes:
        users: how many were recalled for.
        seconds: that it took.
        out: where the answers are.
    """

    users: int
    seconds: float
    out: Path

    def as_json(self) -> dict[str, object]:
        """As on the command line."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True)
class _LocatedQuery:
    """A request, and where it stands in its file, from 1."""

    location: str
    query: Query


def recall_file(recaller: Recaller, input_path: Path, output_path: Path, *, k: int | None = None) -> BatchResult:
    """Recall for all users of a file, each as `Recaller.recall` does, on one core: two threads were not quicker.

    Args:
        recaller: answers; its release and live changes must stay the same meanwhile.
        input_path: a `.parquet` or `.csv` table with a column `parse_user_id`, or with one column; any other file holds requests,
            one a line, in JSON as over HTTP.
        output_path: a Parquet table of `parse_user_id`, `ids`, `scores` and `release`, in the order of the file. It is there once it
            is whole; an older one is replaced.
        k: how many items; None is what a request says, else 100.

    Raises:
        DataError: the file cannot be read, or has no such column or bad ids in it.
        QueryError: a line is no request, or does not go with the release; nothing is written.
        StoreError: the table cannot be written.
    """
    began = time.perf_counter()
    input_path, output_path = to_absolute_path(input_path), to_absolute_path(output_path)
    read = _make_query_reader(recaller, input_path, k)
    total = sum(1 for _ in read())  # what is wrong is told before hours of work
    if not total:
        raise DataError(f"{input_path}: holds no user")
    with _stage_parquet(output_path) as folder, progress.track("recalling", total) as advance:
        asked, written = read(), 0
        while part := list(islice(asked, _CHUNK_USERS)):
            _to_frame(recaller, part, [_recall_query(recaller, one) for one in part]).write_parquet(
                folder / f"{written:012}.parquet"
            )
            written += len(part)
            advance(len(part))
    return BatchResult(total, round(time.perf_counter() - began, 2), output_path)


def _make_query_reader(recaller: Recaller, path: Path, k: int | None) -> Callable[[], Iterator[_LocatedQuery]]:
    """Gives all that is asked, each time that it is called; a table is read once."""
    if path.suffix in _TABLE_SUFFIXES:
        return partial(_iterate_id_queries, path, _read_user_ids(recaller, path), k)
    return partial(_iterate_json_queries, path, k)


def _iterate_id_queries(path: Path, ids: Sequence[int | str], k: int | None) -> Iterator[_LocatedQuery]:
    for row, one in enumerate(ids, 1):
        yield _LocatedQuery(f"{path}: row {row}", Query(user_id=one) if k is None else Query(user_id=one, k=k))


def _iterate_json_queries(path: Path, k: int | None) -> Iterator[_LocatedQuery]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_query(f"{path}: line {number}", line, k)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_user_ids(recaller: Recaller, path: Path) -> Sequence[int | str]:
    table = read_table(path)
    if _USER_ID_COLUMN not in table.columns and table.width != 1:
        raise DataError(f"{path}: expected a column {_USER_ID_COLUMN!r}, or one column only; it has {table.columns}")
    column = table[_USER_ID_COLUMN if _USER_ID_COLUMN in table.columns else table.columns[0]]
    cast = cast_id(column, recaller.user_id_type)
    if not cast.is_valid.all():
        row = int((~cast.is_valid).arg_max() or 0)
        raise DataError(f"{path}: row {row + 1}: expected {cast.expected}, got {column[row]!r}")
    ids: list[int | str] = cast.values.to_list()
    return ids


def _parse_query(location: str, line: str, k: int | None) -> _LocatedQuery:
    try:
        query = Query.from_json(json.loads(line))
    except ValueError as error:
        raise QueryError(f"{location}: is not JSON: {error}", code="bad_json") from error
    except QueryError as error:
        raise _add_location(error, location) from error
    return _LocatedQuery(location, query if k is None else replace(query, k=k))


def _add_location(error: QueryError, location: str) -> QueryError:
    return QueryError(f"{location}: {error}", code=error.code, field=error.field)


def _recall_query(recaller: Recaller, located_query: _LocatedQuery) -> Recalled:
    try:
        return recaller.recall(located_query.query)
    except QueryError as error:
        raise _add_location(error, located_query.location) from error


def _to_frame(recaller: Recaller, queries: Sequence[_LocatedQuery], answers: Sequence[Recalled]) -> pl.DataFrame:
    item = to_id_dtype(recaller.live_index.snapshot.release.item_ids.id_type)
    users = [one.query.user_id for one in queries]
    if recaller.user_id_type == "string":  # so they are, or the release knows no users and takes ids of any type
        users = [None if one is None else str(one) for one in users]
    return pl.DataFrame(
        {
            _USER_ID_COLUMN: pl.Series(users, dtype=to_id_dtype(recaller.user_id_type)),
            "ids": pl.Series([one.ids for one in answers], dtype=pl.List(item)),
            "scores": pl.Series([one.scores for one in answers], dtype=pl.List(pl.Float32)),
            "release": [one.release for one in answers],
        }
    )


@contextmanager
def _stage_parquet(output_path: Path) -> Iterator[Path]:
    """A folder for parts of a table, which is put together of them at the end."""
    try:
        with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=f"{output_path.name}.") as folder:
            parts = Path(folder)
            yield parts
            whole = parts / "whole"
            pl.scan_parquet(sorted(parts.glob("*.parquet")), glob=False).sink_parquet(whole)
            whole.replace(output_path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise StoreError(f"{output_path} cannot be written: is there such a folder, and room in it? {error}") from error
