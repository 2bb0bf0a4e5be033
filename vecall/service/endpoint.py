"""One operation of the HTTP API, as data: its route, who may call it, and what the OpenAPI document says of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vecall.service.auth import Authenticator, Role, check_csrf

ENDPOINT_SCOPE_KEY = "vecall.endpoint"  # path of the endpoint that answers, for metrics and logs

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """An operation of the HTTP API.

    Attributes:
        method: HTTP method.
        path: URL path; it contains no parameters.
        handler: answers the request; raises `VecallError`.
        role: role that a caller must have; None: no key is needed. Endpoints of "admin" write, so they are protected
            against CSRF too.
        summary: one line of the OpenAPI document; None keeps the endpoint out of the document.
        tag: its group in the document.
        request_model: documents the JSON body, which the handler parses itself; None: there is no body.
        response_model: documents the JSON answer and validates nothing; None: plain text.
        error_statuses: error statuses that the document lists; the handler may raise others.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    role: Role | None = None
    summary: str | None = None
    tag: str = ""
    request_model: type[BaseModel] | None = None
    response_model: type[BaseModel] | None = None
    error_statuses: tuple[int, ...] = ()

    def to_route(self, authenticator: Authenticator) -> Route:
        """The route that a Starlette router needs."""
        return Route(self.path, _EndpointApp(self, authenticator), methods=[self.method])


class _EndpointApp:
    """ASGI application of an endpoint; Starlette calls it directly, without the wrappers of a function endpoint."""

    def __init__(self, endpoint: Endpoint, authenticator: Authenticator) -> None:
        self._endpoint, self._authenticator = endpoint, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, the role and, for admin endpoints, CSRF; then call the handler."""
        endpoint = self._endpoint
        scope[ENDPOINT_SCOPE_KEY] = endpoint.path
        request = Request(scope, receive)
        if endpoint.role is not None:
            self._authenticator.require_role(request.headers, endpoint.role)
        if endpoint.role == "admin":
            check_csrf(request.headers)
        response = await endpoint.handler(request)
        await response(scope, receive, send)
