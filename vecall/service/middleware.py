"""What every request passes on its way in and out: its name, its host, its time, and what is told of it."""

import logging
import re
import time
from secrets import token_hex
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vecall.errors import VecallError
from vecall.service.guard import Authenticator, Headers
from vecall.service.recall_service import RecallService
from vecall.service.recalls import RecallEndpoint
from vecall.service.responses import HttpError, to_http_error
from vecall.service.ui.error_page import render_error

logger = logging.getLogger(__name__)

_REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEALTH_PATHS = ("/healthz", "/readyz")  # asked by address, not by name
_SECURITY_HEADERS = (  # as they are sent
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"cache-control", b"no-store"),
)


class RequestMiddleware:
    """ASGI around the application.

    Args:
        app: the application.
        recall_endpoint: answers recalls in its place.
        service: is told of each request.
        trusted_hosts: checks hosts.
    """

    def __init__(
        self, app: ASGIApp, recall_endpoint: RecallEndpoint, service: RecallService, trusted_hosts: Authenticator
    ) -> None:
        self._app, self._recall_endpoint, self._service, self._trusted_hosts = (
            app,
            recall_endpoint,
            service,
            trusted_hosts,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, head = time.perf_counter(), _parse_headers(scope)
        asked = head.get("x-request-id", "")
        request = asked if _REQUEST_ID_PATTERN.fullmatch(asked) else token_hex(8)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY_HEADERS, (b"x-request-id", request.encode())]
            await send(message)

        try:
            await (await self._dispatch(scope, head, receive))(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = 499  # nobody is there to be answered
        except Exception:
            logger.exception("a mistake of ours", extra={"request": request})
            if status == 0:
                internal = HttpError(500, "internal", f"a mistake of ours; it is in the log as request {request}")
                await render_error(internal, scope)(scope, receive, send_with_headers)
        self._record_request(scope, request, status, time.perf_counter() - began)

    async def _dispatch(self, scope: Scope, headers: Headers, receive: Receive) -> ASGIApp:
        """What sends the answer."""
        try:
            self._trusted_hosts.check_header_size(scope["headers"])
            if scope["path"] not in _HEALTH_PATHS:
                self._trusted_hosts.check_host(headers)
            if scope["path"] != self._recall_endpoint.path or scope["method"] != "POST":
                return self._app
            scope["route"] = self._recall_endpoint  # as a router says which one it took
            return await self._recall_endpoint.handle(headers, receive)
        except VecallError as error:
            return render_error(to_http_error(error), scope)

    def _record_request(self, scope: Scope, request_id: str, status: int, duration_seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", "other")  # the route's own, or clients would make up labels
        self._service.service_metrics.observe_request(endpoint, status, duration_seconds)
        state: dict[str, Any] = scope.get("state", {})
        if code := state.get("error_code"):
            self._service.service_metrics.count_error(code)
        if self._service.settings.log_requests or status >= 500:
            told = {"request": request_id, "method": scope["method"], "endpoint": endpoint, "status": status}
            told |= {"ms": round(duration_seconds * 1e3, 3), "release": self._service.snapshot.release.name}
            logger.info("request", extra=told | ({"code": code} if code else {}))


def _parse_headers(scope: Scope) -> Headers:
    """Of equal names the first one counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
