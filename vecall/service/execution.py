"""Execution of requests in the event loop's thread or in threads beside it, with bounded queues and deadlines.

Most of a recall holds the interpreter lock (GIL), so recall threads beside the event loop would mostly wait for each
other. Recalls therefore run in the event loop, one per iteration, so that new requests are read, counted and rejected
between two of them; long scans run in threads (docs/decisions/0011).

No thread gets a lower priority: a thread that is descheduled while it holds the GIL stops all others. Background work
sleeps between short pieces instead.
"""

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import faiss

from vecall.errors import OverloadedError

ResultT = TypeVar("ResultT")

logger = logging.getLogger(__name__)

_DEADLINE_EXCEEDED = "the deadline passed before the request was answered: the service is overloaded; try again"
_SWITCH_INTERVAL_SECONDS = 0.0005


@dataclass(frozen=True)
class RequestDeadline:
    """Time limit of one request.

    Attributes:
        expires_at: on the clock of `time.perf_counter`.
        queue_ms: how long the request waited before work on it started.
    """

    expires_at: float
    queue_ms: float

    @classmethod
    def start(cls, arrived_at: float, timeout_seconds: float) -> Self:
        """The deadline of a request whose work starts now.

        Raises:
            OverloadedError: it has passed already.
        """
        deadline = cls(arrived_at + timeout_seconds, (time.perf_counter() - arrived_at) * 1e3)
        deadline.raise_if_expired()
        return deadline

    def raise_if_expired(self) -> None:
        """Stop working for a client that no longer waits.

        Raises:
            OverloadedError: the deadline has passed.
        """
        if time.perf_counter() > self.expires_at:
            raise OverloadedError(_DEADLINE_EXCEEDED)


class AdmissionControl:
    """Bounded number of requests in flight, and the threads that work on them.

    Args:
        threads: number of threads.
        max_in_flight: requests running or queued; further ones are rejected.
        deadline_ms: from arrival to answer.
        thread_name_prefix: names the threads in tools such as py-spy.

    Attributes:
        in_flight: requests running or queued now.
    """

    def __init__(self, threads: int, max_in_flight: int, deadline_ms: float, *, thread_name_prefix: str) -> None:
        self._max_in_flight, self._timeout_seconds = max_in_flight, deadline_ms / 1e3
        self._executor = ThreadPoolExecutor(
            threads, thread_name_prefix=thread_name_prefix, initializer=limit_faiss_to_single_thread
        )
        self.in_flight = 0

    def close(self) -> None:
        """Wait for running requests; cancel queued ones."""
        self._executor.shutdown(cancel_futures=True)

    @contextmanager
    def _admit(self) -> Iterator[float]:
        """Count a request while it is in flight; yields its arrival time.

        Raises:
            OverloadedError: the limit is reached.
        """
        if self.in_flight >= self._max_in_flight:
            raise OverloadedError(f"{self.in_flight} requests are running or queued: try again")
        self.in_flight += 1
        try:
            yield time.perf_counter()
        finally:
            self.in_flight -= 1


class BoundedThreadPool(AdmissionControl):
    """Thread pool with a bounded queue and a deadline.

    Args:
        threads: number of threads.
        max_queue: requests that may wait for a thread.
        deadline_ms: from arrival to answer.
        thread_name_prefix: names the threads.
    """

    def __init__(self, threads: int, max_queue: int, deadline_ms: float, *, thread_name_prefix: str) -> None:
        super().__init__(threads, threads + max_queue, deadline_ms, thread_name_prefix=thread_name_prefix)
        # Waiting happens here rather than in the executor's queue, where a deadline could not interrupt it.
        self._slots = asyncio.Semaphore(threads)

    async def run(self, work: Callable[[RequestDeadline], ResultT]) -> ResultT:
        """Run `work` in the next free thread.

        Raises:
            OverloadedError: the queue is full, or the deadline passed in it.
        """
        with self._admit() as arrived_at:
            await self._acquire_slot(self._timeout_seconds)
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, self._run_with_deadline, work, arrived_at)
            finally:
                self._slots.release()

    async def _acquire_slot(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise OverloadedError(_DEADLINE_EXCEEDED) from None

    def _run_with_deadline(self, work: Callable[[RequestDeadline], ResultT], arrived_at: float) -> ResultT:
        return work(RequestDeadline.start(arrived_at, self._timeout_seconds))


class _OffloadRequiredError(BaseException):
    """Control flow: the work would block the event loop and must be restarted in a thread.

    No `Exception`: where a channel fails with one, the others answer.
    """


class EventLoopExecutor(AdmissionControl):
    """Runs work in the event loop's thread, one request per loop iteration, first come first served.

    Args:
        max_queue: requests that may wait.
        deadline_ms: from arrival to answer.
        offload_threads: number of threads for work that would block the loop.
        thread_name_prefix: names these threads.
    """

    def __init__(self, max_queue: int, deadline_ms: float, *, offload_threads: int, thread_name_prefix: str) -> None:
        max_in_flight = 1 + offload_threads + max_queue
        super().__init__(offload_threads, max_in_flight, deadline_ms, thread_name_prefix=thread_name_prefix)
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._is_slot_busy = False  # of the current loop iteration
        self._inline_thread_id: int | None = None  # set while work runs in the loop's thread

    async def run(self, work: Callable[[RequestDeadline], ResultT]) -> ResultT:
        """Run `work` after the requests that came before; restart it in a thread if it enters `offload`.

        Raises:
            OverloadedError: the queue is full, or the deadline passed.
        """
        loop = asyncio.get_running_loop()
        with self._admit() as arrived_at:
            await self._wait_for_slot(loop)
            deadline = RequestDeadline.start(arrived_at, self._timeout_seconds)
            try:
                return self._run_inline(work, deadline)
            except _OffloadRequiredError:
                return await loop.run_in_executor(self._executor, work, deadline)

    @contextmanager
    def offload(self) -> Iterator[None]:
        """Enter this before work that takes too long for the event loop.

        In the loop's thread it raises, and `run` restarts the whole work in another thread.
        """
        if self._inline_thread_id == threading.get_ident():
            raise _OffloadRequiredError
        yield

    async def _wait_for_slot(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_slot_busy:
            waiter = loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_next()  # the slot was granted, and will not be used
                raise
        self._is_slot_busy = True
        loop.call_soon(self._wake_next)

    def _wake_next(self) -> None:
        """Let the next waiter run in the next loop iteration, after new requests were read from the sockets."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # else its client has disconnected
                waiter.set_result(None)
                return
        self._is_slot_busy = False

    def _run_inline(self, work: Callable[[RequestDeadline], ResultT], deadline: RequestDeadline) -> ResultT:
        self._inline_thread_id = threading.get_ident()
        try:
            return work(deadline)
        finally:
            self._inline_thread_id = None


def limit_faiss_to_single_thread() -> None:
    """Limit faiss to one core in the calling thread alone: the other cores serve other requests."""
    faiss.omp_set_num_threads(1)


def reduce_gil_switch_interval() -> None:
    """Switch between Python threads after 0.5 ms instead of 5 ms: a recall waits for the GIL about ten times."""
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)


def start_daemon_thread(name: str, work: Callable[[], None]) -> None:
    """Run background work in a daemon thread; an exception in it is logged."""
    threading.Thread(target=_run_logging_errors, args=(name, work), name=name, daemon=True).start()


def _run_logging_errors(name: str, work: Callable[[], None]) -> None:
    limit_faiss_to_single_thread()
    try:
        work()
    except Exception:
        logger.exception("thread %s stopped: internal error", name)
