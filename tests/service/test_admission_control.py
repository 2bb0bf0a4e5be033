"""Admission to the thread pool: a bounded queue, and deadlines."""

import asyncio
import threading
import time

import pytest

from vecall.errors import OverloadedError
from vecall.service.execution import BoundedThreadPool


def test_request_beyond_the_queue_is_rejected_at_once():
    pool, release_event = BoundedThreadPool(1, 2, 60_000, thread_name_prefix="test"), threading.Event()

    async def send_requests():
        admitted = [asyncio.ensure_future(pool.run(lambda _: release_event.wait(10))) for _ in range(3)]
        await asyncio.sleep(0.05)
        start = time.perf_counter()
        with pytest.raises(OverloadedError, match="3 requests"):
            await pool.run(lambda _: None)
        assert time.perf_counter() - start < 0.05
        release_event.set()
        assert await asyncio.gather(*admitted) == [True] * 3
        return await pool.run(lambda _: "admitted again")

    assert asyncio.run(send_requests()) == "admitted again"
    assert pool.in_flight == 0


def test_expired_request_is_not_executed():
    pool, executed, is_over = BoundedThreadPool(1, 5, 50, thread_name_prefix="test"), [], threading.Event()

    async def send_requests():
        first = asyncio.ensure_future(pool.run(lambda _: is_over.wait(20)))
        await asyncio.sleep(0.02)
        asyncio.get_running_loop().call_later(0.2, is_over.set)  # after the next request's 50 ms
        with pytest.raises(OverloadedError, match="deadline"):
            await pool.run(lambda _: executed.append("late"))
        await first

    asyncio.run(send_requests())
    assert not executed


def test_running_request_stops_at_its_deadline():
    pool = BoundedThreadPool(1, 5, 50, thread_name_prefix="test")

    def slow(deadline):
        deadline.raise_if_expired()
        time.sleep(0.1)
        deadline.raise_if_expired()

    with pytest.raises(OverloadedError, match="deadline"):
        asyncio.run(pool.run(slow))
    assert pool.in_flight == 0
