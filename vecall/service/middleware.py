"""ASGI middleware around all endpoints: request ids, host check, security headers, errors, metrics and access log."""

import logging
import re
import time
from collections.abc import Iterable
from secrets import token_hex
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vecall.errors import VecallError
from vecall.service.endpoint import ENDPOINT_SCOPE_KEY
from vecall.service.host_names import bracket_ipv6, parse_hostname
from vecall.service.recall_service import RecallService
from vecall.service.responses import HttpError, to_http_error
from vecall.service.ui.error_page import render_error

logger = logging.getLogger(__name__)

_REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEALTH_PATHS = ("/healthz", "/readyz")  # load balancers call them by address, so their Host is not checked
_MAX_HEADER_BYTES = 2**16
_CODE_BY_STATUS = {404: "not_found", 405: "method_not_allowed"}
_CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that has gone
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"cache-control", b"no-store"),
)


class TrustedHosts:
    """Checks the `Host` header: a page in a browser could reach a loopback service under its own name (DNS rebinding).

    Args:
        allowed_hosts: names, in any case; a port is ignored. Empty: every name is allowed.
    """

    def __init__(self, allowed_hosts: Iterable[str]) -> None:
        self._allowed_hosts = tuple(parse_hostname(bracket_ipv6(host)) for host in allowed_hosts)

    def check_host(self, host: str) -> None:
        """Check the value of a `Host` header.

        Raises:
            HttpError: 403.
        """
        if self._allowed_hosts and parse_hostname(host) not in self._allowed_hosts:
            raise HttpError(
                403,
                "forbidden",
                f"Host: expected one of {', '.join(self._allowed_hosts)}; allow others by --allow-host",
                field="Host",
            )


class RequestMiddleware:
    """ASGI middleware around the application.

    Args:
        app: the application.
        service: counts requests; its settings say whether each is logged.
        trusted_hosts: checks `Host`.
    """

    def __init__(self, app: ASGIApp, service: RecallService, trusted_hosts: TrustedHosts) -> None:
        self._app, self._service, self._trusted_hosts = app, service, trusted_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; exceptions become error responses."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, headers = time.perf_counter(), Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID_PATTERN.fullmatch(request_id):
            request_id = token_hex(8)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_SECURITY_HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            try:
                await self._answer(scope, headers, receive, send_with_headers)
            except (VecallError, HTTPException) as error:
                await render_error(_to_http_error(error, scope), scope)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _CLIENT_CLOSED_REQUEST
        except Exception:
            logger.exception("internal error", extra={"request_id": request_id})
            if status == 0:
                internal = HttpError(500, "internal", f"internal error; the log has it as request {request_id}")
                await render_error(internal, scope)(scope, receive, send_with_headers)
        self._record_request(scope, request_id, status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        check_header_size(scope["headers"])
        if scope["path"] not in _HEALTH_PATHS:
            self._trusted_hosts.check_host(headers.get("host", ""))
        scope["app"] = self  # lets Starlette's router raise HTTPException instead of answering in plain text
        await self._app(scope, receive, send)

    def _record_request(self, scope: Scope, request_id: str, status: int, duration_seconds: float) -> None:
        endpoint = scope.get(ENDPOINT_SCOPE_KEY, "other")  # the route's path: the client's own would be unbounded
        metrics = self._service.service_metrics
        metrics.observe_request(endpoint, status, duration_seconds)
        state: dict[str, Any] = scope.get("state", {})
        if error_code := state.get("error_code"):
            metrics.count_error(error_code)
        if self._service.settings.log_requests or status >= 500:
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "endpoint": endpoint,
                "status": status,
                "duration_ms": round(duration_seconds * 1e3, 3),
                "release": self._service.snapshot.release.name,
            }
            logger.info("request", extra=fields | ({"error_code": error_code} if error_code else {}))


def check_header_size(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check the size of all request headers together.

    Raises:
        HttpError: 431.
    """
    if sum(len(name) + len(value) for name, value in headers) > _MAX_HEADER_BYTES:
        raise HttpError(431, "too_large", f"the headers: at most {_MAX_HEADER_BYTES:,} bytes are allowed")


def _to_http_error(error: VecallError | HTTPException, scope: Scope) -> HttpError:
    if isinstance(error, VecallError):
        return to_http_error(error)
    text = f"{scope['method']} {scope['path']:.100}: {error.detail}; see /docs"
    code = _CODE_BY_STATUS.get(error.status_code, "invalid")
    return HttpError(error.status_code, code, text, headers=error.headers)
