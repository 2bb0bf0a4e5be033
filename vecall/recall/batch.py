"""Batch recall: a file of user ids or of requests in, one Parquet table of answers out."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import polars as pl

from vecall import progress
from vecall.data.casting import cast_id, to_id_dtype
from vecall.data.readers import read_table
from vecall.errors import DataError, QueryError
from vecall.recall.parquet_output import stage_parquet
from vecall.recall.query import Query, Recalled
from vecall.recall.recaller import Recaller
from vecall.release.release import Release
from vecall.runtime.paths import to_absolute_path

_TABLE_SUFFIXES = (".parquet", ".csv")
_USER_ID_COLUMN = "user_id"
_CHUNK_USERS = 4_096  # users whose answers are held in memory


@dataclass(frozen=True)
class BatchResult:
    """Summary of a batch recall.

    Attributes:
        users: number of requests answered.
        seconds: wall-clock time.
        out: path of the table of answers.
    """

    users: int
    seconds: float
    out: Path

    def as_json(self) -> dict[str, object]:
        """Return the summary as `vecall batch --json` prints it."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True)
class _LocatedQuery:
    """A query and its location in the input file, counted from 1, such as `users.csv: row 3`."""

    location: str
    query: Query


def recall_file(recaller: Recaller, input_path: Path, output_path: Path, *, k: int | None = None) -> BatchResult:
    """Recall for every user of a file, with the same answers as `Recaller.recall`.

    Runs on one core: two threads were measured and were not faster.

    Args:
        recaller: Answers the queries; its release and live changes must not change meanwhile.
        input_path: A `.parquet` or `.csv` table with a column `user_id`, or with a single column. Any other file
            is read as JSON Lines: one request per line, as over HTTP.
        output_path: Parquet table to write, with the columns `user_id`, `ids`, `scores` and `release`, in the order
            of the input. It appears only when it is complete, and replaces an older file.
        k: Items per user; None takes each request's own `k`, 100 by default.

    Returns:
        Number of users, time taken and path of the table.

    Raises:
        DataError: The file cannot be read or is empty, or has no id column or an invalid id.
        QueryError: A line is not a request, or the release cannot answer it; nothing is written.
        StoreError: The table cannot be written.
    """
    start_time = time.perf_counter()
    input_path, output_path = to_absolute_path(input_path), to_absolute_path(output_path)
    read_queries = _make_query_reader(recaller.live_index.snapshot.release, input_path, k)
    total = sum(1 for _ in read_queries())  # a pass of its own, so that a bad line is reported before hours of work
    if not total:
        raise DataError(f"{input_path}: contains no users; expected at least one")
    with stage_parquet(output_path) as directory, progress.track("recalling", total) as advance:
        queries, written = read_queries(), 0
        while chunk := list(islice(queries, _CHUNK_USERS)):
            answers = [_recall_query(recaller, located_query) for located_query in chunk]
            _to_frame(recaller, chunk, answers).write_parquet(directory / f"{written:012}.parquet")
            written += len(chunk)
            advance(len(chunk))
    return BatchResult(total, round(time.perf_counter() - start_time, 2), output_path)


def _make_query_reader(release: Release, path: Path, k: int | None) -> Callable[[], Iterator[_LocatedQuery]]:
    """Return a function that iterates over all queries of the file, any number of times; a table is read once."""
    if path.suffix in _TABLE_SUFFIXES:
        return partial(_iterate_id_queries, path, _read_user_ids(release, path), k)
    return partial(_iterate_json_queries, path, k)


def _iterate_id_queries(path: Path, user_ids: Sequence[int | str], k: int | None) -> Iterator[_LocatedQuery]:
    for row, user_id in enumerate(user_ids, 1):
        yield _LocatedQuery(f"{path}: row {row}", Query(user_id=user_id) if k is None else Query(user_id=user_id, k=k))


def _iterate_json_queries(path: Path, k: int | None) -> Iterator[_LocatedQuery]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_query(f"{path}: line {number}", line, k)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_user_ids(release: Release, path: Path) -> Sequence[int | str]:
    table = read_table(path)
    if _USER_ID_COLUMN not in table.columns and table.width != 1:
        raise DataError(f"{path}: expected a column {_USER_ID_COLUMN!r} or a single column, got {table.columns}")
    column = table[_USER_ID_COLUMN if _USER_ID_COLUMN in table.columns else table.columns[0]]
    cast = cast_id(column, release.user_id_type)
    if not cast.is_valid.all():
        row = int((~cast.is_valid).arg_max() or 0)
        raise DataError(f"{path}: row {row + 1}: expected {cast.expected}, got {column[row]!r}")
    user_ids: list[int | str] = cast.values.to_list()
    return user_ids


def _parse_query(location: str, line: str, k: int | None) -> _LocatedQuery:
    try:
        query = Query.from_json(json.loads(line))
    except ValueError as error:
        raise QueryError(f"{location}: is not valid JSON: {error}", code="bad_json") from error
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
    release = recaller.live_index.snapshot.release
    user_ids = [located_query.query.user_id for located_query in queries]
    if release.user_id_type == "string":  # a release without users accepts ids of both types
        user_ids = [None if user_id is None else str(user_id) for user_id in user_ids]
    item_ids_dtype = pl.List(to_id_dtype(release.item_ids.id_type))
    return pl.DataFrame(
        {
            _USER_ID_COLUMN: pl.Series(user_ids, dtype=to_id_dtype(release.user_id_type)),
            "ids": pl.Series([answer.ids for answer in answers], dtype=item_ids_dtype),
            "scores": pl.Series([answer.scores for answer in answers], dtype=pl.List(pl.Float32)),
            "release": [answer.release for answer in answers],
        }
    )
