"""Processes that write to and serve the same store: a write of one is visible to the next request to another."""

import random
import shutil
import threading

import numpy as np
import pytest

from vecall.errors import JournalCorruptedError, LockedError, StoreError
from vecall.live.compaction import compact
from vecall.live.journal_sqlite import JournalVersionReader
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import LiveState, PeerSettings
from vecall.live.pruning import get_journal_path, prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.file_lock import file_lock

EYE = np.eye(4, dtype=np.float32)


def make_item(item_id, axis=0):
    return {"id": item_id, "vector": EYE[axis].tolist()}


def list_live_ids(live_index):
    snapshot = live_index.snapshot
    rows = np.arange(snapshot.release.vectors.size + len(snapshot.delta))
    return sorted(snapshot.to_ids(rows[snapshot.is_live(rows)]))


def open_reader(store, peers=PeerSettings()):  # noqa: B008 - frozen
    return LiveIndex.open(store, None, writable=False, peers=peers)


@pytest.fixture
def store(make_store):
    return make_store([1, 2, 3, 4], EYE)


@pytest.fixture
def writers(store, tmp_path):
    """Two live indexes that share a write lock, as those of two processes do."""
    peers = PeerSettings(tmp_path / "write.lock")
    opened = [LiveIndex.open(store, None, writable=True, peers=peers) for _ in range(2)]
    yield opened
    for writer in opened:
        writer.close()


def test_refresh_applies_the_writes_of_the_other(writers):
    first, second = writers
    first.upsert([make_item(9)])
    assert list_live_ids(second) == [1, 2, 3, 4]
    second.refresh()
    assert list_live_ids(second) == [1, 2, 3, 4, 9]
    second.delete([9, 1])
    first.refresh()
    assert list_live_ids(first) == [2, 3, 4]
    assert first.snapshot.seq == second.snapshot.seq == 3


def test_write_sees_all_earlier_writes(writers):
    first, second = writers
    first.upsert([make_item(9)])
    assert second.delete([9]).deleted == 1
    assert first.delete([9]).deleted == 0
    assert [result.seq for result in (second.upsert([make_item(7)]), first.upsert([make_item(8)]))] == [4, 5]


def test_refresh_without_new_writes_does_not_read_the_journal(writers, monkeypatch):
    writers[0].upsert([make_item(9)])
    for writer in writers:
        writer.refresh()
    monkeypatch.setattr(LiveState, "catch_up", lambda *_: pytest.fail("the journal was read"))
    for writer in writers:
        writer.refresh()


def test_reader_follows_writes_if_it_has_peers(store, writers):
    with_peers, without_peers = open_reader(store), open_reader(store, None)
    writers[0].upsert([make_item(9)])
    for reader in (with_peers, without_peers):
        reader.refresh()
    assert 9 in list_live_ids(with_peers)
    assert 9 not in list_live_ids(without_peers)


def test_reader_stops_following_when_it_is_closed(store, writers):
    reader = open_reader(store)
    version_reader = reader._state._version_reader
    reader.close()
    writers[0].upsert([make_item(9)])
    reader.refresh()
    assert list_live_ids(reader) == [1, 2, 3, 4]
    assert version_reader._connection is None  # it was not opened again
    reader.close()


def test_reader_follows_a_journal_that_is_created_later(store):
    reader = open_reader(store)
    reader.refresh()
    writer = LiveIndex.open(store, None, writable=True)
    writer.upsert([make_item(9)])
    reader.refresh()
    assert 9 in list_live_ids(reader)
    writer.close()


def test_reader_follows_writers_that_come_and_go(store):
    """When the last writer closes, the -wal file is removed."""
    reader = open_reader(store)
    for number in range(3):
        writer = LiveIndex.open(store, None, writable=True)
        writer.upsert([make_item(10 + number)])
        reader.refresh()
        assert list_live_ids(reader)[-1] == 10 + number
        writer.close()
        reader.refresh()
    assert list_live_ids(reader) == [1, 2, 3, 4, 10, 11, 12]


def test_write_fails_while_another_process_writes(writers, tmp_path, monkeypatch):
    monkeypatch.setattr("vecall.live.live_index._WRITE_LOCK_TIMEOUT_SECONDS", 0.05)
    with file_lock(tmp_path / "write.lock", timeout=0), pytest.raises(LockedError):
        writers[0].upsert([make_item(9)])
    writers[0].upsert([make_item(9)])


def test_switch_to_a_release_that_the_other_activated_has_all_writes(store, writers):
    first, second = writers
    first.upsert([make_item(9)])
    publish_vectors(store.path, [1, 2, 3, 4, 5], np.vstack([EYE, EYE[:1]]), name="two", activate=False)
    first.activate("two")
    second.upsert([make_item(8)])
    assert second.switch_to_current() == "two"
    first.refresh()
    assert list_live_ids(first) == list_live_ids(second) == [1, 2, 3, 4, 5, 8, 9]


def test_switch_to_a_compaction_of_writes_that_were_not_seen_yet(store, writers):
    """The release contains operations beyond the end of the journal as this process has last seen it."""
    first, second = writers
    first.upsert([make_item(9)])
    compacted_name = compact(store.path)
    assert second.switch_to_current() == compacted_name
    assert list_live_ids(second) == [1, 2, 3, 4, 9]


def test_reader_of_a_pruned_release_reports_it_and_keeps_its_snapshot(store, writers):
    """Operations that the release lacks may be pruned as well, so it cannot be refreshed."""
    reader = open_reader(store)
    first, _ = writers
    served = reader.snapshot.release.name
    publish_vectors(store.path, [1, 2], EYE[:2], name="two", journal_seq=first.snapshot.seq)
    first.switch_to_current()
    first.upsert([make_item(9)])
    publish_vectors(store.path, [1, 2, 9], EYE[:3], name="three", journal_seq=first.snapshot.seq)
    assert served in prune_store(store, keep=0).release_names
    before = reader.snapshot
    for _ in range(2):
        with pytest.raises(StoreError):
            reader.refresh()
        assert reader.snapshot is before
    assert reader.switch_to_current() == "three"
    reader.refresh()
    assert list_live_ids(reader) == [1, 2, 9]


def test_refresh_reports_a_corrupted_journal(store, writers):
    reader = open_reader(store)
    for writer in writers:
        writer.upsert([make_item(9)])
        writer.close()
    path = get_journal_path(store)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(JournalCorruptedError):
        reader.refresh()
    assert list_live_ids(reader) == [1, 2, 3, 4]


def test_journal_version_changes_when_the_file_is_replaced(store, writers, tmp_path):
    for writer in writers:
        writer.close()
    path = get_journal_path(store)
    version_reader = JournalVersionReader(path)
    before = version_reader.current_version()
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    assert version_reader.current_version() != before
    path.unlink()
    assert version_reader.current_version() is None
    version_reader.close()


def test_concurrent_writers_see_each_others_writes(writers):
    """Two threads per live index; each write is visible in the other index after a refresh."""
    errors, rng = [], random.Random(0)
    id_lists = [[rng.randrange(20) for _ in range(40)] for _ in range(4)]

    def write(number):
        own_index, other_index = writers[number % 2], writers[1 - number % 2]
        for step, id_number in enumerate(id_lists[number]):
            item_id = 100 * (number + 1) + id_number
            is_upsert = bool(step % 3)
            result = own_index.upsert([make_item(item_id, step % 4)]) if is_upsert else own_index.delete([item_id])
            other_index.refresh()
            if other_index.snapshot.seq < result.seq or (item_id in list_live_ids(other_index)) != is_upsert:
                errors.append((number, step))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.refresh()
    assert not errors
    assert list_live_ids(writers[0]) == list_live_ids(writers[1])
    assert writers[0].snapshot.seq == writers[1].snapshot.seq == 160
