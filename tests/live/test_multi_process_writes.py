"""Processes that write and serve side by side: what one has acknowledged, the next question to another knows."""

import random
import shutil
import threading

import numpy as np
import pytest

from vecall.errors import JournalCorruptedError, LockedError, StoreError
from vecall.live.journal_sqlite import JournalVersionReader
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import LiveState, PeerSettings
from vecall.live.pruning import get_journal_path, prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.file_lock import file_lock

EYE = np.eye(4, dtype=np.float32)


def item(one, axis=0):
    return {"id": one, "vector": EYE[axis].tolist()}


def live_ids(source):
    view = source.snapshot
    return sorted(view.ids(np.flatnonzero(view.has(np.arange(view.release.index.size + len(view.delta))))))


@pytest.fixture
def store(store_of):
    return store_of([1, 2, 3, 4], EYE)


@pytest.fixture
def both(store, tmp_path):
    """Two that write; they are what two processes would be."""
    opened = [LiveIndex.open(store, None, writable=True, peers=PeerSettings(tmp_path / "turns")) for _ in range(2)]
    yield opened
    for one in opened:
        one.close()


def test_what_one_wrote_the_other_sees(both):
    first, second = both
    first.upsert([item(9)])
    assert live_ids(second) == [1, 2, 3, 4]
    second.refresh()
    assert live_ids(second) == [1, 2, 3, 4, 9]
    second.delete([9, 1])
    first.refresh()
    assert live_ids(first) == [2, 3, 4]
    assert first.snapshot.seq == second.snapshot.seq == 3


def test_each_write_is_checked_against_all_before_it(both):
    first, second = both
    first.upsert([item(9)])
    assert second.delete([9]).deleted == 1
    assert first.delete([9]).deleted == 0
    assert [one.seq for one in (second.upsert([item(7)]), first.upsert([item(8)]))] == [4, 5]


def test_nothing_is_read_again_where_nothing_was_written(both, monkeypatch):
    both[0].upsert([item(9)])
    for one in both:
        one.refresh()
    monkeypatch.setattr(LiveState, "catch_up", lambda *_: pytest.fail("it was read"))
    for one in both:
        one.refresh()


def test_who_only_reads_follows(store, both):
    reader, other = (LiveIndex.open(store, None, writable=False, peers=others) for others in (PeerSettings(), None))
    both[0].upsert([item(9)])
    for one in (reader, other):
        one.refresh()
    assert 9 in live_ids(reader)
    assert 9 not in live_ids(other)


def test_a_journal_that_comes_later_is_followed(store):
    reader = LiveIndex.open(store, None, writable=False, peers=PeerSettings())
    reader.refresh()
    writer = LiveIndex.open(store, None, writable=True)
    writer.upsert([item(9)])
    reader.refresh()
    assert 9 in live_ids(reader)
    writer.close()


def test_writers_come_and_go(store):
    """The last one to close takes the -wal along."""
    reader = LiveIndex.open(store, None, writable=False, peers=PeerSettings())
    for number in range(3):
        writer = LiveIndex.open(store, None, writable=True)
        writer.upsert([item(10 + number)])
        reader.refresh()
        assert live_ids(reader)[-1] == 10 + number
        writer.close()
        reader.refresh()
    assert live_ids(reader) == [1, 2, 3, 4, 10, 11, 12]


def test_another_writer_keeps_its_turn(both, tmp_path, monkeypatch):
    monkeypatch.setattr("vecall.live.live_index._WRITE_LOCK_TIMEOUT_SECONDS", 0.05)
    with file_lock(tmp_path / "turns", timeout=0), pytest.raises(LockedError):
        both[0].upsert([item(9)])
    both[0].upsert([item(9)])


def test_a_release_made_by_one_is_followed_with_what_came_after(store, both):
    first, second = both
    first.upsert([item(9)])
    publish_vectors(store.path, [1, 2, 3, 4, 5], np.vstack([EYE, EYE[:1]]), name="two", activate=False)
    first.activate("two")
    second.upsert([item(8)])
    assert second.switch_to_current() == "two"
    first.refresh()
    assert live_ids(first) == live_ids(second) == [1, 2, 3, 4, 5, 8, 9]


def test_a_release_newer_than_the_journal_that_was_opened_is_gone_over_to(store, both):
    """What it contains was written by the other process."""
    from vecall.live.compaction import compact

    first, second = both
    first.upsert([item(9)])
    made = compact(store.path)
    assert second.switch_to_current() == made
    assert live_ids(second) == [1, 2, 3, 4, 9]


def test_who_serves_what_was_pruned_says_so_and_goes_on(store, both):
    """Operations that it lacks may be gone as well, and it must not seem to have them."""
    reader = LiveIndex.open(store, None, writable=False, peers=PeerSettings())
    first, _ = both
    served = reader.snapshot.release.name
    publish_vectors(store.path, [1, 2], EYE[:2], name="two", journal_seq=first.snapshot.seq)
    first.switch_to_current()
    first.upsert([item(9)])
    publish_vectors(store.path, [1, 2, 9], EYE[:3], name="three", journal_seq=first.snapshot.seq)
    assert served in prune_store(store, keep=0).release_names
    before = reader.snapshot
    for _ in range(2):
        with pytest.raises(StoreError):
            reader.refresh()
        assert reader.snapshot is before
    assert reader.switch_to_current() == "three"
    reader.refresh()
    assert live_ids(reader) == [1, 2, 9]


def test_damage_does_not_pass_for_nothing_new(store, both):
    reader = LiveIndex.open(store, None, writable=False, peers=PeerSettings())
    for one in both:
        one.upsert([item(9)])
        one.close()
    path = get_journal_path(store)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(JournalCorruptedError):
        reader.refresh()
    assert live_ids(reader) == [1, 2, 3, 4]


def test_a_journal_brought_back_from_a_copy_is_looked_at_anew(store, both, tmp_path):
    for one in both:
        one.close()
    path, tail = get_journal_path(store), JournalVersionReader(get_journal_path(store))
    before = tail.current_version()
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    assert tail.current_version() != before
    path.unlink()
    assert tail.current_version() is None
    tail.close()


def test_many_at_once_end_in_the_same(both):
    """Threads of two processes' kind write and read; each write is seen by whoever looks after it."""
    wrong, rng = [], random.Random(0)
    jobs = [[rng.randrange(20) for _ in range(40)] for _ in range(4)]

    def work(number):
        mine, other = both[number % 2], both[1 - number % 2]
        for step, one in enumerate(jobs[number]):
            own = 100 * (number + 1) + one
            seq = (mine.upsert([item(own, step % 4)]) if step % 3 else mine.delete([own])).seq
            other.refresh()
            if other.snapshot.seq < seq or (own in live_ids(other)) != bool(step % 3):
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for one in both:
        one.refresh()
    assert not wrong
    assert live_ids(both[0]) == live_ids(both[1])
    assert both[0].snapshot.seq == both[1].snapshot.seq == 160
