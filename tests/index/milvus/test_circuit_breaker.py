import threading

import pytest
from support.waiting import count_probe_threads, wait_until

from vecall.errors import EngineUnavailableError, QueryError, VecallError
from vecall.index.milvus.circuit_breaker import CircuitBreaker


class Engine:
    """An engine that can be down; counts what reaches it."""

    def __init__(self):
        self.is_down, self.calls, self.probes = False, 0, 0
        self.probe_error = EngineUnavailableError("still down")

    def call(self):
        self.calls += 1
        if self.is_down:
            raise EngineUnavailableError("connection refused")

    def probe(self):
        self.probes += 1
        if self.is_down:
            raise self.probe_error


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def breaker(engine):
    breaker = CircuitBreaker(engine.probe, first_delay_seconds=0.005, max_delay_seconds=0.02)
    yield breaker
    breaker.close()


def call(breaker, engine):
    with breaker.guard():
        engine.call()


def fail(breaker, engine, times):
    for _ in range(times):
        with pytest.raises(EngineUnavailableError):
            call(breaker, engine)


def test_calls_are_refused_after_three_failures_without_reaching_the_engine(engine, breaker):
    engine.is_down = True
    fail(breaker, engine, 3)
    with pytest.raises(EngineUnavailableError, match=r"not asked until it answers again.*(refused|still down)"):
        call(breaker, engine)
    assert engine.calls == 3


def test_failures_between_which_calls_succeed_open_nothing(engine, breaker):
    for _ in range(5):
        engine.is_down = True
        fail(breaker, engine, 2)
        engine.is_down = False
        call(breaker, engine)
    assert breaker.reason is None
    assert count_probe_threads() == 0


def test_callers_that_gave_up_early_do_not_count_as_failures(engine, breaker):
    engine.is_down = True
    for _ in range(5):
        with pytest.raises(EngineUnavailableError), breaker.guard(impatience=0.0):
            engine.call()
    assert breaker.reason is None
    for _ in range(3):  # but those that the engine refused at once do
        with pytest.raises(EngineUnavailableError), breaker.guard(impatience=60.0):
            engine.call()
    assert breaker.reason is not None


def test_other_errors_are_no_failures_of_the_engine(breaker):
    for _ in range(5):
        with pytest.raises(QueryError), breaker.guard():
            raise QueryError("k is 0")
    assert breaker.reason is None


def test_circuit_closes_by_itself_once_the_engine_answers_and_the_thread_ends(engine, breaker):
    engine.is_down = True
    fail(breaker, engine, 3)
    wait_until(lambda: engine.probes >= 3)
    assert count_probe_threads() == 1
    engine.is_down = False
    wait_until(lambda: breaker.reason is None)
    wait_until(lambda: count_probe_threads() == 0)
    call(breaker, engine)
    engine.is_down = True
    fail(breaker, engine, 2)  # counted anew
    assert breaker.reason is None


def test_circuit_opens_again_after_it_was_closed(engine, breaker):
    for _ in range(2):
        engine.is_down = True
        fail(breaker, engine, 3)
        engine.is_down = False
        wait_until(lambda: breaker.reason is None)


@pytest.mark.parametrize("error", [VecallError("wrong token"), RuntimeError("a bug")])
def test_any_error_of_the_probe_keeps_the_circuit_open_and_the_thread_alive(engine, breaker, error):
    engine.is_down, engine.probe_error = True, error
    fail(breaker, engine, 3)
    wait_until(lambda: engine.probes >= 3)
    assert breaker.reason is not None
    engine.is_down = False
    wait_until(lambda: breaker.reason is None)


def test_circuit_may_be_opened_from_the_start(engine, breaker):
    engine.is_down = True
    breaker.open(EngineUnavailableError("down at open"))
    with pytest.raises(EngineUnavailableError):
        call(breaker, engine)
    assert engine.calls == 0
    engine.is_down = False
    wait_until(lambda: breaker.reason is None)


def test_closing_joins_the_thread_and_starts_no_other(engine, breaker):
    engine.is_down = True
    fail(breaker, engine, 3)
    breaker.close()
    assert count_probe_threads() == 0
    probes = engine.probes
    fail(breaker, engine, 3)
    assert (count_probe_threads(), engine.probes) == (0, probes)
    breaker.close()


def test_many_threads_open_one_circuit_and_one_probe(engine, breaker):
    engine.is_down = True
    barrier = threading.Barrier(16)

    def work():
        barrier.wait()
        for _ in range(5):
            with pytest.raises(EngineUnavailableError):
                call(breaker, engine)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count_probe_threads() == 1
    assert engine.calls <= 3 + 16
