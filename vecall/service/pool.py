"""The bounded pool in which requests are worked on: a queue that cannot grow, and a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore, local
from typing import TypeVar

from vecall.errors import Overloaded
from vecall.service.threads import one_core_each

Answer = TypeVar("Answer")

_TOO_LATE = "the deadline passed before there was an answer: the service is too busy; try again"


@dataclass(frozen=True)
class Turn:
    """A request's time in the pool.

    Attributes:
        deadline: when it is too late for an answer, on the clock of `time.perf_counter`.
        queued_ms: how long it has waited for a thread.
    """

    deadline: float
    queued_ms: float

    def check(self) -> None:
        """Go on only while someone waits for the answer.

        Raises:
            Overloaded: it is too late.
        """
        if time.perf_counter() > self.deadline:
            raise Overloaded(_TOO_LATE)


class Pool:
    """Threads that work side by side, and a queue before them.

    Most of a request's work holds Python's lock, so that more threads than half the cores only wait for one another. A
    large scan does not: who does it steps aside, and lets another request have the thread's place meanwhile.

    Args:
        threads: that work.
        queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        name: of the threads, for those who look from outside.
        aside: threads that may have stepped aside.
    """

    def __init__(self, threads: int, queue: int, deadline_ms: float, *, name: str, aside: int = 0) -> None:
        self._most, self._seconds = threads + aside + queue, deadline_ms / 1e3
        self._executor = ThreadPoolExecutor(threads + aside, thread_name_prefix=name, initializer=one_core_each)
        self._places = BoundedSemaphore(threads)
        self._here = local()
        self.inside = 0  # only the event loop's thread counts

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let another request have the place of this thread, if it has one here."""
        if not getattr(self._here, "has_place", False):
            yield
            return
        self._places.release()
        try:
            yield
        finally:
            self._places.acquire()

    async def run(self, work: Callable[[Turn], Answer]) -> Answer:
        """Do `work` in a thread, when one is free.

        Raises:
            Overloaded: too many wait already, or the deadline passed while this one did.
        """
        if self.inside >= self._most:
            raise Overloaded(f"{self.inside} requests are worked on or wait already: try again")
        arrived = time.perf_counter()
        self.inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._begun, work, arrived)
        finally:
            self.inside -= 1

    def _begun(self, work: Callable[[Turn], Answer], arrived: float) -> Answer:
        deadline = arrived + self._seconds
        if not self._places.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            raise Overloaded(_TOO_LATE)
        self._here.has_place = True
        try:
            turn = Turn(deadline, (time.perf_counter() - arrived) * 1e3)
            turn.check()
            return work(turn)
        finally:
            self._here.has_place = False
            self._places.release()

    def close(self) -> None:
        """Wait for what is worked on."""
        self._executor.shutdown(cancel_futures=True)
