import fcntl
import os
import subprocess
import sys

import pytest

from vecall.errors import InvalidReleaseError, LockedError, StoreError
from vecall.release import manifest as manifest_module
from vecall.release import store as store_module
from vecall.release.atomic_io import compute_sha256
from vecall.release.file_lock import file_lock
from vecall.release.manifest import IndexInfo, ReleaseMetadata
from vecall.release.store import Store

DESCRIPTION = ReleaseMetadata(items=1, dim=2, id_type="integer", index=IndexInfo(engine="exact"))


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "deep" / "store")


def publish(store, name=None, *, activate=True, content=b"vectors"):
    with store.draft(name) as draft:
        (draft.folder / "index.faiss").write_bytes(content)
        return draft.commit(DESCRIPTION, activate=activate)


def names(store):
    return [manifest.name for manifest in store.releases()]


def leftovers(store):
    return list(store.path.glob("tmp-*"))


def test_what_is_published_is_there_and_current(store):
    assert store.find_current() is None
    assert publish(store, "one") == "one"
    assert store.current().release == "one"
    manifest = store.verify()
    assert (manifest.parent, manifest.items, manifest.bytes) == (None, 1, 7)
    assert manifest.created.utcoffset().total_seconds() == 0
    assert (store.folder("one") / "index.faiss").read_bytes() == b"vectors"
    publish(store, "two", activate=False)
    assert (store.current().release, names(store)) == ("one", ["two", "one"])
    assert store.verify("two").parent == "one"
    assert leftovers(store) == []
    assert Store.open(store.path) == Store.create(store.path) == store


def test_releases_without_a_name_are_called_by_their_time(store):
    made = [publish(store) for _ in range(3)]
    assert len(set(made)) == 3
    assert names(store) == made[::-1]
    assert all(len(name.split("-")[0]) == 8 for name in made)


def test_a_name_by_time_that_is_taken_gets_a_suffix(store):
    now = store_module.datetime(2026, 11, 24, 15, 55, 1, tzinfo=store_module.UTC)
    for expected in ("20261124-155501", "20261124-155501-1", "20261124-155501-2"):
        assert store._name_by_time(now) == expected
        publish(store, expected)


@pytest.mark.parametrize("name", ["", "One", ".one", "-one", "a/b", "..", "a" * 65, "é", "one\n"])
def test_malformed_names_are_refused(store, name):
    with pytest.raises(StoreError, match="cannot name a release"):
        publish(store, name)
    with pytest.raises(StoreError, match="has no release"):
        store.folder(name)


def test_a_taken_name_is_refused_early_and_at_the_commit(store):
    with store.draft("one") as draft:
        publish(store, "one", content=b"first")
        with pytest.raises(StoreError, match="already"):
            draft.commit(DESCRIPTION, activate=True)
    with pytest.raises(StoreError, match="already"), store.draft("one"):
        pytest.fail("too late")
    assert (store.folder("one") / "index.faiss").read_bytes() == b"first"
    assert leftovers(store) == []


def test_a_draft_left_without_commit_is_gone(store):
    with store.draft() as draft:
        (draft.folder / "index.faiss").write_bytes(b"x")
    with pytest.raises(KeyError), store.draft() as draft:
        raise KeyError
    assert (leftovers(store), names(store), store.find_current()) == ([], [], None)


class Crash(BaseException):
    """Nothing catches it, like the death of the process."""


@pytest.mark.parametrize("step", ["sum_files", "write_manifest", "Path.rename", "replace", "os.replace", "fsync"])
def test_a_crash_at_any_step_leaves_a_whole_store(store, monkeypatch, step):
    publish(store, "one")

    def crash(*_args, **_kwargs):
        raise Crash

    targets = {"Path.rename": "pathlib.Path.rename", "os.replace": "pathlib.Path.replace", "fsync": "os.fsync"}
    with monkeypatch.context() as patch:
        patch.setattr(targets.get(step, f"vecall.release.store.{step}"), crash)
        with pytest.raises(Crash):
            publish(store, "two")
    assert store.current().release == "one"
    store.verify()
    after_rename = step in ("replace", "os.replace")
    assert names(store) == (["two", "one"] if after_rename else ["one"])
    if after_rename:  # whole, and not current
        store.verify("two")
        assert store.activate("two") == "one"
    else:
        assert publish(store, "two") == "two"
    assert leftovers(store) == []


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_stay(store):
    (store.path / "tmp-dead").mkdir()
    (store.path / "tmp-dead" / "index.faiss").write_bytes(b"x")
    (store.path / "tmp-current").write_bytes(b"{")  # a CURRENT that never became it
    (store.path / "tmp-alive").mkdir()
    alive = os.open(store.path / "tmp-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    with store.draft() as draft:
        assert set(leftovers(store)) == {store.path / "tmp-alive", draft.folder}
        store.prune(0)
        assert set(leftovers(store)) == {store.path / "tmp-alive", draft.folder}
    os.close(alive)
    store.prune(0)
    assert leftovers(store) == []


def test_activate_and_roll_back(store):
    for name in ("one", "two", "three"):
        publish(store, name)
    assert store.activate("one") == "three"
    assert publish(store, "four") == "four"
    assert store.rollback() == ("one", "four")
    assert store.current().release == "one"
    with pytest.raises(StoreError, match="no parent"):
        store.rollback()


def test_activating_checks_every_byte_first(store):
    publish(store, "one")
    publish(store, "two")
    (store.folder("one") / "index.faiss").write_bytes(b"VECTORS")
    for attempt in (lambda: store.activate("one"), store.rollback):
        with pytest.raises(InvalidReleaseError) as refused:
            attempt()
        assert refused.value.file == "index.faiss"
    assert store.current().release == "two"


def test_rolling_back_needs_something_to_roll_back_to(store):
    with pytest.raises(StoreError, match="no release"):
        store.rollback()
    publish(store, "one")
    publish(store, "two")
    for path in [*store.folder("one").iterdir()]:
        path.unlink()
    store.folder("one").rmdir()
    with pytest.raises(StoreError, match="was pruned"):
        store.rollback()


def test_pruning_keeps_the_newest_the_current_and_its_parent(store):
    for name in ("a", "b", "c", "d", "e"):
        publish(store, name)
    store.activate("c")
    assert store.prune(10) == []
    assert store.prune(1) == ["d", "a"]
    assert names(store) == ["e", "c", "b"]
    assert store.prune(0) == ["e"]
    assert leftovers(store) == []
    assert store.rollback() == ("b", "c")
    with pytest.raises(StoreError, match="keep is -1"):
        store.prune(-1)


def test_a_crash_while_pruning_leaves_no_half_deleted_release(store, monkeypatch):
    for name in ("a", "b", "c", "d"):
        publish(store, name)

    def crash(*_args, **_kwargs):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", crash)
        with pytest.raises(Crash):
            store.prune(1)
    assert names(store) == ["d", "c"]
    assert len(leftovers(store)) == 2
    store.prune(1)
    assert leftovers(store) == []


def test_a_damaged_manifest_is_not_skipped(store):
    publish(store, "one")
    publish(store, "two")
    (store.folder("one") / "manifest.json").write_bytes(b"{}")
    for attempt in (store.releases, lambda: store.prune(1)):
        with pytest.raises(InvalidReleaseError, match=r"'one'.*manifest\.json"):
            attempt()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b'{"release": "one"}\n',
        b'{"release": "../one", "manifest_sha256": "%s"}\n',
        b'{"release": "one", "manifest_sha256": "%s", "more": 1}\n',
        b'{"release": "one",  "manifest_sha256": "%s"}\n',
        b'{"release": "gone", "manifest_sha256": "%s"}\n',
    ],
)
def test_a_damaged_current_is_refused_and_activating_mends_it(store, content):
    publish(store, "one")
    (store.path / "CURRENT").write_bytes(content.replace(b"%s", b"0" * 64))
    with pytest.raises(InvalidReleaseError, match="CURRENT") as refused:
        store.verify()
    assert refused.value.file == "CURRENT"
    store.activate("one")
    assert store.verify().name == "one"


def test_no_draft_is_begun_whose_parent_is_not_known(store):
    (store.path / "CURRENT").write_bytes(b"{")
    with pytest.raises(InvalidReleaseError, match="CURRENT"), store.draft():
        pytest.fail("too late")


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        Store.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="a file is in its place"):
            Store.create(path)
    empty = Store.create(tmp_path / "store")
    with pytest.raises(StoreError, match="no release"):
        empty.get_current()
    with pytest.raises(StoreError, match="has none"):
        empty.activate("one")


def test_a_held_store_is_refused_with_the_holders_pid(store, monkeypatch):
    monkeypatch.setattr(store_module, "_LOCK_TIMEOUT", 0.05)
    publish(store, "one")
    with file_lock(store.path / "store.lock", timeout=0):
        for attempt in (lambda: publish(store), lambda: store.activate("one"), lambda: store.prune(1)):
            with pytest.raises(LockedError) as locked:
                attempt()
            assert locked.value.pid == os.getpid()
        assert store.verify().name == "one"  # readers take no lock


PUBLISHER = """
import sys
from pathlib import Path
from vecall.release.manifest import Description, IndexFacts
from vecall.release.store import Store
store = Store.create(Path(sys.argv[1]))
for _ in range(5):
    with store.draft() as draft:
        (draft.folder / "index.faiss").write_bytes(b"vectors")
        description = Description(items=1, dim=2, id_type="integer", index=IndexFacts(engine="exact"))
        print(draft.commit(description, activate=True))
"""


def test_publishers_in_several_processes_all_land(tmp_path):
    path = tmp_path / "store"
    crowd = [
        subprocess.Popen([sys.executable, "-c", PUBLISHER, path], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [name for process in crowd for name in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in crowd] == [0] * 4
    store = Store.open(path)
    assert len(set(said)) == 20
    assert sorted(said) == sorted(names(store))
    assert all(store.verify(name) for name in said)
    # Each one's parent was current when it landed: the releases are a chain.
    manifests = store.list_releases()
    assert [manifest.parent for manifest in manifests] == [manifest.name for manifest in manifests[1:]] + [None]
    assert store.get_current().release == manifests[0].name
    assert leftovers(store) == []


def test_a_draft_that_vanishes_while_others_are_swept_is_no_trouble(store, monkeypatch):
    """Its maker removes it at the end, without the store's lock."""
    (store.path / "tmp-ending").mkdir()
    in_use = store_module._is_in_use

    def ends(left):
        left.rmdir()
        return in_use(left)

    monkeypatch.setattr(store_module, "_in_use", ends)
    assert publish(store, "one") == "one"
    assert leftovers(store) == []


def test_a_release_that_vanishes_while_it_is_verified_is_refused(store, monkeypatch):
    publish(store, "one")

    def pruned(path):
        path.unlink()
        return compute_sha256(path)

    monkeypatch.setattr(manifest_module, "sha256", pruned)
    with pytest.raises(InvalidReleaseError, match=r"index.faiss is missing or cannot be read") as refused:
        store.verify("one")
    assert refused.value.file == "index.faiss"
