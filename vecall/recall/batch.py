"""Batch recall and recommendation: a file of user ids or of requests in, one Parquet table of answers out."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from vecall import progress
from vecall.data.canonical import UNPAIRED_SURROGATE_PATTERN
from vecall.data.casting import cast_id, to_id_dtype
from vecall.data.id_map import Id
from vecall.data.readers import is_table_path, read_table
from vecall.errors import DataError, EngineUnavailableError, QueryError
from vecall.recall.engine_fallback import DEGRADED_ENGINE
from vecall.recall.parquet_output import check_output_path, stage_parquet
from vecall.recall.query import Query, Recalled
from vecall.recall.recaller import Recaller
from vecall.recall.recommend_query import Recommended, RecommendRequest
from vecall.release.release import Release
from vecall.runtime.paths import to_absolute_path

logger = logging.getLogger(__name__)

RequestT = TypeVar("RequestT", Query, RecommendRequest)
_Result = Recalled | Recommended  # what `Recaller.recall` and `Recaller.recommend` return

_USER_ID_COLUMN = "user_id"
_CHUNK_USERS, _CHUNK_IDS = 4_096, 2**20  # users whose answers are held in memory, and about how many ids of them
_ENGINE_WAIT_SECONDS = 180.0  # for the server of the index: one that was restarted takes a minute, then loads
_ENGINE_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class BatchResult:
    """Summary of a batch.

    Attributes:
        users: number of requests answered.
        unknown_users: those of them that name a user whom the release does not have, and that something replaced.
        seconds: wall-clock time.
        out: path of the table of answers.
    """

    users: int
    unknown_users: int
    seconds: float
    out: Path

    def as_json(self) -> dict[str, object]:
        """Return the summary as `vecall batch --json` prints it."""
        return asdict(self) | {"out": str(self.out)}


@dataclass(frozen=True)
class _LocatedRequest(Generic[RequestT]):
    """A request and its location in the input file, counted from 1, such as `users.csv: row 3`."""

    location: str
    request: RequestT


def recall_file(recaller: Recaller, input_path: Path, output_path: Path, *, k: int | None = None) -> BatchResult:
    """Recall for every user of a file, with the same answers as `Recaller.recall`.

    Runs on one core: two threads were measured and were not faster.

    Args:
        recaller: Answers the queries; its release and live changes must not change meanwhile.
        input_path: A Parquet, `.csv` or `.tsv` table, the latter two possibly compressed, with a column `user_id`, or
            with a single column. Any other file is read as JSON Lines: one request per line, as over HTTP.
        output_path: Parquet table to write, with the columns `user_id`, `ids`, `scores` and `release`, in the order
            of the input. It appears only when it is complete, and replaces an older file.
        k: Items per user; None takes each request's own `k`, 100 by default.

    Returns:
        Number of users, time taken and path of the table.

    Raises:
        DataError: The file cannot be read or is empty, or has no id column or an invalid id.
        QueryError: A line is not a request, or the release cannot answer it; nothing is written.
        StoreError: The table cannot be written, would replace the input, or is named as a text file.
        EngineUnavailableError: The server that holds the index has not answered for three minutes; nothing is written.
            Popular items do not replace it here, whatever the release's `when_down`: the table could not say so.
    """
    return _answer_file(recaller, input_path, output_path, k, parse=Query.from_json, answer=recaller.recall)


def recommend_file(recaller: Recaller, input_path: Path, output_path: Path, *, k: int | None = None) -> BatchResult:
    """Recommend a final list for every user of a file, with the same answers as `Recaller.recommend`.

    Args:
        recaller: As for `recall_file`.
        input_path: As for `recall_file`; a line is a request of `POST /v1/recommend`.
        output_path: As for `recall_file`, with the columns `channels`, a list of names for each of `ids`, and `ranker`
            as well.
        k: Items per user; None takes each request's own `k`, 20 by default.

    Returns:
        As `recall_file`.

    Raises:
        DataError, QueryError, StoreError, EngineUnavailableError: As for `recall_file`.
    """

    def recommend(request: RecommendRequest) -> Recommended:
        return recaller.recommend_with_trace(request).answer

    return _answer_file(recaller, input_path, output_path, k, parse=RecommendRequest.from_json, answer=recommend)


def _answer_file(
    recaller: Recaller,
    input_path: Path,
    output_path: Path,
    k: int | None,
    *,
    parse: Callable[[object], RequestT],
    answer: Callable[[RequestT], _Result],
) -> BatchResult:
    start_time = time.perf_counter()
    input_path, output_path = to_absolute_path(input_path), to_absolute_path(output_path)
    check_output_path(output_path, input_path)
    if not input_path.exists():
        raise DataError(f"{input_path}: cannot be read: no such file")
    if not (input_path.is_file() or input_path.is_dir()):
        raise DataError(f"{input_path}: is a pipe or a device, expected a file, since it is read twice: save it first")
    read_requests = _make_request_reader(recaller.live_index.snapshot.release, input_path, k, parse)
    total = sum(map(_check_user_id, read_requests()))  # a pass of its own: a bad line is reported before hours of work
    if not total:
        raise DataError(f"{input_path}: contains no users; expected at least one")
    with stage_parquet(output_path) as directory, progress.track("recalling", total) as advance:
        written = unknown = 0
        for user_ids, answers in _answer_in_chunks(read_requests(), answer):
            _to_frame(recaller, user_ids, answers).write_parquet(directory / f"{written:012}.parquet")
            written += len(user_ids)
            unknown += sum(answered.unknown.user and answered.fallback is not None for answered in answers)
            advance(len(user_ids))
    if unknown:
        logger.warning(
            "%s: the release does not have %d of %d users: the rest of the request answers them, or popular items; are "
            "the ids spelled as those of the users are, with their leading zeros?",
            input_path, unknown, total,
        )  # fmt: skip
    return BatchResult(total, unknown, round(time.perf_counter() - start_time, 2), output_path)


def _make_request_reader(
    release: Release, path: Path, k: int | None, parse: Callable[[object], RequestT]
) -> Callable[[], Iterator[_LocatedRequest[RequestT]]]:
    """Return a function that iterates over all requests of the file, any number of times; a table is read once."""
    if is_table_path(path):
        return partial(_iterate_id_requests, path, _read_user_ids(release, path), k, parse)
    return partial(_iterate_json_requests, path, k, parse)


def _iterate_id_requests(
    path: Path, user_ids: Sequence[int | str], k: int | None, parse: Callable[[object], RequestT]
) -> Iterator[_LocatedRequest[RequestT]]:
    options = {} if k is None else {"k": k}
    for row, user_id in enumerate(user_ids, 1):
        yield _LocatedRequest(f"{path}: row {row}", parse({"user_id": user_id, **options}))


def _iterate_json_requests(
    path: Path, k: int | None, parse: Callable[[object], RequestT]
) -> Iterator[_LocatedRequest[RequestT]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:  # Windows marks UTF-8
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_line(f"{path}: line {number}", line, k, parse)
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


def _parse_line(
    location: str, line: str, k: int | None, parse: Callable[[object], RequestT]
) -> _LocatedRequest[RequestT]:
    try:
        request = parse(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise QueryError(f"{location}: is not valid JSON: {error}", code="bad_json") from error
    except QueryError as error:
        raise _add_location(error, location) from error
    return _LocatedRequest(location, request if k is None else replace(request, k=k))


def _add_location(error: QueryError, location: str) -> QueryError:
    return QueryError(f"{location}: {error}", code=error.code, field=error.field)


def _answer_in_chunks(
    requests: Iterable[_LocatedRequest[RequestT]], answer: Callable[[RequestT], _Result]
) -> Iterator[tuple[list[Id | None], list[_Result]]]:
    """Yield user ids and answers of some requests at a time, of fewer if their answers are long."""
    user_ids: list[Id | None] = []
    answers: list[_Result] = []
    n_ids = 0
    for located in requests:
        answers.append(_answer_request(answer, located))
        user_ids.append(_get_user_id(located.request))
        n_ids += len(answers[-1].ids)
        if len(answers) >= _CHUNK_USERS or n_ids >= _CHUNK_IDS:
            yield user_ids, answers
            user_ids, answers, n_ids = [], [], 0
    if answers:
        yield user_ids, answers


def _answer_request(answer: Callable[[RequestT], _Result], located: _LocatedRequest[RequestT]) -> _Result:
    """Answer a request; wait for the server of the index while it does not answer."""
    give_up_at = time.monotonic() + _ENGINE_WAIT_SECONDS
    while True:
        try:
            answered = answer(located.request)
        except QueryError as error:
            raise _add_location(error, located.location) from error
        except EngineUnavailableError as error:
            if time.monotonic() >= give_up_at:
                raise EngineUnavailableError(f"{located.location}: {error}") from error
        else:
            if DEGRADED_ENGINE not in answered.degraded:
                return answered
            if time.monotonic() >= give_up_at:
                raise EngineUnavailableError(
                    f"{located.location}: the server that holds the index does not answer: start it, then repeat this"
                )
        time.sleep(_ENGINE_RETRY_SECONDS)


def _check_user_id(located: _LocatedRequest[RequestT]) -> int:
    """Return 1 for a request whose user id the output can hold.

    Raises:
        QueryError: It cannot.
    """
    user_id = _get_user_id(located.request)
    if isinstance(user_id, int) and not -(2**63) <= user_id < 2**63:
        raise QueryError(f"{located.location}: user_id: expected an integer of 64 bits, got {user_id}", field="user_id")
    if isinstance(user_id, str) and UNPAIRED_SURROGATE_PATTERN.search(user_id):
        raise QueryError(f"{located.location}: user_id: expected valid Unicode, got {user_id!r}", field="user_id")
    return 1


def _get_user_id(request: Query | RecommendRequest) -> Id | None:
    return request.user_id if isinstance(request, Query) else request.query.user_id


def _to_frame(recaller: Recaller, user_ids: Sequence[Id | None], answers: Sequence[_Result]) -> pl.DataFrame:
    release = recaller.live_index.snapshot.release
    if release.user_id_type == "string":  # a release without users accepts ids of both types
        user_ids = [None if user_id is None else str(user_id) for user_id in user_ids]
    item_ids_dtype = pl.List(to_id_dtype(release.item_ids.id_type))
    recommended = [answer for answer in answers if isinstance(answer, Recommended)]
    score_dtype = pl.Float64 if recommended else pl.Float32  # a ranker's may be of any size
    columns = {
        _USER_ID_COLUMN: pl.Series(user_ids, dtype=to_id_dtype(release.user_id_type)),
        "ids": pl.Series([answer.ids for answer in answers], dtype=item_ids_dtype),
        "scores": pl.Series([answer.scores for answer in answers], dtype=pl.List(score_dtype)),
        "release": pl.Series([answer.release for answer in answers]),
    }
    if recommended:
        channels_dtype = pl.List(pl.List(pl.String))
        columns["channels"] = pl.Series([answer.channels for answer in recommended], dtype=channels_dtype)
        columns["ranker"] = pl.Series([answer.ranker for answer in recommended])
    return pl.DataFrame(columns)
