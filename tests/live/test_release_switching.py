"""Going over to another release: by name, by following the store, back to one that is still in memory."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.live import memory, switching
from vecall.live.live_index import LiveIndex
from vecall.live.memory import check_memory, get_free_memory_bytes
from vecall.pipeline.publish_vectors import publish_vectors

EYE = np.eye(4, dtype=np.float32)


@pytest.fixture
def two(store_of):
    """A store with releases `one` and `two`, of which `one` is current."""
    store = store_of([1, 2, 3, 4], EYE)
    publish_vectors(store.path, [1, 2, 3, 4, 5], np.vstack([EYE, EYE[:1]]), name="two", activate=False)
    return store


def test_what_is_current_is_followed(two):
    live = LiveIndex.open(two, None, writable=True)
    live.upsert([{"id": 9, "vector": [1.0, 0, 0, 0]}])
    assert live.switch_to_current() is None
    two.activate("two")
    assert live.switch_to_current() == "two"
    assert live.switch_to_current() is None
    assert (live.snapshot.release.name, len(live.snapshot)) == ("two", 6)
    live.close()


def test_nothing_is_gone_over_to_that_is_damaged(two):
    live = LiveIndex.open(two, None, writable=False)
    (two.path / "CURRENT").write_text("{")
    with pytest.raises(InvalidReleaseError, match="CURRENT"):
        live.switch_to_current()
    (two.path / "CURRENT").unlink()
    with pytest.raises(StoreError, match="no release"):
        live.switch_to_current()
    assert live.snapshot.release.name == "one"


def test_the_release_before_is_still_in_memory(two, monkeypatch):
    live = LiveIndex.open(two, None, writable=True, keep_previous=True)
    first = live.snapshot.release
    live.activate("two")
    live.delete([1])
    opened = []
    monkeypatch.setattr(switching, "prove_release", lambda *asked: opened.append(asked))
    live.activate("one")
    assert live.snapshot.release is first
    assert len(live.snapshot) == 3  # with what was deleted meanwhile
    assert not opened
    assert two.current().release == "one"
    live.close()


def test_a_release_in_memory_is_opened_again_when_the_disk_has_another(two):
    live = LiveIndex.open(two, None, writable=False, keep_previous=True)
    first = live.snapshot.release
    live.activate("two")
    shutil.rmtree(two.folder("one"))
    with pytest.raises(StoreError, match="no release 'one'"):
        live.activate("one")
    publish_vectors(two.path, [1, 2, 3, 4], -EYE, name="one", activate=False)
    live.activate("one")
    assert live.snapshot.release is not first
    np.testing.assert_array_equal(live.snapshot.release.index.get_vectors(np.array([0])), -EYE[:1])


def test_without_being_asked_to_no_second_one_is_kept(two):
    live = LiveIndex.open(two, None, writable=False)
    first = live.snapshot.release
    live.activate("two")
    live.activate("one")
    assert live.snapshot.release is not first


def test_what_memory_does_not_suffice_for_is_refused_with_the_numbers(two, monkeypatch):
    live = LiveIndex.open(two, None, writable=False)
    monkeypatch.setattr(memory, "free_memory", lambda: 100)
    with pytest.raises(StoreError, match=r"needs about [0-9,]+ bytes .* 100 are free"):
        live.activate("two")
    assert live.snapshot.release.name == two.current().release == "one"
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # nobody knows
    live.activate("two")


def test_free_memory_is_the_lesser_of_machine_and_group(tmp_path, monkeypatch, two):
    assert 2**20 < get_free_memory_bytes() < 2**50
    files = {"_MEMINFO": "MemTotal: 9 kB\nMemAvailable:   4 kB\n", "_CGROUP_MAX": "5000\n", "_CGROUP_USED": "2000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert get_free_memory_bytes() == 3_000
    (tmp_path / "_CGROUP_MAX").write_text("max\n")
    assert get_free_memory_bytes() == 4_096
    monkeypatch.setattr(memory, "_MEMINFO", Path("/nowhere"))
    assert get_free_memory_bytes() is None
    check_memory(two.releases()[0])
