import fcntl
import os
import shutil
import subprocess
import sys

import pytest

from vecall.errors import InvalidReleaseError, LockedError, StoreError
from vecall.index.index_info import IndexInfo
from vecall.release import drafts
from vecall.release import manifest as manifest_module
from vecall.release import store as store_module
from vecall.release.file_io import compute_sha256
from vecall.release.file_lock import file_lock
from vecall.release.manifest import ReleaseMetadata, verify_release
from vecall.release.store import Store

METADATA = ReleaseMetadata(items=1, dim=2, id_type="integer", index=IndexInfo(engine="exact"))


@pytest.fixture
def store(tmp_path):
    return Store.open_or_create(tmp_path / "deep" / "store")


def publish(store, name=None, *, activate=True, content=b"vectors"):
    with store.create_draft(name) as draft:
        (draft.directory / "index.faiss").write_bytes(content)
        return draft.commit(METADATA, activate=activate)


def list_names(store):
    return [manifest.name for manifest in store.list_releases()]


def list_leftovers(store):
    return list(store.path.glob("tmp-*"))


def test_published_release_is_listed_and_current(store):
    assert store.find_current() is None
    assert publish(store, "one") == "one"
    assert store.get_current().release == "one"
    manifest = store.verify()
    assert (manifest.parent, manifest.items, manifest.total_bytes) == (None, 1, 7)
    assert manifest.created.utcoffset().total_seconds() == 0
    assert (store.get_release_dir("one") / "index.faiss").read_bytes() == b"vectors"
    publish(store, "two", activate=False)
    assert (store.get_current().release, list_names(store)) == ("one", ["two", "one"])
    assert store.verify("two").parent == "one"
    assert list_leftovers(store) == []
    assert Store.open(store.path) == Store.open_or_create(store.path) == store


def test_unnamed_releases_are_named_by_time(store):
    published = [publish(store) for _ in range(3)]
    assert len(set(published)) == 3
    assert list_names(store) == published[::-1]
    assert all(len(name.split("-")[0]) == 8 for name in published)


def test_timestamp_name_in_use_gets_a_suffix(store):
    now = store_module.datetime(2026, 11, 24, 15, 55, 1, tzinfo=store_module.UTC)
    for expected in ("20261124-155501", "20261124-155501-1", "20261124-155501-2"):
        assert store._make_timestamp_name(now) == expected
        publish(store, expected)


@pytest.mark.parametrize("name", ["", "One", ".one", "-one", "a/b", "..", "a" * 65, "é", "one\n"])
def test_malformed_name_is_refused(store, name):
    with pytest.raises(StoreError, match="cannot name a release"):
        publish(store, name)
    with pytest.raises(StoreError, match="has no release 5"):
        store.get_release_dir(5)
    with pytest.raises(StoreError, match="has no release"):
        store.get_release_dir(name)


def test_name_in_use_is_refused_by_create_draft_and_by_commit(store):
    with store.create_draft("one") as draft:
        publish(store, "one", content=b"first")
        with pytest.raises(StoreError, match="already"):
            draft.commit(METADATA, activate=True)
    with pytest.raises(StoreError, match="already"), store.create_draft("one"):
        pytest.fail("too late")
    assert (store.get_release_dir("one") / "index.faiss").read_bytes() == b"first"
    assert list_leftovers(store) == []


def test_uncommitted_draft_is_removed(store):
    with store.create_draft() as draft:
        (draft.directory / "index.faiss").write_bytes(b"x")
    with pytest.raises(KeyError), store.create_draft() as draft:
        raise KeyError
    assert (list_leftovers(store), list_names(store), store.find_current()) == ([], [], None)


def test_read_error_of_the_caller_is_not_reported_as_unwritable_store(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), store.create_draft() as draft:
        (tmp_path / "input").read_bytes()
    assert list_leftovers(store) == []
    with store.create_draft() as draft:
        shutil.rmtree(draft.directory)
        with pytest.raises(StoreError, match=r"store could not be written: .*No such file"):
            draft.commit(METADATA, activate=True)


class Crash(BaseException):
    """Nothing catches it, as nothing follows the death of a process."""


@pytest.mark.parametrize(
    "step", ["digest_files", "write_manifest", "Path.rename", "atomic_write", "os.replace", "fsync"]
)
def test_crash_at_any_step_leaves_a_consistent_store(store, monkeypatch, step):
    publish(store, "one")

    def crash(*_args, **_kwargs):
        raise Crash

    targets = {
        "Path.rename": "pathlib.Path.rename",
        "os.replace": "pathlib.Path.replace",
        "fsync": "os.fsync",
        "atomic_write": "vecall.release.current_pointer.atomic_write",
    }
    with monkeypatch.context() as patch:
        patch.setattr(targets.get(step, f"vecall.release.store.{step}"), crash)
        with pytest.raises(Crash):
            publish(store, "two")
    assert store.get_current().release == "one"
    store.verify()
    after_rename = step in ("atomic_write", "os.replace")
    assert list_names(store) == (["two", "one"] if after_rename else ["one"])
    if after_rename:  # published, but not current
        store.verify("two")
        assert store.activate("two") == "one"
    else:
        assert publish(store, "two") == "two"
    assert list_leftovers(store) == []


def test_only_drafts_of_dead_processes_are_removed(store):
    (store.path / "tmp-dead").mkdir()
    (store.path / "tmp-dead" / "index.faiss").write_bytes(b"x")
    (store.path / "tmp-current").write_bytes(b"{")  # a CURRENT that was not put in place
    (store.path / "tmp-alive").mkdir()
    descriptor = os.open(store.path / "tmp-alive", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with store.create_draft() as draft:
        assert set(list_leftovers(store)) == {store.path / "tmp-alive", draft.directory}
        store.prune(0)
        assert set(list_leftovers(store)) == {store.path / "tmp-alive", draft.directory}
    os.close(descriptor)
    store.prune(0)
    assert list_leftovers(store) == []


def activate_parent(store):
    names = store.find_rollback()
    assert store.activate(names.current) == names.previous
    return names


def test_rollback_activates_the_parent(store):
    for name in ("one", "two", "three"):
        publish(store, name)
    assert store.activate("one") == "three"
    assert publish(store, "four") == "four"
    assert activate_parent(store) == ("one", "four")
    assert store.get_current().release == "one"
    with pytest.raises(StoreError, match="no parent"):
        activate_parent(store)


def test_replace_current_changes_nothing_if_another_release_was_activated(store, monkeypatch):
    for name in ("one", "two", "three"):
        publish(store, name)
    assert store.replace_current("three", "one")
    assert store.get_current().release == "one"

    def activate_another_meanwhile(directory, **options):
        verified = verify_release(directory, **options)
        monkeypatch.setattr("vecall.release.store.verify_release", verify_release)
        store.activate("two")
        return verified

    monkeypatch.setattr("vecall.release.store.verify_release", activate_another_meanwhile)
    assert not store.replace_current("one", "three")
    assert store.get_current().release == "two"


def test_damaged_release_is_not_activated(store):
    publish(store, "one")
    publish(store, "two")
    (store.get_release_dir("one") / "index.faiss").write_bytes(b"VECTORS")
    for attempt in (lambda: store.activate("one"), lambda: activate_parent(store)):
        with pytest.raises(InvalidReleaseError) as caught:
            attempt()
        assert caught.value.file == "index.faiss"
    assert store.get_current().release == "two"


def test_rollback_without_current_or_parent_is_refused(store):
    with pytest.raises(StoreError, match="no release"):
        activate_parent(store)
    publish(store, "one")
    publish(store, "two")
    for path in [*store.get_release_dir("one").iterdir()]:
        path.unlink()
    store.get_release_dir("one").rmdir()
    with pytest.raises(StoreError, match="was pruned"):
        activate_parent(store)


def test_prune_keeps_newest_current_and_parent(store):
    for name in ("a", "b", "c", "d", "e"):
        publish(store, name)
    store.activate("c")
    assert store.prune(10) == []
    assert store.prune(1) == ["d", "a"]
    assert list_names(store) == ["e", "c", "b"]
    assert store.prune(0) == ["e"]
    assert list_leftovers(store) == []
    assert activate_parent(store) == ("b", "c")
    with pytest.raises(StoreError, match="keep is -1"):
        store.prune(-1)


def test_crash_while_pruning_leaves_no_half_deleted_release(store, monkeypatch):
    for name in ("a", "b", "c", "d"):
        publish(store, name)

    def crash(*_args, **_kwargs):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", crash)
        with pytest.raises(Crash):
            store.prune(1)
    assert list_names(store) == ["d", "c"]
    assert len(list_leftovers(store)) == 2
    store.prune(1)
    assert list_leftovers(store) == []


def test_damaged_manifest_fails_list_and_prune(store):
    publish(store, "one")
    publish(store, "two")
    (store.get_release_dir("one") / "manifest.json").write_bytes(b"{}")
    for attempt in (store.list_releases, lambda: store.prune(1)):
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
def test_damaged_current_is_refused_and_fixed_by_activate(store, content):
    publish(store, "one")
    (store.path / "CURRENT").write_bytes(content.replace(b"%s", b"0" * 64))
    with pytest.raises(InvalidReleaseError, match="CURRENT") as caught:
        store.verify()
    assert caught.value.file == "CURRENT"
    store.activate("one")
    assert store.verify().name == "one"


def test_draft_is_refused_while_current_is_damaged(store):
    (store.path / "CURRENT").write_bytes(b"{")
    with pytest.raises(InvalidReleaseError, match="CURRENT"), store.create_draft():
        pytest.fail("too late")


def test_path_that_is_not_a_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        Store.open(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match="cannot be a store: it, or a parent of it, is a file"):
            Store.open_or_create(path)
    empty = Store.open_or_create(tmp_path / "store")
    with pytest.raises(StoreError, match="no release"):
        empty.get_current()
    with pytest.raises(StoreError, match="has none"):
        empty.activate("one")


def test_changes_to_locked_store_fail_with_the_holders_pid(store, monkeypatch):
    monkeypatch.setattr(store_module, "_LOCK_TIMEOUT_SECONDS", 0.05)
    publish(store, "one")
    with file_lock(store.path / "store.lock", timeout=0):
        for attempt in (lambda: publish(store), lambda: store.activate("one"), lambda: store.prune(1)):
            with pytest.raises(LockedError) as caught:
                attempt()
            assert caught.value.pid == os.getpid()
        assert store.verify().name == "one"  # readers take no lock


PUBLISHER = """
import sys
from pathlib import Path
from vecall.index.index_info import IndexInfo
from vecall.release.manifest import ReleaseMetadata
from vecall.release.store import Store
store = Store.open_or_create(Path(sys.argv[1]))
for _ in range(5):
    with store.create_draft() as draft:
        (draft.directory / "index.faiss").write_bytes(b"vectors")
        metadata = ReleaseMetadata(items=1, dim=2, id_type="integer", index=IndexInfo(engine="exact"))
        print(draft.commit(metadata, activate=True))
"""


def test_concurrent_publishers_all_succeed(tmp_path):
    path = tmp_path / "store"
    publishers = [
        subprocess.Popen([sys.executable, "-c", PUBLISHER, path], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    published = [name for process in publishers for name in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in publishers] == [0] * 4
    store = Store.open(path)
    assert len(set(published)) == 20
    assert sorted(published) == sorted(list_names(store))
    assert all(store.verify(name) for name in published)
    # The parent of each release was current when it was published: the releases form a chain.
    manifests = store.list_releases()
    assert [manifest.parent for manifest in manifests] == [manifest.name for manifest in manifests[1:]] + [None]
    assert store.get_current().release == manifests[0].name
    assert list_leftovers(store) == []


def test_draft_that_disappears_while_stale_drafts_are_removed_is_ignored(store, monkeypatch):
    """Its process removes it at its end, without the store's lock."""
    (store.path / "tmp-ending").mkdir()
    is_in_use = drafts._is_in_use

    def remove_first(draft_dir):
        draft_dir.rmdir()
        return is_in_use(draft_dir)

    monkeypatch.setattr(drafts, "_is_in_use", remove_first)
    assert publish(store, "one") == "one"
    assert list_leftovers(store) == []


def test_release_that_disappears_while_it_is_verified_is_refused(store, monkeypatch):
    publish(store, "one")

    def prune_first(path):
        path.unlink()
        return compute_sha256(path)

    monkeypatch.setattr(manifest_module, "compute_sha256", prune_first)
    with pytest.raises(InvalidReleaseError, match=r"index.faiss is missing or cannot be read") as caught:
        store.verify("one")
    assert caught.value.file == "index.faiss"


def test_leftover_that_cannot_be_removed_stops_nothing(store, monkeypatch, caplog):
    """Such as that of another user; a link to a directory elsewhere is unlinked."""
    (store.path / "tmp-foreign").mkdir()
    (store.path / "elsewhere").mkdir()
    (store.path / "tmp-link").symlink_to(store.path / "elsewhere")
    rmtree = shutil.rmtree

    def refuse(path, **options):
        if path.name == "tmp-foreign":
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert publish(store, "one") == "one"
    assert list_leftovers(store) == [store.path / "tmp-foreign"]
    assert (store.path / "elsewhere").is_dir()
    assert "tmp-foreign is left over and cannot be removed" in caplog.text


def test_release_whose_base_was_pruned_meanwhile_is_given_up(store):
    """Operations that it does not contain may have been pruned with the base."""
    publish(store, "one")
    with pytest.raises(StoreError, match="no release 'gone'"), store.create_draft("two") as draft:
        draft.commit(METADATA, activate=True, base="gone")
    assert [manifest.name for manifest in store.list_releases()] == ["one"]
    assert list_leftovers(store) == []
