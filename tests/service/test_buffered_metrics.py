"""Buffered metrics export the same lines as those of prometheus_client."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from vecall.service.metrics import buffered
from vecall.service.metrics.buffered import BufferedCounter, BufferedHistogram

BOUNDS = (0.5, 1.0, 2.5)
SECONDS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.5, 2.75, 100.0])  # whose sums are exact in any order


def to_lines(registry):
    """Exported lines without creation times, which the service disables."""
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)


def export(collector):
    registry = CollectorRegistry()
    registry.register(collector)
    return to_lines(registry)


@given(st.lists(st.tuples(st.sampled_from("abc"), SECONDS), max_size=30), st.integers(1, 7))
def test_histogram_matches_prometheus_client(observations, max_buffered):
    registry = CollectorRegistry()
    expected = Histogram("seconds", "How long.", ["stage"], buckets=BOUNDS, registry=registry)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(buffered, "_MAX_BUFFERED", max_buffered)
        histogram = BufferedHistogram("seconds", "How long.", ["stage"], buckets=BOUNDS)
        for stage, value in observations:
            expected.labels(stage).observe(value)
            histogram.observe(value, stage)
        assert export(histogram) == to_lines(registry)
        assert export(histogram) == to_lines(registry)  # a scrape changes nothing


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_counter_matches_prometheus_client(statuses):
    registry = CollectorRegistry()
    expected = Counter("requests", "How many.", ["status"], registry=registry)
    counter = BufferedCounter("requests", "How many.", ["status"])
    for status in statuses:
        expected.labels(status).inc()
        counter.inc(status)
    assert export(counter) == to_lines(registry)


def test_initial_labels_are_exported_without_observations():
    registry = CollectorRegistry()
    Histogram("fill", "How full.", buckets=BOUNDS, registry=registry)
    assert export(BufferedHistogram("fill", "How full.", buckets=BOUNDS)) == to_lines(registry)
    registry = CollectorRegistry()
    Histogram("seconds", "How long.", ["stage"], buckets=BOUNDS, registry=registry).labels("a")
    histogram = BufferedHistogram("seconds", "How long.", ["stage"], buckets=BOUNDS, initial_labels=[("a",)])
    assert export(histogram) == to_lines(registry)


def test_concurrent_observations_and_scrapes_lose_nothing(monkeypatch):
    monkeypatch.setattr(buffered, "_MAX_BUFFERED", 3)
    histogram = BufferedHistogram("seconds", "How long.", buckets=BOUNDS)
    stop_event = threading.Event()

    def scrape():
        while not stop_event.is_set():
            export(histogram)

    scraper = threading.Thread(target=scrape)
    observers = [threading.Thread(target=lambda: [histogram.observe(1.0) for _ in range(5_000)]) for _ in range(4)]
    for thread in (scraper, *observers):
        thread.start()
    for thread in observers:
        thread.join()
    stop_event.set()
    scraper.join()
    assert {"seconds_count 20000.0", "seconds_sum 20000.0"} <= set(export(histogram))
