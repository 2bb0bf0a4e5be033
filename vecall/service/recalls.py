"""Recalls over HTTP. The door asks this directly: a framework's way to it takes a tenth of the time (decision 0011)."""

from starlette.responses import Response
from starlette.types import Receive

from vecall.service.guard import Authenticator, Headers
from vecall.service.pool import RequestDeadline
from vecall.service.recall_service import RecallService
from vecall.service.responses import RETRY_AFTER, HttpError, to_json_response


class RecallEndpoint:
    """Answers `POST /v1/recall`.

    Args:
        service: knows the answers.
        authenticator: checks keys and bodies.

    Attributes:
        path: where it is asked.
    """

    path = "/v1/recall"

    def __init__(self, service: RecallService, authenticator: Authenticator) -> None:
        self._service, self._authenticator = service, authenticator

    async def handle(self, headers: Headers, receive: Receive) -> Response:
        """One request's answer.

        Raises:
            VecallError: it gets none, see `answers.to_http_error`.
        """
        self._authenticator.require_role(headers, "read")
        require_ready(self._service)
        content = await self._authenticator.read_body(headers, receive, self._service.settings.limits.max_body_bytes)

        def run_recall(deadline: RequestDeadline) -> Response:
            return to_json_response(self._service.recall(content, deadline).answer.as_json())

        return await self._service.recall_executor.run(run_recall)


def require_ready(service: RecallService) -> None:
    """That recalls are answered.

    Raises:
        Refusal: 503.
    """
    if service.not_ready_reason is not None:
        raise HttpError(503, "not_ready", f"not ready: {service.not_ready_reason}", headers=RETRY_AFTER)
