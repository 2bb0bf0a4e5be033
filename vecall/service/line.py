"""Where recalls are worked on: in the event loop's own thread, one in each of its turns; what takes long in others.

Most of a recall holds Python's lock, so threads beside the loop would mostly wait for each other (decision 0011). What
has come is counted and looked at between two recalls, so that a queue cannot grow and a deadline holds.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vecall.service.pool import Bounded, Turn

Answer = TypeVar("Answer")


class _TakesLong(Exception):  # noqa: N818 - it is no mistake
    """What was begun in the loop's thread would hold it up."""


class Line(Bounded):
    """Requests in the order in which they came.

    Args:
        queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        aside: threads for what takes long.
        name: of these threads, for those who look from outside.
    """

    def __init__(self, queue: int, deadline_ms: float, *, aside: int, name: str) -> None:
        super().__init__(aside, 1 + aside + queue, deadline_ms, name=name)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False  # this turn of the loop
        self._works_here: int | None = None  # the loop's thread, while it works on a request

    async def run(self, work: Callable[[Turn], Answer]) -> Answer:
        """Do `work` when those who came before are done.

        It is begun again, in a thread, if it comes to `aside`.

        Raises:
            Overloaded: too many wait already, or the deadline passed.
        """
        loop = asyncio.get_running_loop()
        with self._counted() as arrived:
            await self._stand_in_line(loop)
            turn = Turn.begun(arrived, self._seconds)
            try:
                return self._work_here(work, turn)
            except _TakesLong:
                return await loop.run_in_executor(self._executor, work, turn)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do what takes long: not in the loop's thread."""
        if self._works_here == threading.get_ident():
            raise _TakesLong
        yield

    async def _stand_in_line(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._taken:
            place = loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._next()  # the place was given, and is not taken
                raise
        self._taken = True
        loop.call_soon(self._next)

    def _next(self) -> None:
        """In the loop's next turn, when what has come meanwhile was read."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else who waited has gone
                place.set_result(None)
                return
        self._taken = False

    def _work_here(self, work: Callable[[Turn], Answer], turn: Turn) -> Answer:
        self._works_here = threading.get_ident()
        try:
            return work(turn)
        finally:
            self._works_here = None
