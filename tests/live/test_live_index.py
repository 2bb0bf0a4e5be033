"""The live index: writes, their visibility, locks, release switches, closing."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import polars as pl
import pytest

from vecall.errors import (
    DeltaFullError,
    ForkError,
    InvalidReleaseError,
    JournalIOError,
    LockedError,
    QueryError,
    StoreError,
)
from vecall.live.journal import Journal
from vecall.live.live_index import DeleteResult, LiveIndex, UpsertResult
from vecall.live.operations import Operation
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller

IDS = [1, 2, 3, 4]
COLOURS = pl.DataFrame({"colour": ["red", "blue", "red", None]})
ANY = [1.0, 1.0, 1.0, 1.0]


@pytest.fixture
def store(make_store):
    return make_store(IDS, np.diag([1, 2, 3, 4]), attributes=COLOURS)


@pytest.fixture
def writer(store):
    with open_recaller(store.path, writable=True) as recaller:
        yield recaller


def make_item(item_id, *vector, **fields):
    return {"id": item_id, "vector": list(vector), "fields": fields}


def recall_scores(recaller, **query):
    """Return the scores of all matching items, by id in the order of the result."""
    result = recaller.recall(Query(**{"vector": ANY, "k": 99} | query))
    assert result.exhausted
    return dict(zip(result.ids, result.scores, strict=True))


BASE_SCORES = {4: 4, 3: 3, 2: 2, 1: 1}


def test_next_request_sees_a_write(writer):
    assert recall_scores(writer) == BASE_SCORES
    assert writer.upsert([make_item(9, 5, 5, 0, 0, colour="red"), make_item(2, 0, 0, 0, 7)]) == 2
    assert list(recall_scores(writer).items()) == [(9, 10), (2, 7), (4, 4), (3, 3), (1, 1)]
    assert recall_scores(writer, where=[{"field": "colour", "op": "eq", "value": "red"}]) == {9: 10, 3: 3, 1: 1}
    # Item 2 was blue; its upsert has no colour, so it is null now.
    assert recall_scores(writer, where=[{"field": "colour", "op": "eq", "value": "blue"}]) == {}
    assert recall_scores(writer, exclude=[9, 1, 77]) == {2: 7, 4: 4, 3: 3}
    table = writer.candidates(Query(vector=ANY, k=3))
    columns = table.select("id", "score", "rank", "channels", "colour").rows()
    assert columns == [(9, 10, 1, ["vector"], "red"), (2, 7, 2, ["vector"], None), (4, 4, 3, ["vector"], None)]
    plan = writer.recall(Query(vector=ANY, k=99, exclude=[9], explain=True)).plan
    assert (plan.matches, plan.excluded, plan.delta) == (5, 1, 1)
    assert writer.delete([9, 1, 77, 1]) == 2
    assert recall_scores(writer) == {2: 7, 4: 4, 3: 3}
    assert writer.recall(Query(vector=ANY, history=[9, 1], exclude=[9])).unknown.history == 0
    assert writer.upsert([make_item(1, 0, 0, 0, 1)]) == 1
    assert recall_scores(writer)[1] == 1


def test_results_of_writes_count_distinct_items_and_operations(writer):
    live_index = writer.live_index
    items = [make_item(9, *ANY), make_item(8, *ANY), make_item(9, *ANY)]
    assert live_index.upsert(items) == UpsertResult("one", 2, 2)
    assert live_index.delete([9, 1, 77]) == DeleteResult("one", 5, 2, 1)
    assert live_index.delete([9]) == DeleteResult("one", 6, 0, 1)
    assert live_index.upsert([]) == UpsertResult("one", 6, 0)
    assert live_index.delete([]) == DeleteResult("one", 6, 0, 0)
    with pytest.raises(QueryError):
        live_index.upsert([make_item(5, *ANY), make_item(6, 1)])
    assert live_index.snapshot.seq == 6  # all or none


def test_writes_are_there_after_reopening(store):
    with open_recaller(store.path, writable=True) as recaller:
        recaller.upsert([make_item(9, 5, 5, 0, 0, colour="red"), make_item(8, *ANY)])
        recaller.delete([8, 1])
        reader = open_recaller(store.path)
        recaller.upsert([make_item(7, *ANY)])
        expected, snapshot = recall_scores(recaller), recaller.live_index.snapshot
    assert 7 in expected
    # The reader serves the state as of its opening, and a snapshot stays readable after closing.
    assert recall_scores(reader) == {item_id: score for item_id, score in expected.items() if item_id != 7}
    assert len(snapshot) == 5
    for options in ({}, {"writable": True}, {"release": "one"}):
        with open_recaller(store.path, **options) as reopened:
            assert (recall_scores(reopened), reopened.live_index.snapshot.seq) == (expected, 5)
            assert reopened.candidates(Query(vector=ANY, k=1))["colour"].to_list() == ["red"]


def test_second_writer_is_rejected(store):
    code = "import sys, vecall; vecall.open_recaller(sys.argv[1], writable=True); print('open', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(LockedError, match=f"process {other.pid}") as caught:
            open_recaller(store.path, writable=True)
        assert caught.value.pid == other.pid
        assert recall_scores(open_recaller(store.path)) == BASE_SCORES
    finally:
        other.communicate("\n")
    with open_recaller(store.path, writable=True), pytest.raises(LockedError) as caught:
        open_recaller(store.path, writable=True)
    assert caught.value.pid == os.getpid()
    open_recaller(store.path, writable=True).close()


def test_failed_opening_releases_the_lock(store):
    (store.get_release_dir("one") / "index.faiss").write_bytes(b"x")
    with pytest.raises(InvalidReleaseError):
        open_recaller(store.path, writable=True)
    publish_vectors(store.path, IDS, np.eye(4), name="two")
    open_recaller(store.path, writable=True).close()


def test_readonly_and_closed_recallers_reject_writes(store, writer):
    single_release = Recaller(LiveIndex.from_release(writer.live_index.snapshot.release))
    for recaller in (open_recaller(store.path), single_release):
        with pytest.raises(StoreError, match="open it with writable=True"):
            recaller.upsert([make_item(9, *ANY)])
        with pytest.raises(StoreError, match="open it with writable=True"):
            recaller.delete([1])
    with pytest.raises(StoreError, match="has no store"):
        single_release.activate("one")
    writer.close()
    with pytest.raises(StoreError, match="open it with writable=True"):
        writer.upsert([make_item(9, *ANY)])
    writer.close()


def test_full_delta_rejects_new_items_only(store):
    with open_recaller(store.path, writable=True, max_delta_items=3, auto_compact=False) as recaller:
        recaller.upsert([make_item(9, *ANY), make_item(1, *ANY)])
        with pytest.raises(DeltaFullError, match=r"2 items, and 2 more would exceed max_delta_items = 3") as caught:
            recaller.upsert([make_item(8, *ANY), make_item(7, *ANY)])
        assert (caught.value.code, recaller.live_index.snapshot.seq) == ("delta_full", 2)
        recaller.upsert([make_item(8, *ANY)])
        recaller.upsert([make_item(8, 0, 0, 0, 9), make_item(9, *ANY)])
        assert recaller.delete([2, 9]) == 2
        with pytest.raises(DeltaFullError):
            recaller.upsert([make_item(7, *ANY)])
        expected = recall_scores(recaller)
    with open_recaller(store.path, writable=True, max_delta_items=1, auto_compact=False) as recaller:
        assert recall_scores(recaller) == expected  # the journal is replayed in full, beyond the capacity


def test_failed_append_changes_nothing(writer, monkeypatch):
    """Reads go on, and so do writes once the disk works again."""
    append = Journal.append

    def fail(*_):
        raise JournalIOError("the disk is full", disk_full=True)

    monkeypatch.setattr(Journal, "append", fail)
    for write in (lambda: writer.upsert([make_item(9, *ANY)]), lambda: writer.delete([1])):
        with pytest.raises(JournalIOError):
            write()
        assert recall_scores(writer) == BASE_SCORES
    monkeypatch.setattr(Journal, "append", append)
    assert writer.live_index.upsert([make_item(8, *ANY)]).seq == 1
    assert recall_scores(writer) == BASE_SCORES | {8: 4}


def test_append_that_succeeded_although_it_failed_is_applied_by_the_next_write(writer, monkeypatch):
    """It was not acknowledged, but the next snapshot has it, as the next opening would."""
    append = Journal.append

    def append_and_fail(journal, operations):
        append(journal, operations)
        raise JournalIOError("the disk does not respond", disk_full=False)

    monkeypatch.setattr(Journal, "append", append_and_fail)
    with pytest.raises(JournalIOError):
        writer.upsert([make_item(9, *ANY)])
    assert recall_scores(writer) == BASE_SCORES
    monkeypatch.setattr(Journal, "append", append)
    assert writer.delete([1]) == 1
    assert recall_scores(writer) == {4: 4, 9: 4, 3: 3, 2: 2}
    assert writer.live_index.snapshot.seq == 2


def test_activated_release_has_the_live_changes(store, writer):
    writer.upsert([make_item(9, *ANY)])
    writer.delete([1])
    publish_vectors(store.path, [1, 5, 6], np.eye(3, 4), name="two", activate=False)
    before = writer.live_index.snapshot
    assert writer.activate("two") == "one"
    assert (writer.release, store.get_current().release) == ("two", "two")
    assert recall_scores(writer) == {9: 4, 5: 1, 6: 1}  # without 1, which was deleted
    assert (before.release.name, len(before)) == ("one", 4)
    writer.upsert([make_item(6, 0, 0, 0, 3)])
    assert writer.activate("one") == "two"
    assert recall_scores(writer) == {9: 4, 4: 4, 3: 3, 6: 3, 2: 2}


def test_release_that_cannot_be_served_is_not_activated(store, writer, tmp_path):
    writer.upsert([make_item(9, *ANY)])
    publish_vectors(tmp_path / "other", ["a"], np.ones((1, 4)), name="strings")
    shutil.copytree(tmp_path / "other" / "releases" / "strings", store.path / "releases" / "strings")
    publish_vectors(store.path, IDS, np.eye(4), name="corrupted", activate=False)
    file = store.get_release_dir("corrupted") / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for name, error_type, message in (
        ("strings", StoreError, "has string ids, but .* integer ids"),
        ("corrupted", InvalidReleaseError, "index.faiss"),
        ("none", StoreError, "no release"),
    ):
        with pytest.raises(error_type, match=message):
            writer.activate(name)
        assert (writer.release, store.get_current().release) == ("one", "one")
        assert recall_scores(writer)[9] == 4
    with pytest.raises(StoreError, match="with ids of type integer, and this release has ids of type string"):
        open_recaller(store.path, release="strings")


def test_writes_during_a_switch_are_in_the_new_snapshot(store, writer, monkeypatch):
    """They come after the journal was replayed onto the new release, and before that is served."""
    publish_vectors(store.path, [1, 5], np.eye(2, 4), name="two", activate=False)
    activate = type(store).activate

    def write_and_activate(self, name):
        writer.upsert([make_item(9, *ANY)])
        writer.delete([5])
        assert recall_scores(writer) == BASE_SCORES | {9: 4}
        return activate(self, name)

    monkeypatch.setattr(type(store), "activate", write_and_activate)
    writer.activate("two")
    assert recall_scores(writer) == {9: 4, 1: 1}


def test_operations_that_the_release_cannot_take_are_listed_and_logged(store, caplog):
    with Journal.open(get_journal_path(store), "integer") as journal:
        vector, red = np.ones(4, dtype=np.float32), {"colour": "red"}
        journal.append(
            [
                Operation(0, "upsert", 9, red, vector, "ab", has_external_vector=True),
                # The release has no tower to compute this vector again.
                Operation(0, "upsert", 8, red, vector, "ab", has_external_vector=False),
                Operation(0, "upsert", 7, {}, vector[:3], None, has_external_vector=True),
                Operation(0, "upsert", 6, {"colour": 3, "size": 1}, vector, None, has_external_vector=True),
                Operation(0, "upsert", 1, {}, vector, "ab", has_external_vector=True),
            ]
        )
    with caplog.at_level(logging.WARNING, "vecall"), open_recaller(store.path, writable=True) as recaller:
        assert recall_scores(recaller) == BASE_SCORES | {6: 4}
        assert recaller.live_index.snapshot.rejected_seqs == {9: 1, 8: 2, 7: 3, 1: 5}
        assert recaller.live_index.snapshot.seq == 5
        assert recaller.candidates(Query(vector=ANY, k=1, exclude=[4]))["colour"].to_list() == [None]
        recaller.delete([1])  # replaces the rejected upsert
        assert recaller.live_index.snapshot.rejected_seqs == {9: 1, 8: 2, 7: 3}
    assert "release one rejected 4 journal operations" in caplog.text
    assert "their values are left out (column: operations): {'colour': 1, 'size': 1}" in caplog.text


def test_concurrent_readers_see_consistent_snapshots(writer):
    """A deleted item never comes back, an upserted one is there at once, and each result is of one snapshot."""
    stop, deleted_ids, upserted_ids, errors = threading.Event(), set(), set(), []

    def read():
        while not stop.is_set():
            absent, present = set(deleted_ids), set(upserted_ids)
            result = writer.recall(Query(vector=[1.0, 0, 0, 0], k=1000))
            ids = set(result.ids)
            errors.extend([("came back", item_id) for item_id in absent & ids])
            errors.extend([("lost", item_id) for item_id in present - ids])
            if {100, 101} & ids not in (set(), {100, 101}):  # always written and deleted together
                errors.append(("half of a batch", ids & {100, 101}))
            if not result.exhausted or len(ids) != len(result.ids):
                errors.append(("returned twice", result.ids))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(150):
        writer.upsert([make_item(1000 + number, number, 0, 0, 0), make_item(2, number, 0, 0, 0)])
        upserted_ids.add(1000 + number)
        if number % 3 == 0:
            upserted_ids.discard(1000 + number)
            writer.delete([1000 + number])
            deleted_ids.add(1000 + number)
        writer.upsert([make_item(100, 1, 0, 0, 0), make_item(101, 1, 0, 0, 0)])
        if number % 2:
            writer.delete([101, 100])
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert len(deleted_ids) == 50


def test_forked_child_does_not_touch_its_parents_journal(store, writer):
    """It neither waits for a lock that another thread of the parent holds, nor closes the parent's connection."""
    writer.upsert([make_item(9, *ANY)])
    with writer.live_index._state.journal._lock:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks with threads
            pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(_close_in_child(writer))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert get_journal_path(store).with_name("journal.sqlite-wal").stat().st_size > 0  # the child made no checkpoint
    assert writer.upsert([make_item(8, *ANY)]) == 1
    assert recall_scores(writer) == BASE_SCORES | {9: 4, 8: 4}


def _close_in_child(recaller):
    try:
        with pytest.raises(ForkError):
            recaller.live_index.refresh()
        recaller.close()
    except BaseException:  # noqa: BLE001 - the child must not continue as the test
        return 1
    return 0
