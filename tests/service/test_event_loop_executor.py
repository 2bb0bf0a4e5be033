"""Recalls one after another in the loop's thread: nobody is forgotten, what waits is counted, what is long moves."""

import asyncio
import threading
import time

import pytest

from vecall.errors import OverloadedError
from vecall.service.execution import EventLoopExecutor


def line(queue=50, deadline_ms=10_000, aside=1):
    return EventLoopExecutor(queue, deadline_ms, offload_threads=aside, thread_name_prefix="test")


def test_answers_come_in_the_order_of_the_questions_and_from_the_loops_thread():
    made, answered = line(), []

    async def crowd():
        await asyncio.gather(*(made.run(lambda _, number=number: answered.append(number)) for number in range(20)))
        return await made.run(lambda _: threading.get_ident())

    assert asyncio.run(crowd()) == threading.get_ident()
    assert answered == list(range(20))
    assert made.in_flight == 0


def test_between_two_recalls_the_loop_has_a_turn():
    made, order = line(), []

    async def crowd():
        asyncio.get_running_loop().call_soon(order.append, "the loop")
        await asyncio.gather(*(made.run(lambda _, number=number: order.append(number)) for number in range(3)))

    asyncio.run(crowd())
    assert order.index("the loop") < order.index(1)


def test_more_than_may_wait_are_turned_away_at_once():
    made = line(queue=2, aside=1)

    async def crowd():
        asked = [asyncio.ensure_future(made.run(lambda _: "done")) for _ in range(10)]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(crowd())
    turned_away = [one for one in answers if isinstance(one, OverloadedError)]
    assert answers.count("done") + len(turned_away) == 10
    assert turned_away
    assert "requests" in str(turned_away[0])
    assert made.in_flight == 0


def test_who_waited_too_long_is_not_worked_on():
    made, worked = line(deadline_ms=30), []

    def slow(_):
        time.sleep(0.02)
        worked.append(1)

    async def crowd():
        return await asyncio.gather(*(made.run(slow) for _ in range(6)), return_exceptions=True)

    answers = asyncio.run(crowd())
    late = [one for one in answers if isinstance(one, OverloadedError)]
    assert len(worked) + len(late) == 6
    assert len(late) >= 3
    assert "deadline" in str(late[0])


def test_a_turn_ends_at_its_deadline():
    made = line(deadline_ms=20)

    def slow(turn):
        time.sleep(0.05)
        turn.raise_if_expired()

    with pytest.raises(OverloadedError, match="deadline"):
        asyncio.run(made.run(slow))
    assert made.in_flight == 0


def test_what_takes_long_moves_to_a_thread_and_others_are_answered_meanwhile():
    made, scanned, where = line(), threading.Event(), []

    def scan(_):
        with made.offload():
            where.append(threading.get_ident())
            return scanned.wait(10)

    async def crowd():
        first = asyncio.ensure_future(made.run(scan))
        await asyncio.sleep(0.02)
        assert await made.run(lambda _: "meanwhile") == "meanwhile"
        scanned.set()
        return await first

    assert asyncio.run(crowd()) is True
    assert len(where) == 1
    assert where[0] != threading.get_ident()


def test_who_is_not_in_line_does_not_move():
    made = line()
    with made.offload():
        assert asyncio.run(made.run(lambda _: "worked")) == "worked"


@pytest.mark.parametrize("cancelled", [1, 2, 5])
def test_who_goes_away_leaves_the_place_to_the_next(cancelled):
    """Whether the place was given already or not."""
    made = line()

    async def crowd():
        asked = [asyncio.ensure_future(made.run(lambda _, number=number: number)) for number in range(6)]
        for _ in range(cancelled):
            await asyncio.sleep(0)
        for one in asked[1:4]:
            one.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        return answers, await asyncio.wait_for(made.run(lambda _: "again"), 5)

    answers, again = asyncio.run(crowd())
    assert again == "again"
    assert [answers[0], *answers[4:]] == [0, 4, 5]
    assert made.in_flight == 0


def test_a_mistake_ends_one_request_alone():
    made = line()

    def wrong(_):
        raise ZeroDivisionError

    async def crowd():
        return await asyncio.gather(made.run(wrong), made.run(lambda _: "worked"), return_exceptions=True)

    first, second = asyncio.run(crowd())
    assert isinstance(first, ZeroDivisionError)
    assert second == "worked"
    assert made.in_flight == 0
