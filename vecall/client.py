"""A small client of the service, with the standard library alone; answers are the JSON objects of its document."""

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from vecall.errors import ConfigError, VecallError

_RETRYABLE_STATUSES = (429, 503)


class ServiceError(VecallError):
    """The service refused, or cannot be reached.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: for machines, such as `invalid`; `unreachable` where there was no answer.
        field: the part of the request that is wrong; None for the whole.
        retry_after_seconds: seconds after which to try again; None where that would not help.
    """

    def __init__(
        self, status: int, code: str, message: str, field: str | None, retry_after_seconds: float | None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.retry_after_seconds = status, code, field, retry_after_seconds


class Client:
    """One connection to a service, kept open. Use one in each thread. A context manager.

    Args:
        url: such as `http://127.0.0.1:8080`.
        key: an API key, where the service wants one.
        timeout_seconds: seconds for one answer.
        max_attempts: how often a request is sent in all while the service is busy or cannot be reached. Every request may be
            sent again: to upsert or delete twice is the same as once.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout_seconds: float = 10.0, max_attempts: int = 3
    ) -> None:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError(f"url: expected such as http://127.0.0.1:8080, got {url!r}")
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(place.hostname, place.port, timeout=timeout_seconds)
        self._base_path, self._max_attempts = place.path.rstrip("/"), max_attempts
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def recall(self, **query: object) -> dict[str, Any]:
        """The k items that a user most likely wants: `ids`, `scores`, `release`, ...

        Args:
            query: user_id, user, history, recent, vector, k, where, exclude, exclude_seen, explain.

        Raises:
            ServiceError: the service refused, or cannot be reached.
        """
        return self._request("POST", "/v1/recall", query)

    def upsert(self, items: Sequence[Mapping[str, object]], *, partial: bool = False) -> dict[str, Any]:
        """Add or replace items, all or none; the next recall sees them.

        Args:
            items: `{"id", "fields"}`, or with a `vector` and its `encoder`.
            partial: a missing column keeps its value; the items must be there.

        Raises:
            ServiceError: the service refused, or cannot be reached.
        """
        return self._request("POST", "/v1/items", {"items": items, "partial": partial})

    def delete(self, ids: Sequence[int | str]) -> dict[str, Any]:
        """Delete items; no later recall returns them. Raises `ServiceError`."""
        return self._request("POST", "/v1/items/delete", {"ids": ids})

    def list_releases(self) -> dict[str, Any]:
        """All releases, newest first. Raises `ServiceError`."""
        return self._request("GET", "/v1/releases", None)

    def activate(self, name: str) -> dict[str, Any]:
        """Go over to another release. Raises `ServiceError`."""
        return self._request("POST", "/v1/releases/activate", {"name": name})

    def is_ready(self) -> bool:
        """Whether recalls are answered."""
        try:
            return bool(self._send_once("GET", "/readyz", None)["ready"])
        except ServiceError:
            return False

    def _request(self, method: str, path: str, payload: Mapping[str, object] | None) -> dict[str, Any]:
        for left in reversed(range(self._max_attempts)):
            try:
                return self._send_once(method, path, payload)
            except ServiceError as error:
                if error.retry_after_seconds is None or not left:
                    raise
                time.sleep(error.retry_after_seconds)
        raise ConfigError(f"tries: expected at least 1, got {self._max_attempts}")

    def _send_once(self, method: str, path: str, payload: Mapping[str, object] | None) -> dict[str, Any]:
        body = None if payload is None else json.dumps(payload, allow_nan=False).encode()
        try:
            self._connection.request(method, self._base_path + path, body, self._headers)
            answer = self._connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServiceError(0, "unreachable", f"no answer: {error}", None, 0.1) from error
        return _parse_response(answer.status, answer.headers.get("Retry-After"), told)


def _parse_response(status: int, retry_after: str | None, body: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(body)
        if status == http.client.OK:
            return content
        wrong = content["error"]
        code, message, field = wrong["code"], wrong["message"], wrong["field"]
    except (ValueError, KeyError, TypeError):  # a proxy's page, for one
        code, message, field = "unreadable", f"status {status}, and no answer of vecall: {body[:200]!r}", None
    waits = float(retry_after or 1) if status in _RETRYABLE_STATUSES else None
    raise ServiceError(status, code, message, field, waits)
