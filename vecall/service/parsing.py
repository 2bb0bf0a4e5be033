"""Request bodies: read within limits of size and time, then parsed by the same validators as in Python and batch."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from vecall.errors import QueryError
from vecall.recall.query import Query
from vecall.recall.recommend_query import DEFAULT_CANDIDATES, DEFAULT_K, RecommendRequest
from vecall.release.manifest import RELEASE_NAME_PATTERN
from vecall.service.responses import HttpError
from vecall.service.settings import Limits


async def read_body(request: Request, max_bytes: int, timeout_seconds: float) -> bytes:
    """Read a request's body.

    Raises:
        HttpError: 413 if it is too large, 415 if it is compressed, 408 if it arrives too slowly.
        ClientDisconnect: the client has gone.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HttpError(415, "unsupported_media_type", "Content-Encoding: bodies must not be compressed")
    content_length = request.headers.get("content-length", "0")
    if content_length.isdecimal() and int(content_length) > max_bytes:
        raise _build_too_large_error(max_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _read_stream(request, max_bytes)
    except TimeoutError:
        raise HttpError(
            408, "timeout", f"the body did not arrive within {timeout_seconds:g} s", headers={"Connection": "close"}
        ) from None


async def _read_stream(request: Request, max_bytes: int) -> bytes:
    body, has_more = bytearray(), True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _build_too_large_error(max_bytes)
        has_more = message.get("more_body", False)
    return bytes(body)


def _build_too_large_error(max_bytes: int) -> HttpError:
    return HttpError(
        413, "too_large", f"the body: at most {max_bytes:,} bytes are allowed", headers={"Connection": "close"}
    )


def parse_recall(body: bytes, limits: Limits) -> Query:
    """Parse the body of a recall.

    Raises:
        QueryError: it is not JSON (`bad_json`), a part is invalid, or exceeds a limit; `field` names it.
    """
    query = Query.from_json(_fill_in(_parse_json(body), limits, k=Query.k))
    _check_max("k", query.k, limits.max_k, "items in one answer")
    _check_lengths(query, limits)
    return query


def parse_recommend(body: bytes, limits: Limits) -> RecommendRequest:
    """Parse the body of a recommendation.

    Raises:
        QueryError: as for `parse_recall`.
    """
    fields = _fill_in(_parse_json(body), limits, k=DEFAULT_K, candidates=DEFAULT_CANDIDATES)
    request = RecommendRequest.from_json(fields)
    _check_max("k", request.k, limits.max_k, "items in one answer")
    _check_max("candidates", request.candidates, limits.max_k, "items")
    _check_lengths(request.query, limits)
    return request


def _fill_in(fields: Any, limits: Limits, **defaults: int) -> Any:  # noqa: ANN401 - any JSON value
    """Return the fields with the defaults of numbers of items, which the limits may lower."""
    if not isinstance(fields, dict):
        return fields
    return {name: min(default, limits.max_k) for name, default in defaults.items()} | fields


def _check_lengths(query: Query, limits: Limits) -> None:
    _check_length("history", query.history, limits.max_history)
    _check_length("recent", query.recent, limits.max_history)
    _check_length("exclude", query.exclude, limits.max_exclude)
    _check_length("where", query.where, limits.max_conditions)
    for index, condition in enumerate(query.where):
        if isinstance(value := condition.get("value"), list):
            _check_length(f"where[{index}].value", value, limits.max_filter_values)


def parse_upsert(body: bytes, limits: Limits) -> tuple[list[Any], bool]:
    """Parse the body of an upsert: the items, which `LiveIndex.upsert` validates, and whether they are partial.

    Raises:
        QueryError: as for `parse_recall`.
    """
    fields = _parse_fields(body, required=("items",), optional=("partial",))
    partial = fields.get("partial", False)
    if not isinstance(partial, bool):
        raise QueryError(f"partial: expected true or false, got {partial!r:.80}", field="partial")
    return _parse_list("items", fields["items"], limits.max_batch_items), partial


def parse_delete(body: bytes, limits: Limits) -> list[Any]:
    """Parse the body of a deletion: the ids, which `LiveIndex.delete` validates.

    Raises:
        QueryError: as for `parse_recall`.
    """
    return _parse_list("ids", _parse_fields(body, required=("ids",))["ids"], limits.max_batch_items)


def parse_activate(body: bytes) -> str:
    """Parse the body of a release switch: the release's name.

    Raises:
        QueryError: as for `parse_recall`.
    """
    name = _parse_fields(body, required=("name",))["name"]
    if not isinstance(name, str) or not re.fullmatch(RELEASE_NAME_PATTERN, name):
        raise QueryError(f"name: expected the name of a release, got {name!r:.80}", field="name")
    return name


def _parse_json(body: bytes) -> object:
    try:
        return from_json(body)
    except ValueError as error:
        raise QueryError(f"the body is not JSON: {error}", code="bad_json") from None


def _parse_fields(body: bytes, *, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
    fields = _parse_json(body)
    if not isinstance(fields, dict):
        raise QueryError(f"the body: expected an object, got {fields!r:.80}")
    allowed = (*required, *optional)
    for name in fields:
        if name not in allowed:
            raise QueryError(f"{name!r:.80}: unknown key; expected some of {list(allowed)}", field=name)
    for name in required:
        if name not in fields:
            raise QueryError(f"{name}: is missing", field=name)
    return fields


def _parse_list(field: str, value: object, max_length: int) -> list[Any]:
    if not isinstance(value, list):
        raise QueryError(f"{field}: expected a list, got {value!r:.80}", field=field)
    _check_length(field, value, max_length)
    return value


def _check_length(field: str, values: Sequence[object] | None, max_length: int) -> None:
    _check_max(field, len(values or ()), max_length, "entries")


def _check_max(field: str, value: int, maximum: int, unit: str) -> None:
    if value > maximum:
        raise QueryError(f"{field}: at most {maximum:,} {unit} are allowed, got {value:,}", field=field)
