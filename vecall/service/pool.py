"""The bounded pool in which requests are worked on: a queue that cannot grow, and a deadline."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from vecall.errors import Overloaded
from vecall.service.threads import give_way, one_core_each

Answer = TypeVar("Answer")


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
            raise Overloaded("the deadline passed before there was an answer: the service is too busy; try again")


class Pool:
    """Threads that work side by side, and a queue before them.

    Args:
        threads: that work.
        queue: requests that wait beside those that are worked on.
        deadline_ms: from arrival to answer.
        name: of the threads, for those who look from outside.
        can_wait: whether they give way to others.
    """

    def __init__(self, threads: int, queue: int, deadline_ms: float, *, name: str, can_wait: bool = False) -> None:
        self._most, self._seconds = threads + queue, deadline_ms / 1e3
        set_up = give_way if can_wait else one_core_each
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=set_up)
        self.inside = 0  # only the event loop's thread counts

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
        turn = Turn(arrived + self._seconds, (time.perf_counter() - arrived) * 1e3)
        turn.check()
        return work(turn)

    def close(self) -> None:
        """Wait for what is worked on."""
        self._executor.shutdown(cancel_futures=True)
