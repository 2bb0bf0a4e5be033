"""A small client of the service, with the standard library alone; answers are the JSON objects of its document."""

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from vecall.errors import ConfigError, VecallError

_BUSY = (429, 503)


class ServiceError(VecallError):
    """The service refused, or cannot be reached.

    Attributes:
        status: of HTTP; 0 where there was no answer.
        code: for machines, such as `invalid`; `unreachable` where there was no answer.
        field: the part of the request that is wrong; None for the whole.
        retry_after: seconds after which to try again; None where that would not help.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None, retry_after: float | None) -> None:
        super().__init__(message)
        self.status, self.code, self.field, self.retry_after = status, code, field, retry_after


class Client:
    """One connection to a service, kept open. Use one in each thread. A context manager.

    Args:
        url: such as `http://127.0.0.1:8080`.
        key: an API key, where the service wants one.
        timeout: seconds for one answer.
        tries: how often a request is sent in all while the service is busy or cannot be reached. Every request may be
            sent again: to upsert or delete twice is the same as once.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 10.0, tries: int = 3) -> None:
        place = urlsplit(url)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ConfigError(f"url: expected such as http://127.0.0.1:8080, got {url!r}")
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(place.hostname, place.port, timeout=timeout)
        self._base, self._tries = place.path.rstrip("/"), tries
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
        return self._ask("POST", "/v1/recall", query)

    def upsert(self, items: Sequence[Mapping[str, object]], *, partial: bool = False) -> dict[str, Any]:
        """Add or replace items, all or none; the next recall sees them.

        Args:
            items: `{"id", "fields"}`, or with a `vector` and its `encoder`.
            partial: a missing column keeps its value; the items must be there.

        Raises:
            ServiceError: the service refused, or cannot be reached.
        """
        return self._ask("POST", "/v1/items", {"items": items, "partial": partial})

    def delete(self, ids: Sequence[int | str]) -> dict[str, Any]:
        """Delete items; no later recall returns them. Raises `ServiceError`."""
        return self._ask("POST", "/v1/items/delete", {"ids": ids})

    def releases(self) -> dict[str, Any]:
        """All releases, newest first. Raises `ServiceError`."""
        return self._ask("GET", "/v1/releases", None)

    def activate(self, name: str) -> dict[str, Any]:
        """Go over to another release. Raises `ServiceError`."""
        return self._ask("POST", "/v1/releases/activate", {"name": name})

    def is_ready(self) -> bool:
        """Whether recalls are answered."""
        try:
            return bool(self._once("GET", "/readyz", None)["ready"])
        except ServiceError:
            return False

    def _ask(self, method: str, path: str, content: Mapping[str, object] | None) -> dict[str, Any]:
        for left in reversed(range(self._tries)):
            try:
                return self._once(method, path, content)
            except ServiceError as error:
                if error.retry_after is None or not left:
                    raise
                time.sleep(error.retry_after)
        raise ConfigError(f"tries: expected at least 1, got {self._tries}")

    def _once(self, method: str, path: str, content: Mapping[str, object] | None) -> dict[str, Any]:
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        try:
            self._connection.request(method, self._base + path, body, self._headers)
            answer = self._connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServiceError(0, "unreachable", f"no answer: {error}", None, 0.1) from error
        return _parsed(answer.status, answer.headers.get("Retry-After"), told)


def _parsed(status: int, retry_after: str | None, told: bytes) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(told)
        if status == http.client.OK:
            return content
        wrong = content["error"]
        code, message, field = wrong["code"], wrong["message"], wrong["field"]
    except (ValueError, KeyError, TypeError):  # a proxy's page, for one
        code, message, field = "unreadable", f"status {status}, and no answer of vecall: {told[:200]!r}", None
    waits = float(retry_after or 1) if status in _BUSY else None
    raise ServiceError(status, code, message, field, waits)
