"""Switching between releases whose indexes are on a server: loaded before, unloaded a while afterwards."""

import threading

import numpy as np
import pytest
from support.fake_engine import NAME, register
from support.server import wait_until

from vecall.errors import EngineUnavailableError, StoreError
from vecall.index.settings import IndexSettings
from vecall.live import index_unloading
from vecall.live.live_index import LiveIndex
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.store import Store

VECTORS = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)


class ManualTimer:
    """A timer that tests let expire."""

    def __init__(self, interval, function, args):
        self.expire, self.is_cancelled = lambda: None if self.is_cancelled else function(*args), False

    def start(self):
        timers.append(self)

    def cancel(self):
        self.is_cancelled = True

    def join(self):
        pass


timers: list[ManualTimer] = []


@pytest.fixture
def manual_timers(monkeypatch):
    timers.clear()
    monkeypatch.setattr(index_unloading, "Timer", ManualTimer)
    return timers


@pytest.fixture
def server(monkeypatch):
    return register(monkeypatch)


@pytest.fixture
def store(make_store, server):
    """A store with the releases `one`, which is current, and `two`."""
    index = IndexSettings(engine=NAME, ks=(5,))
    store = make_store(list(range(30)), VECTORS, index=index)
    publish_vectors(store.path, list(range(30)), -VECTORS, index=index, name="two", activate=False)
    server.unloaded = set(server.collections)
    return store


@pytest.fixture
def live_index(store):
    live_index = LiveIndex.open(store, None, writable=False, keep_previous=True)
    live_index.snapshot.release.check_golden_queries()
    yield live_index
    live_index.close()


@pytest.fixture
def collections(store):
    """Collection by name of the release."""
    return {manifest.name: manifest.index.parameters["collection"] for manifest in store.list_releases()}


def test_old_index_is_unloaded_after_the_grace_time(live_index, server, collections, manual_timers):
    first = live_index.snapshot.release
    live_index.activate("two")
    assert (server.unloaded, first.remote_index.is_closed) == (set(), False)
    manual_timers[-1].expire()
    assert (server.unloaded, first.remote_index.is_closed) == ({collections["one"]}, True)
    assert not live_index.snapshot.release.remote_index.is_closed


def test_rollback_within_the_grace_time_unloads_nothing(live_index, server, manual_timers):
    first = live_index.snapshot.release
    live_index.activate("two")
    live_index.activate("one")
    manual_timers[0].expire()
    assert live_index.snapshot.release is first
    assert (server.unloaded, first.remote_index.is_closed) == (set(), False)


def test_rollback_after_the_grace_time_loads_the_index_again(live_index, server, collections, manual_timers):
    first = live_index.snapshot.release
    live_index.activate("two")
    manual_timers[-1].expire()
    live_index.activate("one")
    assert live_index.snapshot.release is first
    assert (server.unloaded, first.remote_index.is_closed) == (set(), False)
    assert server.calls.count(("load", collections["one"])) == 2


@pytest.mark.parametrize("fault", ["down", "frozen"])
def test_release_whose_server_does_not_answer_is_not_switched_to(live_index, server, store, manual_timers, fault):
    server.set(fault=fault)
    with pytest.raises(EngineUnavailableError):
        live_index.activate("two")
    assert live_index.snapshot.release.name == store.get_current().release == "one"
    assert not manual_timers
    server.set(fault=None)
    live_index.activate("two")
    assert live_index.snapshot.release.name == "two"


def test_release_that_is_given_up_is_unloaded(live_index, server, collections, manual_timers, monkeypatch):
    def refuse(store, name):
        raise StoreError("refused")

    monkeypatch.setattr(Store, "activate", refuse)
    with pytest.raises(StoreError, match="refused"):
        live_index.activate("two")
    assert live_index.snapshot.release.name == "one"
    manual_timers[-1].expire()
    assert server.unloaded == {collections["two"]}


def test_release_that_other_processes_serve_again_stays_loaded(live_index, server, store, manual_timers):
    first = live_index.snapshot.release
    live_index.activate("two")
    store.activate("one")  # by another process, which this one will follow
    manual_timers[-1].expire()
    assert (server.unloaded, first.remote_index.is_closed) == (set(), True)


def test_failed_unloading_is_logged_and_the_connection_closed(live_index, server, manual_timers, caplog):
    first = live_index.snapshot.release
    live_index.activate("two")
    server.set(fault="down")
    manual_timers[-1].expire()
    assert first.remote_index.is_closed
    assert "release one stays in the memory of its engine's server" in caplog.text


def test_timer_unloads_the_index_in_a_thread_that_ends(live_index, server, collections, monkeypatch):
    monkeypatch.setattr(index_unloading, "UNLOAD_GRACE_SECONDS", 0.01)
    first = live_index.snapshot.release
    live_index.activate("two")
    wait_until(lambda: first.remote_index.is_closed)
    wait_until(lambda: not list_unload_threads())
    assert server.unloaded == {collections["one"]}


def test_closing_ends_threads_and_connections_and_unloads_nothing(store, server):
    live_index = LiveIndex.open(store, None, writable=False, keep_previous=True)
    first = live_index.snapshot.release
    live_index.activate("two")
    assert len(list_unload_threads()) == 1
    live_index.close()
    assert not list_unload_threads()
    assert first.remote_index.is_closed
    assert live_index.snapshot.release.remote_index.is_closed
    assert not [call for call in server.calls if call[0] == "unload"]


def list_unload_threads():
    return [thread for thread in threading.enumerate() if thread.name == "vecall-unload"]
