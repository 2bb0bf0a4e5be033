"""The executor of recalls: one per loop iteration, in order; long work moves to a thread."""

import asyncio
import threading
import time

import pytest

from vecall.errors import OverloadedError
from vecall.service.execution import EventLoopExecutor


def make_executor(max_queue=50, deadline_ms=10_000):
    return EventLoopExecutor(max_queue, deadline_ms, offload_threads=1, thread_name_prefix="test")


def test_requests_run_in_order_of_arrival_in_the_thread_of_the_loop():
    executor, executed = make_executor(), []

    async def send_requests():
        await asyncio.gather(*(executor.run(lambda _, number=number: executed.append(number)) for number in range(20)))
        return await executor.run(lambda _: threading.get_ident())

    assert asyncio.run(send_requests()) == threading.get_ident()
    assert executed == list(range(20))
    assert executor.in_flight == 0


def test_loop_callbacks_run_between_two_requests():
    executor, executed = make_executor(), []

    async def send_requests():
        asyncio.get_running_loop().call_soon(executed.append, "callback")
        await asyncio.gather(*(executor.run(lambda _, number=number: executed.append(number)) for number in range(3)))

    asyncio.run(send_requests())
    assert executed.index("callback") < executed.index(1)


def test_requests_beyond_the_queue_are_rejected():
    executor = make_executor(max_queue=2)

    async def send_requests():
        requests = [asyncio.ensure_future(executor.run(lambda _: "done")) for _ in range(10)]
        return await asyncio.gather(*requests, return_exceptions=True)

    results = asyncio.run(send_requests())
    errors = [result for result in results if isinstance(result, OverloadedError)]
    assert results.count("done") + len(errors) == 10
    assert errors
    assert "requests" in str(errors[0])
    assert executor.in_flight == 0


def test_expired_requests_are_not_executed():
    executor, executed = make_executor(deadline_ms=30), []

    def slow(_):
        time.sleep(0.02)
        executed.append(1)

    async def send_requests():
        return await asyncio.gather(*(executor.run(slow) for _ in range(6)), return_exceptions=True)

    results = asyncio.run(send_requests())
    errors = [result for result in results if isinstance(result, OverloadedError)]
    assert len(executed) + len(errors) == 6
    assert len(errors) >= 3
    assert "deadline" in str(errors[0])


def test_running_request_stops_at_its_deadline():
    executor = make_executor(deadline_ms=20)

    def slow(deadline):
        time.sleep(0.05)
        deadline.raise_if_expired()

    with pytest.raises(OverloadedError, match="deadline"):
        asyncio.run(executor.run(slow))
    assert executor.in_flight == 0


def test_offloaded_work_runs_in_a_thread_while_others_are_answered():
    executor, finish_event, thread_ids = make_executor(), threading.Event(), []

    def scan(_):
        with executor.offload():
            thread_ids.append(threading.get_ident())
            return finish_event.wait(10)

    async def send_requests():
        first = asyncio.ensure_future(executor.run(scan))
        await asyncio.sleep(0.02)
        assert await executor.run(lambda _: "meanwhile") == "meanwhile"
        finish_event.set()
        return await first

    assert asyncio.run(send_requests()) is True
    assert len(thread_ids) == 1
    assert thread_ids[0] != threading.get_ident()


def test_offload_outside_the_executor_has_no_effect():
    executor = make_executor()
    with executor.offload():
        assert asyncio.run(executor.run(lambda _: "done")) == "done"


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_cancelled_request_passes_its_slot_on(iterations):
    """Whether or not the slot was granted already when the request was cancelled."""
    executor = make_executor()

    async def send_requests():
        requests = [asyncio.ensure_future(executor.run(lambda _, number=number: number)) for number in range(6)]
        for _ in range(iterations):
            await asyncio.sleep(0)
        for request in requests[1:4]:
            request.cancel()
        results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 5)
        return results, await asyncio.wait_for(executor.run(lambda _: "done"), 5)

    results, last_result = asyncio.run(send_requests())
    assert last_result == "done"
    assert [results[0], *results[4:]] == [0, 4, 5]
    assert executor.in_flight == 0


def test_exception_fails_its_own_request_only():
    executor = make_executor()

    def fail(_):
        raise ZeroDivisionError

    async def send_requests():
        return await asyncio.gather(executor.run(fail), executor.run(lambda _: "done"), return_exceptions=True)

    first, second = asyncio.run(send_requests())
    assert isinstance(first, ZeroDivisionError)
    assert second == "done"
    assert executor.in_flight == 0
