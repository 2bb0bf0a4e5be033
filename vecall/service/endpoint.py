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
        path: without parameters.
        handler: answers the request; raises `VecallError`.
        role: needed to call it; None: everybody may. Those of "admin" write, and are protected against CSRF.
        summary: one line of the OpenAPI document; None keeps the endpoint out of the document.
        tag: its group in the document.
        request_model: schema of the JSON body; None: there is no body.
        response_model: schema of the JSON answer; None: plain text.
        error_statuses: HTTP statuses of its errors.
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
        """Check the key, then answer."""
        endpoint = self._endpoint
        scope[ENDPOINT_SCOPE_KEY] = endpoint.path
        request = Request(scope, receive)
        if endpoint.role is not None:
            self._authenticator.require_role(request.headers, endpoint.role)
        if endpoint.role == "admin":
            check_csrf(request.headers)
        response = await endpoint.handler(request)
        await response(scope, receive, send)
