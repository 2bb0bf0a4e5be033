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

from vecall.service.pool import AdmissionControl, RequestDeadline

ResultT = TypeVar("ResultT")


class _OffloadRequiredError(Exception):
    """What was begun in the loop's thread would hold it up."""


class EventLoopExecutor(AdmissionControl):
    """Requests in the order in which they came.

    Args:
        max_queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        offload: threads for what takes long.
        thread_name_prefix: of these threads, for those who look from outside.
    """

    def __init__(self, max_queue: int, deadline_ms: float, *, offload_threads: int, thread_name_prefix: str) -> None:
        super().__init__(
            offload_threads, 1 + offload_threads + max_queue, deadline_ms, thread_name_prefix=thread_name_prefix
        )
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._is_slot_taken = False  # this turn of the loop
        self._inline_thread_id: int | None = None  # the loop's thread, while it works on a request

    async def run(self, work: Callable[[RequestDeadline], ResultT]) -> ResultT:
        """Do `work` when those who came before are done.

        It is begun again, in a thread, if it comes to `aside`.

        Raises:
            Overloaded: too many wait already, or the deadline passed.
        """
        loop = asyncio.get_running_loop()
        with self._admit() as arrived:
            await self._wait_for_slot(loop)
            turn = RequestDeadline.start(arrived, self._timeout_seconds)
            try:
                return self._run_inline(work, turn)
            except _OffloadRequiredError:
                return await loop.run_in_executor(self._executor, work, turn)

    @contextmanager
    def offload(self) -> Iterator[None]:
        """Do what takes long: not in the loop's thread."""
        if self._inline_thread_id == threading.get_ident():
            raise _OffloadRequiredError
        yield

    async def _wait_for_slot(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_slot_taken:
            place = loop.create_future()
            self._waiters.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake_next()  # the place was given, and is not taken
                raise
        self._is_slot_taken = True
        loop.call_soon(self._wake_next)

    def _wake_next(self) -> None:
        """In the loop's next turn, when what has come meanwhile was read."""
        while self._waiters:
            place = self._waiters.popleft()
            if not place.done():  # else who waited has gone
                place.set_result(None)
                return
        self._is_slot_taken = False

    def _run_inline(self, work: Callable[[RequestDeadline], ResultT], deadline: RequestDeadline) -> ResultT:
        self._inline_thread_id = threading.get_ident()
        try:
            return work(deadline)
        finally:
            self._inline_thread_id = None
