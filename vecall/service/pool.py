"""Threads in which requests are worked on that machines do not wait for: a queue that cannot grow, and a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from vecall.errors import OverloadedError
from vecall.service.threads import limit_faiss_to_one_thread

ResultT = TypeVar("ResultT")

_DEADLINE_EXCEEDED = "the deadline passed before there was an answer: the service is too busy; try again"


@dataclass(frozen=True)
class RequestDeadline:
    """A request's time in a queue, and what is left to it.

    Attributes:
        expires_at: when it is too late for an answer, on the clock of `time.perf_counter`.
        queue_ms: how long it has waited.
    """

    expires_at: float
    queue_ms: float

    @classmethod
    def start(cls, arrived_at: float, timeout_seconds: float) -> Self:
        """What begins now, and has to be answered so long after it arrived.

        Raises:
            Overloaded: it is too late.
        """
        turn = cls(arrived_at + timeout_seconds, (time.perf_counter() - arrived_at) * 1e3)
        turn.raise_if_expired()
        return turn

    def raise_if_expired(self) -> None:
        """Go on only while someone waits for the answer.

        Raises:
            Overloaded: it is too late.
        """
        if time.perf_counter() > self.expires_at:
            raise OverloadedError(_DEADLINE_EXCEEDED)


class AdmissionControl:
    """So many requests inside at the most, some of which are worked on in threads.

    Args:
        threads: that work.
        max_in_flight: requests inside, worked on or waiting; one more is turned away.
        deadline_ms: from arrival to answer.
        thread_name_prefix: of the threads, for those who look from outside.

    Attributes:
        in_flight: requests that are.
    """

    def __init__(self, threads: int, max_in_flight: int, deadline_ms: float, *, thread_name_prefix: str) -> None:
        self._max_in_flight, self._timeout_seconds = max_in_flight, deadline_ms / 1e3
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix=thread_name_prefix, initializer=limit_faiss_to_one_thread
        )
        self.in_flight = 0

    def close(self) -> None:
        """Wait for what is worked on."""
        self._executor.shutdown(cancel_futures=True)

    @contextmanager
    def _admit(self) -> Iterator[float]:
        """A request inside; gives when it arrived.

        Raises:
            Overloaded: too many are.
        """
        if self.in_flight >= self._max_in_flight:
            raise OverloadedError(f"{self.in_flight} requests are worked on or wait already: try again")
        self.in_flight += 1
        try:
            yield time.perf_counter()
        finally:
            self.in_flight -= 1


class BoundedThreadPool(AdmissionControl):
    """Threads that work side by side, and a queue before them.

    Args:
        threads: that work.
        max_queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        thread_name_prefix: of the threads, for those who look from outside.
    """

    def __init__(self, threads: int, max_queue: int, deadline_ms: float, *, thread_name_prefix: str) -> None:
        super().__init__(threads, threads + max_queue, deadline_ms, thread_name_prefix=thread_name_prefix)
        # Who waits does so here and not in a thread, where nobody would tell it that its deadline has passed.
        self._slots = asyncio.Semaphore(threads)

    async def run(self, work: Callable[[RequestDeadline], ResultT]) -> ResultT:
        """Do `work` in a thread, when one is free.

        Raises:
            Overloaded: too many wait already, or the deadline passed while this one did.
        """
        with self._admit() as arrived:
            await self._acquire_slot()
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, self._run_with_deadline, work, arrived)
            finally:
                self._slots.release()

    async def _acquire_slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise OverloadedError(_DEADLINE_EXCEEDED) from None

    def _run_with_deadline(self, work: Callable[[RequestDeadline], ResultT], arrived_at: float) -> ResultT:
        return work(RequestDeadline.start(arrived_at, self._timeout_seconds))
