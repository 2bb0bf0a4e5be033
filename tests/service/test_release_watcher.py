"""When the watcher of `CURRENT` reports its switches."""

from types import SimpleNamespace

import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.service import release_watcher
from vecall.service.release_watcher import ReleaseWatcher


@pytest.fixture
def outcomes():
    """What each attempt to switch returns or raises; the last one repeats."""
    return []


@pytest.fixture
def reports():
    return []


@pytest.fixture
def watcher(outcomes, reports, monkeypatch):
    monkeypatch.setattr(release_watcher, "_RETRY_SECONDS", 0.0)

    def switch_to_current():
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    store, live_index = SimpleNamespace(get_current=lambda: "two"), SimpleNamespace(switch_to_current=switch_to_current)
    return ReleaseWatcher(store, live_index, 0.0, on_switch=reports.append, on_poll=lambda: None)


def test_retry_that_fails_with_the_same_error_is_not_reported_again(watcher, outcomes, reports):
    outcomes += [StoreError("no memory"), StoreError("no memory"), StoreError("no such file"), "two", None]
    for _ in range(2):
        watcher.poll()
    assert (reports, watcher.switch_error) == ([False], "no memory")
    watcher.poll()
    assert (reports, watcher.switch_error) == ([False, False], "no such file")
    watcher.poll()
    assert (reports, watcher.switch_error) == ([False, False, True], None)


def test_poll_that_finds_the_served_release_reports_nothing(watcher, outcomes, reports):
    outcomes.append(None)
    watcher.poll()
    assert (reports, watcher.switch_error) == ([], None)


def test_release_that_could_not_be_read_is_tried_again_and_a_damaged_one_is_not(watcher, outcomes, reports):
    unreadable, damaged = InvalidReleaseError("cannot be read", file="x"), InvalidReleaseError("damaged", file="x")
    unreadable.__cause__ = OSError(24, "Too many open files")
    outcomes += [unreadable, MemoryError(), damaged, "two", None]
    errors = []
    for _ in range(5):
        watcher.poll()
        errors.append(watcher.switch_error)
    assert errors == ["cannot be read", "out of memory", *["damaged"] * 3]
    assert reports == [False] * 3
