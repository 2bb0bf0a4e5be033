"""Threads that wait for the server of an engine, so that neither the event loop nor the threads of local work do."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vecall.errors import EngineUnavailableError
from vecall.service.execution import BoundedThreadPool, RequestDeadline

ResultT = TypeVar("ResultT")
Work = Callable[[RequestDeadline], ResultT]

_thread_state = threading.local()  # `is_local`: the thread's present work must not wait for a server


class RemoteSearchRequiredError(BaseException):
    """Control flow: the work would wait for a server and must be restarted in the pool of such work."""


def enter_remote_search() -> None:
    """Call this before work that may wait for a server.

    In a thread of local work it raises, and `RemoteSearchPool.run_local_first` restarts the whole work in a thread of
    the pool. Other threads, such as that of the pages, may wait.
    """
    if getattr(_thread_state, "is_local", False):
        raise RemoteSearchRequiredError


class RemoteSearchPool(BoundedThreadPool):
    """Thread pool with a bounded queue whose requests are answered at their deadline even if their thread still waits.

    A thread that waits longer keeps its slot, so a server that never answers occupies no more than these threads.
    """

    async def run_local_first(
        self, run_locally: Callable[[Work[ResultT]], Awaitable[ResultT]], work: Work[ResultT]
    ) -> ResultT:
        """Run work by a local executor, and restart it here if it calls `enter_remote_search`.

        Args:
            run_locally: method `run` of the local executor.
            work: the work.

        Raises:
            OverloadedError: a queue is full, or the deadline passed in it.
            EngineUnavailableError: the deadline passed during the work here.
        """
        arrived_at = time.perf_counter()

        def work_locally(deadline: RequestDeadline) -> ResultT:
            with _forbid_remote_search():
                return work(deadline)

        try:
            return await run_locally(work_locally)
        except RemoteSearchRequiredError:
            return await self._run_until_deadline(work, arrived_at)

    async def _run_until_deadline(self, work: Work[ResultT], arrived_at: float) -> ResultT:
        with self._admit():
            await self._acquire_slot(arrived_at + self._timeout_seconds - time.perf_counter())
            try:
                deadline = RequestDeadline.start(arrived_at, self._timeout_seconds)
                future = asyncio.get_running_loop().run_in_executor(self._executor, work, deadline)
            except BaseException:
                self._slots.release()
                raise
            future.add_done_callback(self._release_slot)
            done, _ = await asyncio.wait({future}, timeout=deadline.expires_at - time.perf_counter())
        if not done:
            raise EngineUnavailableError(
                "the server that holds the index has not answered before the deadline: try again"
            )
        return future.result()

    def _release_slot(self, future: asyncio.Future[ResultT]) -> None:
        self._slots.release()
        if not future.cancelled():
            future.exception()  # or asyncio would log that of a request whose deadline has passed as never retrieved


@contextmanager
def _forbid_remote_search() -> Iterator[None]:
    _thread_state.is_local = True
    try:
        yield
    finally:
        _thread_state.is_local = False
