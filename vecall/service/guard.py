"""Who is let in, and what of a body is read."""

import asyncio
import base64
import binascii
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import ClassVar
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from vecall.service.auth import ApiKeys, Role
from vecall.service.responses import JSON_MEDIA_TYPE, HttpError
from vecall.service.settings import ServeSettings

Headers = Mapping[str, str]  # a request's headers, their names in small letters

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_MAX_HEADER_BYTES = 2**16  # bytes


class Authenticator:
    """Checks that come before a request is looked at.

    A page in a browser can reach a service on loopback under a name of its own (DNS rebinding) and can send it simple
    requests from elsewhere. So names are checked on every request unless keys protect it, and changes must be JSON from
    a page of the service itself, which no simple request is.

    Args:
        api_keys: of those who are let in; without any, all are.
        settings: names and limits.
    """

    _WWW_AUTHENTICATE: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="vecall", Basic realm="vecall"'}

    def __init__(self, api_keys: ApiKeys, settings: ServeSettings) -> None:
        self._api_keys, self._body_timeout_seconds = api_keys, settings.limits.body_timeout_seconds
        self._allowed_hosts = settings.allowed_hosts or (() if api_keys else LOOPBACK_HOSTS)

    def check_header_size(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """That the head is of a reasonable size.

        Raises:
            Refusal: 431.
        """
        if sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:
            raise HttpError(431, "too_large", f"the head: at most {_MAX_HEADER_BYTES:,} bytes are allowed")

    def check_host(self, headers: Headers) -> None:
        """The name that the client calls this service by.

        Raises:
            Refusal: 403, it is not one of ours.
        """
        if self._allowed_hosts and _parse_hostname(headers.get("host", "")) not in self._allowed_hosts:
            raise HttpError(
                403,
                "forbidden",
                f"Host: expected one of {', '.join(self._allowed_hosts)}; others are allowed by --allow-host",
                field="Host",
            )

    def require_role(self, headers: Headers, required_role: Role) -> None:
        """What the client's key allows.

        Raises:
            Refusal: 401 without a right key, 403 where it does not allow this.
        """
        if not self._api_keys:
            return
        role = self._api_keys.authenticate(_extract_key(headers.get("authorization", "")))
        if role is None:
            raise HttpError(
                401, "unauthorized", "a key is needed: Authorization: Bearer KEY", headers=self._WWW_AUTHENTICATE
            )
        if required_role == "admin" and role != "admin":
            raise HttpError(403, "forbidden", "this key may read; changes need an admin key")

    def check_csrf(self, headers: Headers) -> None:
        """That no page of someone else sends a change.

        Raises:
            Refusal: 403 for its origin, 415 for its type.
        """
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise HttpError(
                403, "forbidden", "Origin: changes are taken from pages of this service alone", field="Origin"
            )
        if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_MEDIA_TYPE:
            raise HttpError(
                415, "unsupported_media_type", f"Content-Type: expected {JSON_MEDIA_TYPE}", field="Content-Type"
            )

    async def require_read_key(self, request: Request) -> None:
        """For endpoints that only tell."""
        self.require_role(request.headers, "read")

    async def require_admin_key(self, request: Request) -> None:
        """For endpoints that change something."""
        self.require_role(request.headers, "admin")
        self.check_csrf(request.headers)

    async def read_body(self, headers: Headers, receive: Receive, max_bytes: int) -> bytes:
        """The body, if it is not too large and comes in time.

        Raises:
            Refusal: 413, 415 where it is compressed, or 408.
            ClientDisconnect: it does not come at all.
        """
        if headers.get("content-encoding", "identity") != "identity":
            raise HttpError(415, "unsupported_media_type", "Content-Encoding: bodies must not be compressed")
        said = headers.get("content-length", "0")
        if said.isdigit() and int(said) > max_bytes:
            raise _build_too_large_error(max_bytes)
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                return await _read_stream(receive, max_bytes)
        except TimeoutError:
            raise HttpError(
                408,
                "timeout",
                f"the body did not come within {self._body_timeout_seconds:g} s",
                headers={"Connection": "close"},
            ) from None


async def _read_stream(receive: Receive, max_bytes: int) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content += message.get("body", b"")
        if len(content) > max_bytes:
            raise _build_too_large_error(max_bytes)
        more = message.get("more_body", False)
    return bytes(content)


def _build_too_large_error(max_bytes: int) -> HttpError:
    return HttpError(
        413, "too_large", f"the body: at most {max_bytes:,} bytes are allowed", headers={"Connection": "close"}
    )


def _extract_key(authorization: str) -> str:
    """A bearer's token, or the password that a browser asked for; empty where there is neither."""
    scheme, _, given = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return given.strip()
        case "basic":
            try:
                return base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return ""
    return ""


@lru_cache(maxsize=64)
def _parse_hostname(host: str) -> str:
    """A `Host` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
