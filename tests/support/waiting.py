"""Waiting in tests for what threads do."""

import threading
import time


def wait_until(condition, timeout_seconds=10.0, poll_seconds=0.002):
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(poll_seconds)


def count_probe_threads():
    """Number of threads that look whether the server of an engine is back."""
    return sum(thread.name == "vecall-engine-probe" for thread in threading.enumerate())
