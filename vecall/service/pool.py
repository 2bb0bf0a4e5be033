"""The bounded pool in which requests are worked on: a queue that cannot grow, and a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
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
        # Who waits does so here and not in a thread, which would wake up only to wait again.
        self._places = asyncio.Semaphore(threads)
        self._here = local()
        self.inside = 0

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
            await self._take_place()
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, self._begun, work, arrived, loop)
            finally:
                self._places.release()
        finally:
            self.inside -= 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let another request have the place of this thread, if it has one here."""
        loop: asyncio.AbstractEventLoop | None = getattr(self._here, "loop", None)
        if loop is None:
            yield
            return
        loop.call_soon_threadsafe(self._places.release)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._places.acquire(), loop).result()

    def close(self) -> None:
        """Wait for what is worked on."""
        self._executor.shutdown(cancel_futures=True)

    async def _take_place(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(_TOO_LATE) from None

    def _begun(self, work: Callable[[Turn], Answer], arrived: float, loop: asyncio.AbstractEventLoop) -> Answer:
        turn = Turn(arrived + self._seconds, (time.perf_counter() - arrived) * 1e3)
        turn.check()
        self._here.loop = loop
        try:
            return work(turn)
        finally:
            self._here.loop = None
