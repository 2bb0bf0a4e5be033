"""Answers as bytes, and errors as answers."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Scope

from vecall.errors import (
    DeltaFull,
    EncoderMismatch,
    JournalFailed,
    Locked,
    Overloaded,
    QueryError,
    StoreError,
    TooManyScans,
    VecallError,
)

RETRY = {"Retry-After": "1"}  # seconds
JSON = "application/json"


class Refusal(VecallError):  # noqa: N818 - it is what happened
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


def answer(content: Mapping[str, Any]) -> Response:
    """Success."""
    return Response(to_json(content), media_type=JSON)


def refusal_of(error: VecallError) -> Refusal:
    """An error as HTTP tells it."""
    text = str(error)
    match error:
        case Refusal():
            return error
        case EncoderMismatch():
            return Refusal(409, error.code, text, field=error.field)
        case QueryError():
            return Refusal(400 if error.code == "bad_json" else 422, error.code, text, field=error.field)
        case TooManyScans():
            return Refusal(429, error.code, text, headers=RETRY)
        case Overloaded():
            return Refusal(503, error.code, text, headers=RETRY)
        case DeltaFull():
            return Refusal(429, error.code, text, headers=RETRY)
        case JournalFailed(disk_full=True):
            return Refusal(507, "disk_full", text)
        case JournalFailed() | Locked():
            return Refusal(503, "overloaded", text, headers=RETRY)
        case StoreError():
            return Refusal(409, "release_refused", text)
    return Refusal(422, "invalid", text)


def refused(refusal: Refusal, scope: Scope) -> Response:
    """An error's answer to the request of an ASGI scope, where its code is left for who counts it."""
    scope.setdefault("state", {})["error_code"] = refusal.code
    told = {"error": {"code": refusal.code, "message": str(refusal), "field": refusal.field}}
    return Response(to_json(told), refusal.status, refusal.headers, media_type=JSON)
