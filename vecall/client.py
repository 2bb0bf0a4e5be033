"""Client of the HTTP service that needs only the standard library; responses are returned as parsed JSON objects."""

import http.client
import json
import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from vecall.errors import ConfigError, QueryError, VecallError

_RETRYABLE_STATUSES = (429, 503)
_CLOSED_BY_SERVICE = (ConnectionResetError, BrokenPipeError)  # as it does with idle connections


class ServiceError(VecallError):
    """The service refused a request or could not be reached.

    Attributes:
        status: HTTP status; 0 if there was no response.
        code: Machine-readable code, such as `invalid`; `unreachable` if there was no response.
        field: Path of the invalid part of the request; None for the whole request.
        retry_after_seconds: Seconds to wait before a retry; None if a retry would not help.
    """

    def __init__(
        self, status: int, code: str, message: str, field: str | None, retry_after_seconds: float | None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.retry_after_seconds = status, code, field, retry_after_seconds


class Client:
    """Persistent connection to a service. A context manager; not thread-safe: use one client per thread.

    Args:
        url: URL of the service, such as `http://127.0.0.1:8080`.
        key: API key, if the service requires one.
        timeout_seconds: Timeout of each connection attempt and read, and the longest wait before a retry.
        max_attempts: How many times a request is sent at most while the service is busy or unreachable. Every request
            is safe to repeat: upserts and deletes are idempotent.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout_seconds: float = 10.0, max_attempts: int = 3
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            parts.path.encode("ascii")
            (parts.hostname or "").encode("idna")
        except ValueError as error:  # such as a port that is no number
            raise _make_url_error(url) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _make_url_error(url)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("key: expected printable ASCII, as in an HTTP header; check for a line break at its end")
        connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            # With a port: without one, the last part of an IPv6 address would be taken for it.
            self._connection = connection_class(
                parts.hostname, port or connection_class.default_port, timeout=timeout_seconds
            )
        except http.client.InvalidURL as error:  # such as blanks in a host
            raise _make_url_error(url) from error
        self._base_path, self._max_attempts = parts.path.rstrip("/"), max_attempts
        self._timeout_seconds = timeout_seconds
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        self._connection.close()

    def recall(self, **query: object) -> dict[str, Any]:
        """Recall the top-k items for a user: `ids`, `scores`, `release` and more.

        Args:
            query: Fields of the request: user_id, user, history, recent, vector, k, where, exclude, exclude_seen,
                channels, explain.

        Raises:
            ServiceError: The service refused the request or could not be reached.
            QueryError: A value has no JSON form, such as NaN. NumPy's numbers and arrays have one.
        """
        return self._request("POST", "/v1/recall", query)

    def recommend(self, **request: object) -> dict[str, Any]:
        """Recommend a final list of items for a user: `ids`, `scores`, `channels`, `ranker`, `release` and more.

        Args:
            request: Fields of the request: those of `recall`, where `k` is of the final list, and candidates,
                diversity, deadline_ms.

        Raises:
            ServiceError: The service refused the request or could not be reached.
        """
        return self._request("POST", "/v1/recommend", request)

    def upsert(self, items: Sequence[Mapping[str, object]], *, partial: bool = False) -> dict[str, Any]:
        """Insert or replace items, all or none; the next recall sees them.

        Args:
            items: Items as `{"id", "fields"}`, or with a `vector` and the hash of its `encoder` as well.
            partial: Whether columns that are left out keep their values; the items must exist.

        Raises:
            ServiceError: The service refused the request or could not be reached.
        """
        return self._request("POST", "/v1/items", {"items": items, "partial": partial})

    def delete(self, ids: Sequence[int | str]) -> dict[str, Any]:
        """Delete items; no later recall returns them. Raises `ServiceError`."""
        return self._request("POST", "/v1/items/delete", {"ids": ids})

    def list_releases(self) -> dict[str, Any]:
        """List all releases, newest first. Raises `ServiceError`."""
        return self._request("GET", "/v1/releases", None)

    def activate(self, name: str) -> dict[str, Any]:
        """Activate a release after the service has verified it. Raises `ServiceError`."""
        return self._request("POST", "/v1/releases/activate", {"name": name})

    def is_ready(self) -> bool:
        """Return whether the service is reachable and ready to answer recalls."""
        try:
            return self._send_once("GET", "/readyz", None).get("ready") is True
        except ServiceError:
            return False

    def _request(self, method: str, path: str, payload: Mapping[str, object] | None) -> dict[str, Any]:
        for remaining_attempts in reversed(range(self._max_attempts)):
            try:
                return self._send_once(method, path, payload)
            except ServiceError as error:
                seconds = error.retry_after_seconds
                if seconds is None or seconds > self._timeout_seconds or not remaining_attempts:
                    raise
                time.sleep(seconds)
        raise ConfigError(f"max_attempts: expected at least 1, got {self._max_attempts}")

    def _send_once(self, method: str, path: str, payload: Mapping[str, object] | None) -> dict[str, Any]:
        request_body = None if payload is None else _encode_payload(payload)
        is_reused = self._connection.sock is not None
        try:
            return self._exchange(method, path, request_body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if is_reused and isinstance(error, _CLOSED_BY_SERVICE):
                return self._send_once(method, path, payload)
            raise ServiceError(0, "unreachable", f"no response: {error}", None, 0.1) from error

    def _exchange(self, method: str, path: str, request_body: bytes | None) -> dict[str, Any]:
        self._connection.request(method, self._base_path + path, request_body, self._headers)
        response = self._connection.getresponse()
        return _parse_response(response.status, response.headers.get("Retry-After"), response.read())


def _make_url_error(url: str) -> ConfigError:
    return ConfigError(f"url: expected one such as http://127.0.0.1:8080, got {url!r}")


def _encode_payload(payload: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(payload, allow_nan=False, default=_to_plain_value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise QueryError(f"the request cannot be written as JSON: {error}", code="bad_json") from error


def _to_plain_value(value: object) -> object:
    """Convert a NumPy number or array, a tensor or a column to Python's own types."""
    for method in ("tolist", "to_list"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _parse_retry_after(text: str | None) -> float:
    """Return the seconds of a Retry-After header; 1 for others, such as the date that a proxy gives."""
    return float(text) if text is not None and re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) else 1.0


def _parse_response(status: int, retry_after: str | None, body: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(body)
        if status == http.client.OK:
            return content
        details = content["error"]
        code, message, field = details["code"], details["message"], details["field"]
    except (ValueError, KeyError, TypeError):  # such as the HTML page of a proxy
        code, message, field = "unreadable", f"status {status} with a body that is not vecall's: {body[:200]!r}", None
    retry_after_seconds = _parse_retry_after(retry_after) if status in _RETRYABLE_STATUSES else None
    raise ServiceError(status, code, message, field, retry_after_seconds)
