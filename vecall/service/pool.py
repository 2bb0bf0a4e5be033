"""Threads in which requests are worked on that machines do not wait for: a queue that cannot grow, and a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from vecall.errors import Overloaded
from vecall.service.threads import one_core_each

Answer = TypeVar("Answer")

_TOO_LATE = "the deadline passed before there was an answer: the service is too busy; try again"


@dataclass(frozen=True)
class Turn:
    """A request's time in a queue, and what is left to it.

    Attributes:
        deadline: when it is too late for an answer, on the clock of `time.perf_counter`.
        queued_ms: how long it has waited.
    """

    deadline: float
    queued_ms: float

    @classmethod
    def begun(cls, arrived: float, seconds: float) -> Self:
        """What begins now, and has to be answered so long after it arrived.

        Raises:
            Overloaded: it is too late.
        """
        turn = cls(arrived + seconds, (time.perf_counter() - arrived) * 1e3)
        turn.check()
        return turn

    def check(self) -> None:
        """Go on only while someone waits for the answer.

        Raises:
            Overloaded: it is too late.
        """
        if time.perf_counter() > self.deadline:
            raise Overloaded(_TOO_LATE)


class Bounded:
    """So many requests inside at the most, some of which are worked on in threads.

    Args:
        threads: that work.
        most: requests inside, worked on or waiting; one more is turned away.
        deadline_ms: from arrival to answer.
        name: of the threads, for those who look from outside.

    Attributes:
        inside: requests that are.
    """

    def __init__(self, threads: int, most: int, deadline_ms: float, *, name: str) -> None:
        self._most, self._seconds = most, deadline_ms / 1e3
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=one_core_each)
        self.inside = 0

    def close(self) -> None:
        """Wait for what is worked on."""
        self._executor.shutdown(cancel_futures=True)

    @contextmanager
    def _counted(self) -> Iterator[float]:
        """A request inside; gives when it arrived.

        Raises:
            Overloaded: too many are.
        """
        if self.inside >= self._most:
            raise Overloaded(f"{self.inside} requests are worked on or wait already: try again")
        self.inside += 1
        try:
            yield time.perf_counter()
        finally:
            self.inside -= 1


class Pool(Bounded):
    """Threads that work side by side, and a queue before them.

    Args:
        threads: that work.
        queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        name: of the threads, for those who look from outside.
    """

    def __init__(self, threads: int, queue: int, deadline_ms: float, *, name: str) -> None:
        super().__init__(threads, threads + queue, deadline_ms, name=name)
        # Who waits does so here and not in a thread, where nobody would tell it that its deadline has passed.
        self._places = asyncio.Semaphore(threads)

    async def run(self, work: Callable[[Turn], Answer]) -> Answer:
        """Do `work` in a thread, when one is free.

        Raises:
            Overloaded: too many wait already, or the deadline passed while this one did.
        """
        with self._counted() as arrived:
            await self._take_place()
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, self._begun, work, arrived)
            finally:
                self._places.release()

    async def _take_place(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise Overloaded(_TOO_LATE) from None

    def _begun(self, work: Callable[[Turn], Answer], arrived: float) -> Answer:
        return work(Turn.begun(arrived, self._seconds))
