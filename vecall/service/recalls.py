"""Recalls over HTTP. The door asks this directly: a framework's way to it takes a tenth of the time (decision 0011)."""

from starlette.responses import Response
from starlette.types import Receive

from vecall.service.guard import Guard, Head
from vecall.service.pool import Turn
from vecall.service.recall_service import Serving
from vecall.service.responses import RETRY, Refusal, answer


class Recalls:
    """Answers `POST /v1/recall`.

    Args:
        serving: knows the answers.
        guard: checks keys and bodies.

    Attributes:
        path: where it is asked.
    """

    path = "/v1/recall"

    def __init__(self, serving: Serving, guard: Guard) -> None:
        self._serving, self._guard = serving, guard

    async def answer(self, head: Head, receive: Receive) -> Response:
        """One request's answer.

        Raises:
            VecallError: it gets none, see `answers.refusal_of`.
        """
        self._guard.check_key(head, "read")
        check_ready(self._serving)
        content = await self._guard.body(head, receive, self._serving.settings.limits.body)

        def work(turn: Turn) -> Response:
            return answer(self._serving.recall(content, turn).recalled.as_json())

        return await self._serving.line.run(work)


def check_ready(serving: Serving) -> None:
    """That recalls are answered.

    Raises:
        Refusal: 503.
    """
    if serving.not_ready is not None:
        raise Refusal(503, "not_ready", f"not ready: {serving.not_ready}", headers=RETRY)
