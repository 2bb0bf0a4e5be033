"""Threads that wait for a server: who gets there, how many, and that clients do not wait longer than their deadline."""

import asyncio
import threading
import time

import pytest

from vecall.errors import EngineUnavailableError, OverloadedError
from vecall.service.execution import BoundedThreadPool, EventLoopExecutor
from vecall.service.remote_search_pool import RemoteSearchPool, enter_remote_search


@pytest.fixture
def make_pool():
    """Factory of pools, which are closed after the test."""
    pools = []

    def make(threads=2, max_queue=8, deadline_ms=10_000):
        pools.append(RemoteSearchPool(threads, max_queue, deadline_ms, thread_name_prefix="test-remote"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(params=["event loop", "threads"])
def run_locally(request):
    if request.param == "event loop":
        executor = EventLoopExecutor(64, 10_000, offload_threads=1, thread_name_prefix="test-local")
    else:
        executor = BoundedThreadPool(2, 64, 10_000, thread_name_prefix="test-local")
    yield executor.run
    executor.close()


def name_thread(_):
    return threading.current_thread().name


def name_waiting_thread(deadline):
    enter_remote_search()
    return name_thread(deadline)


def test_only_work_that_may_wait_goes_to_the_pool(make_pool, run_locally):
    pool = make_pool()

    async def send_requests():
        return [
            await pool.run_local_first(run_locally, work) for work in (name_thread, name_waiting_thread, name_thread)
        ]

    names = asyncio.run(send_requests())
    assert [name.startswith("test-remote") for name in names] == [False, True, False]
    assert pool.in_flight == 0
    enter_remote_search()  # other threads may wait


def test_errors_of_the_work_are_passed_on(make_pool, run_locally):
    def fail(_):
        enter_remote_search()
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        asyncio.run(make_pool().run_local_first(run_locally, fail))


def test_client_is_answered_at_its_deadline_while_the_thread_waits_on(make_pool, run_locally):
    pool, released, ended = make_pool(threads=1, deadline_ms=250), threading.Event(), threading.Event()

    def wait(_):
        enter_remote_search()
        released.wait(10)
        ended.set()

    async def send_requests():
        start = time.perf_counter()
        with pytest.raises(EngineUnavailableError, match="deadline"):
            await pool.run_local_first(run_locally, wait)
        with pytest.raises(OverloadedError, match="deadline"):  # the thread is still occupied
            await pool.run_local_first(run_locally, wait)
        assert time.perf_counter() - start < 5
        released.set()
        while not ended.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return await pool.run_local_first(run_locally, name_waiting_thread)

    assert asyncio.run(send_requests()).startswith("test-remote")


def test_deadline_counts_from_the_arrival(make_pool):
    pool, executor = make_pool(deadline_ms=50), BoundedThreadPool(1, 8, 10_000, thread_name_prefix="test-local")

    def wait_first(_):
        time.sleep(0.08)
        enter_remote_search()

    with pytest.raises(OverloadedError, match="deadline"):
        asyncio.run(pool.run_local_first(executor.run, wait_first))
    executor.close()


def test_requests_beyond_the_queue_are_rejected_and_the_loop_is_free(make_pool, run_locally):
    pool, released = make_pool(threads=16, max_queue=4), threading.Event()

    def wait(_):
        enter_remote_search()
        return released.wait(10)

    async def send_requests():
        waiting = [asyncio.ensure_future(pool.run_local_first(run_locally, wait)) for _ in range(20)]
        while pool.in_flight < 20:
            await asyncio.sleep(0.001)
        with pytest.raises(OverloadedError, match="20 requests"):
            await pool.run_local_first(run_locally, wait)
        start = time.perf_counter()
        await pool.run_local_first(run_locally, name_thread)  # local work goes on
        assert time.perf_counter() - start < 2
        released.set()
        assert await asyncio.gather(*waiting) == [True] * 20

    asyncio.run(send_requests())
    assert pool.in_flight == 0


def test_thread_of_a_client_that_has_gone_gets_free(make_pool, run_locally):
    pool, released = make_pool(threads=1), threading.Event()

    def wait(_):
        enter_remote_search()
        released.wait(10)

    async def send_requests():
        first = asyncio.ensure_future(pool.run_local_first(run_locally, wait))
        while not pool.in_flight:
            await asyncio.sleep(0.001)
        first.cancel()
        released.set()
        return await pool.run_local_first(run_locally, name_waiting_thread)

    assert asyncio.run(send_requests()).startswith("test-remote")
