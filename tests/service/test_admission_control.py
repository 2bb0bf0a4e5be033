"""A queue that cannot grow, and a deadline."""

import asyncio
import threading
import time

import pytest

from vecall.errors import OverloadedError
from vecall.service.execution import BoundedThreadPool


def test_more_than_may_wait_are_turned_away_at_once():
    pool, hold = BoundedThreadPool(1, 2, 60_000, thread_name_prefix="test"), threading.Event()

    async def crowd():
        begun = [asyncio.ensure_future(pool.run(lambda _: hold.wait(10))) for _ in range(3)]
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        with pytest.raises(OverloadedError, match="3 requests"):
            await pool.run(lambda _: None)
        assert time.perf_counter() - began < 0.05
        hold.set()
        assert await asyncio.gather(*begun) == [True] * 3
        return await pool.run(lambda _: "again")

    assert asyncio.run(crowd()) == "again"
    assert pool.in_flight == 0


def test_who_waited_too_long_is_not_worked_on():
    pool, worked = BoundedThreadPool(1, 5, 50, thread_name_prefix="test"), []

    async def crowd():
        first = asyncio.ensure_future(pool.run(lambda _: time.sleep(0.2)))
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError, match="deadline"):
            await pool.run(lambda _: worked.append("late"))
        await first

    asyncio.run(crowd())
    assert not worked


def test_a_turn_ends_at_its_deadline():
    pool = BoundedThreadPool(1, 5, 50, thread_name_prefix="test")

    def slow(turn):
        turn.raise_if_expired()
        time.sleep(0.1)
        turn.raise_if_expired()

    with pytest.raises(OverloadedError, match="deadline"):
        asyncio.run(pool.run(slow))
    assert pool.in_flight == 0
