"""What every request passes on its way in and out: its name, its host, its time, and what is told of it."""

import logging
import re
import time
from secrets import token_hex
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vecall.errors import VecallError
from vecall.service.guard import Guard, Head
from vecall.service.recall_service import Serving
from vecall.service.recalls import Recalls
from vecall.service.responses import Refusal, refusal_of
from vecall.service.ui.error_page import error_response

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = ("/healthz", "/readyz")  # asked by address, not by name
_ALWAYS = (  # as they are sent
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"cache-control", b"no-store"),
)


class Door:
    """ASGI around the application.

    Args:
        app: the application.
        recalls: answers recalls in its place.
        serving: is told of each request.
        guard: checks hosts.
    """

    def __init__(self, app: ASGIApp, recalls: Recalls, serving: Serving, guard: Guard) -> None:
        self._app, self._recalls, self._serving, self._guard = app, recalls, serving, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, head = time.perf_counter(), _head(scope)
        asked = head.get("x-request-id", "")
        request = asked if _REQUEST_ID.fullmatch(asked) else token_hex(8)
        status = 0

        async def passing(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_ALWAYS, (b"x-request-id", request.encode())]
            await send(message)

        try:
            await (await self._answering(scope, head, receive))(scope, receive, passing)
        except ClientDisconnect:
            status = 499  # nobody is there to be answered
        except Exception:
            logger.exception("a mistake of ours", extra={"request": request})
            if status == 0:
                internal = Refusal(500, "internal", f"a mistake of ours; it is in the log as request {request}")
                await error_response(internal, scope)(scope, receive, passing)
        self._tell(scope, request, status, time.perf_counter() - began)

    async def _answering(self, scope: Scope, head: Head, receive: Receive) -> ASGIApp:
        """What sends the answer."""
        try:
            self._guard.check_size(scope["headers"])
            if scope["path"] not in _PROBES:
                self._guard.check_host(head)
            if scope["path"] != self._recalls.path or scope["method"] != "POST":
                return self._app
            scope["route"] = self._recalls  # as a router says which one it took
            return await self._recalls.answer(head, receive)
        except VecallError as error:
            return error_response(refusal_of(error), scope)

    def _tell(self, scope: Scope, request: str, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", "other")  # the route's own, or clients would make up labels
        self._serving.telemetry.ended(endpoint, status, seconds)
        state: dict[str, Any] = scope.get("state", {})
        if code := state.get("error_code"):
            self._serving.telemetry.failed(code)
        if self._serving.settings.log_requests or status >= 500:
            told = {"request": request, "method": scope["method"], "endpoint": endpoint, "status": status}
            told |= {"ms": round(seconds * 1e3, 3), "release": self._serving.view.release.name}
            logger.info("request", extra=told | ({"code": code} if code else {}))


def _head(scope: Scope) -> Head:
    """Of equal names the first one counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
