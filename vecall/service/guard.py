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

from vecall.service.auth import Keys, Role
from vecall.service.responses import JSON, Refusal
from vecall.service.settings import ServeSettings

Head = Mapping[str, str]  # a request's headers, their names in small letters

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MOST_HEAD = 2**16  # bytes


class Guard:
    """Checks that come before a request is looked at.

    A page in a browser can reach a service on loopback under a name of its own (DNS rebinding) and can send it simple
    requests from elsewhere. So names are checked on every request unless keys protect it, and changes must be JSON from
    a page of the service itself, which no simple request is.

    Args:
        keys: of those who are let in; without any, all are.
        settings: names and limits.
    """

    _ASK: ClassVar[dict[str, str]] = {"WWW-Authenticate": 'Bearer realm="vecall", Basic realm="vecall"'}

    def __init__(self, keys: Keys, settings: ServeSettings) -> None:
        self._keys, self._seconds = keys, settings.limits.body_seconds
        self._names = settings.allowed_hosts or (() if keys else LOOPBACK)

    def check_size(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """That the head is of a reasonable size.

        Raises:
            Refusal: 431.
        """
        if sum(len(name) + len(value) for name, value in headers) > _MOST_HEAD:
            raise Refusal(431, "too_large", f"the head: at most {_MOST_HEAD:,} bytes are allowed")

    def check_host(self, head: Head) -> None:
        """The name that the client calls this service by.

        Raises:
            Refusal: 403, it is not one of ours.
        """
        if self._names and _name(head.get("host", "")) not in self._names:
            raise Refusal(
                403,
                "forbidden",
                f"Host: expected one of {', '.join(self._names)}; others are allowed by --allow-host",
                field="Host",
            )

    def check_key(self, head: Head, needed: Role) -> None:
        """What the client's key allows.

        Raises:
            Refusal: 401 without a right key, 403 where it does not allow this.
        """
        if not self._keys:
            return
        role = self._keys.role_of(_given_key(head.get("authorization", "")))
        if role is None:
            raise Refusal(401, "unauthorized", "a key is needed: Authorization: Bearer KEY", headers=self._ASK)
        if needed == "admin" and role != "admin":
            raise Refusal(403, "forbidden", "this key may read; changes need an admin key")

    def check_change(self, head: Head) -> None:
        """That no page of someone else sends a change.

        Raises:
            Refusal: 403 for its origin, 415 for its type.
        """
        origin = head.get("origin")
        if origin is not None and origin.partition("://")[2] != head.get("host"):
            raise Refusal(
                403, "forbidden", "Origin: changes are taken from pages of this service alone", field="Origin"
            )
        if head.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Refusal(415, "unsupported_media_type", f"Content-Type: expected {JSON}", field="Content-Type")

    async def reads(self, request: Request) -> None:
        """For endpoints that only tell."""
        self.check_key(request.headers, "read")

    async def administers(self, request: Request) -> None:
        """For endpoints that change something."""
        self.check_key(request.headers, "admin")
        self.check_change(request.headers)

    async def body(self, head: Head, receive: Receive, most: int) -> bytes:
        """The body, if it is not too large and comes in time.

        Raises:
            Refusal: 413, 415 where it is compressed, or 408.
            ClientDisconnect: it does not come at all.
        """
        if head.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "unsupported_media_type", "Content-Encoding: bodies must not be compressed")
        said = head.get("content-length", "0")
        if said.isdigit() and int(said) > most:
            raise _too_large(most)
        try:
            async with asyncio.timeout(self._seconds):
                return await _collected(receive, most)
        except TimeoutError:
            raise Refusal(
                408, "timeout", f"the body did not come within {self._seconds:g} s", headers={"Connection": "close"}
            ) from None


async def _collected(receive: Receive, most: int) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content += message.get("body", b"")
        if len(content) > most:
            raise _too_large(most)
        more = message.get("more_body", False)
    return bytes(content)


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"the body: at most {most:,} bytes are allowed", headers={"Connection": "close"})


def _given_key(authorization: str) -> str:
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
def _name(host: str) -> str:
    """A `Host` without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
