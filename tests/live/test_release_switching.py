"""Switching to another release: by name, to the store's current one, and back to one that is still in memory."""

import shutil

import numpy as np
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.live import memory, switching
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import PeerSettings
from vecall.pipeline.publish_vectors import publish_vectors

EYE = np.eye(4, dtype=np.float32)


@pytest.fixture
def store(make_store):
    """A store with the releases `one`, which is current, and `two`."""
    store = make_store([1, 2, 3, 4], EYE)
    publish_vectors(store.path, [1, 2, 3, 4, 5], np.vstack([EYE, EYE[:1]]), name="two", activate=False)
    return store


def test_switch_to_current_serves_the_release_that_another_process_activated(store):
    live_index = LiveIndex.open(store, None, writable=True)
    live_index.upsert([{"id": 9, "vector": [1.0, 0, 0, 0]}])
    assert live_index.switch_to_current() is None
    store.activate("two")
    assert live_index.switch_to_current() == "two"
    assert live_index.switch_to_current() is None
    assert (live_index.snapshot.release.name, len(live_index.snapshot)) == ("two", 6)
    live_index.close()


def test_switch_to_current_keeps_the_release_if_there_is_no_valid_current_one(store):
    live_index = LiveIndex.open(store, None, writable=False)
    (store.path / "CURRENT").write_text("{")
    with pytest.raises(InvalidReleaseError, match="CURRENT"):
        live_index.switch_to_current()
    (store.path / "CURRENT").unlink()
    with pytest.raises(StoreError, match="no release"):
        live_index.switch_to_current()
    assert live_index.snapshot.release.name == "one"


def test_previous_release_is_served_from_memory(store, monkeypatch):
    live_index = LiveIndex.open(store, None, writable=True, keep_previous=True)
    first = live_index.snapshot.release
    live_index.activate("two")
    live_index.delete([1])
    loaded = []
    monkeypatch.setattr(switching, "open_and_check_release", lambda *args: loaded.append(args))
    live_index.activate("one")
    assert live_index.snapshot.release is first
    assert len(live_index.snapshot) == 3  # without the item that was deleted meanwhile
    assert not loaded
    assert store.get_current().release == "one"
    live_index.close()


def test_previous_release_is_loaded_again_if_it_is_another_one_on_the_disk(store):
    live_index = LiveIndex.open(store, None, writable=False, keep_previous=True)
    first = live_index.snapshot.release
    live_index.activate("two")
    shutil.rmtree(store.get_release_dir("one"))
    with pytest.raises(StoreError, match="no release 'one'"):
        live_index.activate("one")
    publish_vectors(store.path, [1, 2, 3, 4], -EYE, name="one", activate=False)
    live_index.activate("one")
    release = live_index.snapshot.release
    assert release is not first
    np.testing.assert_array_equal(release.vectors.get_vectors(np.array([0])), -EYE[:1])


def test_previous_release_is_not_kept_by_default(store):
    live_index = LiveIndex.open(store, None, writable=False)
    first = live_index.snapshot.release
    live_index.activate("two")
    live_index.activate("one")
    assert live_index.snapshot.release is not first


def test_release_that_does_not_fit_into_memory_is_rejected(store, monkeypatch):
    live_index = LiveIndex.open(store, None, writable=False)
    monkeypatch.setattr(memory, "get_free_memory_bytes", lambda: 100)
    with pytest.raises(StoreError, match=r"needs about [0-9,]+ bytes .* 100 are free"):
        live_index.activate("two")
    assert live_index.snapshot.release.name == store.get_current().release == "one"
    monkeypatch.setattr(memory, "get_free_memory_bytes", lambda: None)  # not known
    live_index.activate("two")


def test_processes_with_a_previous_release_each_count_as_one(store, monkeypatch):
    """They load one after another, and each drops its previous release before."""
    counts = []
    monkeypatch.setattr(switching, "check_memory", lambda manifest, process_count: counts.append(process_count))
    peers = PeerSettings(write_lock_path=store.path / "writer.lock", total_process_count=4)
    live_index = LiveIndex.open(store, None, writable=False, keep_previous=True)
    live_index._state.peers = peers
    live_index.activate("two")
    publish_vectors(store.path, [1, 2], EYE[:2], name="three", activate=False)
    live_index.activate("three")
    assert counts == [4, 1]
