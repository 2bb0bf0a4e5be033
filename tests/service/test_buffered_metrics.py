"""What is counted late is counted as the library would have: held against its own metrics, line by line."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from vecall.service.metrics import buffered
from vecall.service.metrics.buffered import BufferedCounter, BufferedHistogram

BOUNDS = (0.5, 1.0, 2.5)
SECONDS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.5, 2.75, 100.0])  # whose sums are exact in any order


def lines(registry):
    """Without when each began, which the service does not tell."""
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)


def told(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return lines(registry)


@given(st.lists(st.tuples(st.sampled_from("abc"), SECONDS), max_size=30), st.integers(1, 7))
def test_it_tells_what_the_library_would(noted, most):
    registry = CollectorRegistry()
    seconds = Histogram("seconds", "How long.", ["stage"], buckets=BOUNDS, registry=registry)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(buffered, "_MAX_BUFFERED", most)
        ours = BufferedHistogram("seconds", "How long.", ["stage"], buckets=BOUNDS)
        for stage, value in noted:
            seconds.labels(stage).observe(value)
            ours.observe(value, stage)
        assert told(ours) == lines(registry)
        assert told(ours) == lines(registry)  # and goes on to


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_counts_too(noted):
    registry = CollectorRegistry()
    requests = Counter("requests", "How many.", ["status"], registry=registry)
    ours = BufferedCounter("requests", "How many.", ["status"])
    for status in noted:
        requests.labels(status).inc()
        ours.inc(status)
    assert told(ours) == lines(registry)


def test_what_is_known_is_told_from_the_start():
    registry = CollectorRegistry()
    Histogram("fill", "How full.", buckets=BOUNDS, registry=registry)
    assert told(BufferedHistogram("fill", "How full.", buckets=BOUNDS)) == lines(registry)
    registry = CollectorRegistry()
    Histogram("seconds", "How long.", ["stage"], buckets=BOUNDS, registry=registry).labels("a")
    ours = BufferedHistogram("seconds", "How long.", ["stage"], buckets=BOUNDS, initial_labels=[("a",)])
    assert told(ours) == lines(registry)


def test_nothing_is_lost_between_threads(monkeypatch):
    monkeypatch.setattr(buffered, "_MAX_BUFFERED", 3)
    ours = BufferedHistogram("seconds", "How long.", buckets=BOUNDS)
    ended = threading.Event()

    def look():
        while not ended.is_set():
            told(ours)

    looking = threading.Thread(target=look)
    noting = [threading.Thread(target=lambda: [ours.observe(1.0) for _ in range(5_000)]) for _ in range(4)]
    for thread in (looking, *noting):
        thread.start()
    for thread in noting:
        thread.join()
    ended.set()
    looking.join()
    assert {"seconds_count 20000.0", "seconds_sum 20000.0"} <= set(told(ours))
