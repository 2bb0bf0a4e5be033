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

VECTORS = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
INDEX = IndexSettings(engine=NAME, ks=(5,))


@pytest.fixture
def server(monkeypatch):
    return register(monkeypatch)


@pytest.fixture
def store(make_store, server):
    """A store with the releases `one`, which is current, and `two`."""
    store = make_store(list(range(30)), VECTORS, index=INDEX)
    publish_vectors(store.path, list(range(30)), -VECTORS, index=INDEX, name="two", activate=False)
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


def set_grace(monkeypatch, seconds):
    monkeypatch.setattr(index_unloading, "UNLOAD_GRACE_SECONDS", seconds)


def test_old_index_is_unloaded_after_the_grace_time(live_index, server, collections, monkeypatch):
    set_grace(monkeypatch, 0.05)
    first = live_index.snapshot.release
    live_index.activate("two")
    assert server.unloaded == set()
    wait_until(lambda: server.unloaded == {collections["one"]})
    wait_until(lambda: first.remote_index.is_closed)
    assert not live_index.snapshot.release.remote_index.is_closed


def test_rollback_within_the_grace_time_unloads_nothing(live_index, server, collections, monkeypatch):
    set_grace(monkeypatch, 60.0)
    first = live_index.snapshot.release
    live_index.activate("two")
    live_index.activate("one")
    assert live_index.snapshot.release is first
    assert ("unload", collections["one"]) not in server.calls
    assert server.unloaded == set()


def test_rollback_after_the_grace_time_loads_the_index_again(live_index, server, collections, monkeypatch):
    set_grace(monkeypatch, 0.0)
    first = live_index.snapshot.release
    live_index.activate("two")
    wait_until(lambda: first.remote_index.is_closed)
    live_index.activate("one")
    assert live_index.snapshot.release is first
    assert collections["one"] not in server.unloaded
    assert not first.remote_index.is_closed
    assert server.calls.count(("load", collections["one"])) == 2


@pytest.mark.parametrize("fault", ["down", "frozen"])
def test_release_whose_server_does_not_answer_is_not_switched_to(live_index, server, store, monkeypatch, fault):
    set_grace(monkeypatch, 60.0)
    server.set(fault=fault)
    with pytest.raises(EngineUnavailableError):
        live_index.activate("two")
    assert live_index.snapshot.release.name == store.get_current().release == "one"
    server.set(fault=None)
    live_index.activate("two")
    assert live_index.snapshot.release.name == "two"


def test_release_that_is_given_up_is_unloaded(live_index, server, collections, monkeypatch):
    set_grace(monkeypatch, 0.0)

    def refuse(name):
        raise StoreError("refused")

    monkeypatch.setattr(live_index._state.store, "activate", refuse, raising=True)
    with pytest.raises(StoreError, match="refused"):
        live_index.activate("two")
    wait_until(lambda: server.unloaded == {collections["two"]})
    assert live_index.snapshot.release.name == "one"


def test_release_that_other_processes_serve_again_stays_loaded(live_index, server, store, collections, monkeypatch):
    set_grace(monkeypatch, 0.05)
    first = live_index.snapshot.release
    live_index.activate("two")
    store.activate("one")  # by another process, which this one will follow
    wait_until(lambda: first.remote_index.is_closed)
    assert ("unload", collections["one"]) not in server.calls


def test_failed_unloading_is_logged_and_closed(live_index, server, monkeypatch, caplog):
    set_grace(monkeypatch, 0.05)
    first = live_index.snapshot.release
    live_index.activate("two")
    server.set(fault="down")
    wait_until(lambda: first.remote_index.is_closed)
    assert "release one stays in the memory of its engine's server" in caplog.text


def test_closing_ends_threads_and_connections_and_unloads_nothing(store, server, monkeypatch):
    set_grace(monkeypatch, 60.0)
    live_index = LiveIndex.open(store, None, writable=False, keep_previous=True)
    first = live_index.snapshot.release
    live_index.activate("two")
    assert [thread.name for thread in threading.enumerate() if thread.name == "vecall-unload"]
    live_index.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "vecall-unload"]
    assert first.remote_index.is_closed
    assert live_index.snapshot.release.remote_index.is_closed
    assert not [call for call in server.calls if call[0] == "unload"]
