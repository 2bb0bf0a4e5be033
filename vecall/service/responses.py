"""Answers as bytes, and errors as answers."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Scope

from vecall.errors import (
    DeltaFullError,
    EncoderMismatchError,
    JournalIOError,
    LockedError,
    OverloadedError,
    QueryError,
    StoreError,
    TooManyScansError,
    VecallError,
)

RETRY_AFTER = {"Retry-After": "1"}  # seconds
JSON_MEDIA_TYPE = "application/json"


class HttpError(VecallError):
    """A request that is turned away before it is looked at.

    Attributes:
        status: of HTTP.
        code: for machines.
        field: of the request.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.headers = status, code, field, dict(headers or {})


def to_json_response(content: Mapping[str, Any]) -> Response:
    """Success."""
    return Response(to_json(content), media_type=JSON_MEDIA_TYPE)


def to_http_error(error: VecallError) -> HttpError:
    """An error as HTTP tells it."""
    text = str(error)
    match error:
        case HttpError():
            return error
        case EncoderMismatchError():
            return HttpError(409, error.code, text, field=error.field)
        case QueryError():
            return HttpError(400 if error.code == "bad_json" else 422, error.code, text, field=error.field)
        case TooManyScansError():
            return HttpError(429, error.code, text, headers=RETRY_AFTER)
        case OverloadedError():
            return HttpError(503, error.code, text, headers=RETRY_AFTER)
        case DeltaFullError():
            return HttpError(429, error.code, text, headers=RETRY_AFTER)
        case JournalIOError(disk_full=True):
            return HttpError(507, "disk_full", text)
        case JournalIOError() | LockedError():
            return HttpError(503, "overloaded", text, headers=RETRY_AFTER)
        case StoreError():
            return HttpError(409, "release_refused", text)
    return HttpError(422, "invalid", text)


def to_error_response(error: HttpError, scope: Scope) -> Response:
    """An error's answer to the request of an ASGI scope, where its code is left for who counts it."""
    scope.setdefault("state", {})["error_code"] = error.code
    told = {"error": {"code": error.code, "message": str(error), "field": error.field}}
    return Response(to_json(told), error.status, error.headers, media_type=JSON_MEDIA_TYPE)
