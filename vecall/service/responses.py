"""HTTP responses: JSON bodies, and exceptions mapped to statuses."""

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Scope

from vecall.errors import (
    DeltaFullError,
    EncoderMismatchError,
    EngineUnavailableError,
    JournalIOError,
    LockedError,
    OverloadedError,
    QueryError,
    StoreError,
    TooManyScansError,
    VecallError,
)

JSON_MEDIA_TYPE = "application/json"
RETRY_AFTER = {"Retry-After": "1"}  # seconds


class HttpError(VecallError):
    """An error with the HTTP response that reports it.

    Attributes:
        status: HTTP status code.
        code: machine-readable error code.
        field: part of the request that is wrong; None for the whole.
        headers: further response headers.
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
    """A 200 response."""
    return Response(orjson.dumps(content), media_type=JSON_MEDIA_TYPE)


def to_http_error(error: VecallError) -> HttpError:
    """The status, code and headers that report an error."""
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
        case OverloadedError() | EngineUnavailableError():
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
    """The response that reports an error; leaves its code in the ASGI scope for metrics and logs."""
    scope.setdefault("state", {})["error_code"] = error.code
    field = None if error.field is None else _escape_surrogates(error.field)
    content = {"error": {"code": error.code, "message": _escape_surrogates(str(error)), "field": field}}
    return Response(orjson.dumps(content), error.status, error.headers, media_type=JSON_MEDIA_TYPE)


def _escape_surrogates(text: str) -> str:
    """The text with lone surrogates escaped, which a message may quote from a request; other text is unchanged."""
    return text.encode(errors="backslashreplace").decode()
