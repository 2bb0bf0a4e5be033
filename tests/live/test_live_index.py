"""Writes, locks and swaps of an opened store."""

import logging
import os
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest

from vecall.errors import DeltaFullError, InvalidReleaseError, JournalIOError, LockedError, QueryError, StoreError
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
def store(store_of):
    return store_of(IDS, np.diag([1, 2, 3, 4]), attributes=COLOURS)


@pytest.fixture
def writer(store):
    with open_recaller(store.path, writable=True) as recaller:
        yield recaller


def item(one, *vector, **fields):
    return {"id": one, "vector": list(vector), "fields": fields}


def answer(recaller, **query):
    found = recaller.recall(Query(**{"vector": ANY, "k": 99} | query))
    assert found.exhausted
    return dict(zip(found.ids, found.scores, strict=True))


BASE = {4: 4, 3: 3, 2: 2, 1: 1}


def test_the_next_request_sees_a_write(writer):
    assert answer(writer) == BASE
    assert writer.upsert([item(9, 5, 5, 0, 0, colour="red"), item(2, 0, 0, 0, 7)]) == 2
    assert list(answer(writer).items()) == [(9, 10), (2, 7), (4, 4), (3, 3), (1, 1)]
    assert answer(writer, where=[{"field": "colour", "op": "eq", "value": "red"}]) == {9: 10, 3: 3, 1: 1}
    assert answer(writer, where=[{"field": "colour", "op": "eq", "value": "blue"}]) == {}  # what is left out is null
    assert answer(writer, exclude=[9, 1, 77]) == {2: 7, 4: 4, 3: 3}
    table = writer.candidates(Query(vector=ANY, k=3))
    assert table.rows() == [(9, 10, 1, "vector", "red"), (2, 7, 2, "vector", None), (4, 4, 3, "vector", None)]
    plan = writer.recall(Query(vector=ANY, k=99, exclude=[9], explain=True)).plan
    assert (plan.matches, plan.excluded, plan.delta) == (5, 1, 1)
    assert writer.delete([9, 1, 77, 1]) == 2
    assert answer(writer) == {2: 7, 4: 4, 3: 3}
    assert writer.recall(Query(vector=ANY, history=[9, 1], exclude=[9])).unknown.history == 0
    assert writer.upsert([item(1, 0, 0, 0, 1)]) == 1
    assert answer(writer)[1] == 1


def test_what_a_service_has_to_say(writer):
    live = writer.live
    assert live.upsert([item(9, *ANY), item(8, *ANY), item(9, *ANY)]) == UpsertResult("one", 2, 2)
    assert live.delete([9, 1, 77]) == DeleteResult("one", 5, 2, 1)
    assert live.delete([9]) == DeleteResult("one", 6, 0, 1)
    assert live.upsert([]) == UpsertResult("one", 6, 0)
    assert live.delete([]) == DeleteResult("one", 6, 0, 0)
    with pytest.raises(QueryError):
        live.upsert([item(5, *ANY), item(6, 1)])
    assert live.snapshot.seq == 6  # all or none


def test_writes_outlive_the_writer(store):
    with open_recaller(store.path, writable=True) as recaller:
        recaller.upsert([item(9, 5, 5, 0, 0, colour="red"), item(8, *ANY)])
        recaller.delete([8, 1])
        before = open_recaller(store.path)
        recaller.upsert([item(7, *ANY)])
        expected, view = answer(recaller), recaller.live_index.snapshot
    assert 7 in expected
    assert answer(before) == {one: score for one, score in expected.items() if one != 7}  # as of opening
    assert len(view) == 5  # a view can be read on
    for options in ({}, {"writable": True}, {"release": "one"}):
        with open_recaller(store.path, **options) as again:
            assert (answer(again), again.live_index.snapshot.seq) == (expected, 5)
            assert again.candidates(Query(vector=ANY, k=1))["colour"].to_list() == ["red"]


def test_one_writer_at_a_time(store):
    code = "import sys, vecall; vecall.open_recaller(sys.argv[1], writable=True); print('open', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(LockedError, match=f"process {other.pid}") as caught:
            open_recaller(store.path, writable=True)
        assert caught.value.pid == other.pid
        assert answer(open_recaller(store.path)) == BASE
    finally:
        other.communicate("\n")
    with open_recaller(store.path, writable=True), pytest.raises(LockedError) as caught:
        open_recaller(store.path, writable=True)
    assert caught.value.pid == os.getpid()
    open_recaller(store.path, writable=True).close()


def test_a_failed_opening_lets_go(store):
    (store.folder("one") / "index.faiss").write_bytes(b"x")
    with pytest.raises(InvalidReleaseError):
        open_recaller(store.path, writable=True)
    publish_vectors(store.path, IDS, np.eye(4), name="two")
    open_recaller(store.path, writable=True).close()


def test_who_only_reads_writes_nothing(store, writer):
    for recaller in (open_recaller(store.path), Recaller(LiveIndex.from_release(writer.live.snapshot.release))):
        for write in (lambda r=recaller: r.upsert([item(9, *ANY)]), lambda r=recaller: r.delete([1])):
            with pytest.raises(StoreError, match="open it with writable=True"):
                write()
    with pytest.raises(StoreError, match="has no store"):
        recaller.activate("one")
    writer.close()
    with pytest.raises(StoreError, match="open it with writable=True"):
        writer.upsert([item(9, *ANY)])
    writer.close()


def test_a_full_delta(store):
    with open_recaller(store.path, writable=True, max_delta_items=3, auto_compact=False) as recaller:
        recaller.upsert([item(9, *ANY), item(1, *ANY)])
        with pytest.raises(
            DeltaFullError, match=r"2 live delta items.* 2 more would exceed max_delta_items = 3"
        ) as caught:
            recaller.upsert([item(8, *ANY), item(7, *ANY)])
        assert (caught.value.code, recaller.live_index.snapshot.seq) == ("delta_full", 2)
        recaller.upsert([item(8, *ANY)])
        recaller.upsert([item(8, 0, 0, 0, 9), item(9, *ANY)])  # what is there may change
        assert recaller.delete([2, 9]) == 2  # and go
        with pytest.raises(DeltaFullError):
            recaller.upsert([item(7, *ANY)])
        expected = answer(recaller)
    with open_recaller(store.path, writable=True, max_delta_items=1, auto_compact=False) as recaller:
        assert answer(recaller) == expected  # what is written is there, however much


def test_a_journal_that_fails(writer, monkeypatch):
    """Nothing is applied; reads go on, and so do writes once the disk does."""
    append = Journal.append

    def full(*_):
        raise JournalIOError("the disk is full", disk_full=True)

    monkeypatch.setattr(Journal, "append", full)
    for write in (lambda: writer.upsert([item(9, *ANY)]), lambda: writer.delete([1])):
        with pytest.raises(JournalIOError):
            write()
        assert answer(writer) == BASE
    monkeypatch.setattr(Journal, "append", append)
    assert writer.live.upsert([item(8, *ANY)]).seq == 1
    assert answer(writer) == BASE | {8: 4}


def test_what_a_failing_disk_has_kept_all_the_same(writer, monkeypatch):
    """It was not acknowledged; but the next view has it, as the next opening would."""
    append = Journal.append

    def kept(journal, operations):
        append(journal, operations)
        raise JournalIOError("no word from the disk", disk_full=False)

    monkeypatch.setattr(Journal, "append", kept)
    with pytest.raises(JournalIOError):
        writer.upsert([item(9, *ANY)])
    assert answer(writer) == BASE
    monkeypatch.setattr(Journal, "append", append)
    assert writer.delete([1]) == 1
    assert answer(writer) == {4: 4, 9: 4, 3: 3, 2: 2}
    assert writer.live.snapshot.seq == 2


def test_another_release_is_gone_over_to(store, writer):
    writer.upsert([item(9, *ANY)])
    writer.delete([1])
    publish_vectors(store.path, [1, 5, 6], np.eye(3, 4), name="two", activate=False)
    old = writer.live.snapshot
    assert writer.activate("two") == "one"
    assert (writer.release, store.current().release) == ("two", "two")
    assert answer(writer) == {9: 4, 5: 1, 6: 1}  # 1 stays deleted, 9 stays
    assert (old.release.name, len(old)) == ("one", 4)
    writer.upsert([item(6, 0, 0, 0, 3)])
    assert writer.activate("one") == "two"
    assert answer(writer) == {9: 4, 4: 4, 3: 3, 6: 3, 2: 2}


def test_a_release_that_cannot_be_gone_over_to(store, writer):
    writer.upsert([item(9, *ANY)])
    publish_vectors(store.path, ["a"], np.ones((1, 4)), name="strings", activate=False)
    publish_vectors(store.path, IDS, np.eye(4), name="damaged", activate=False)
    file = store.folder("damaged") / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for name, error in (
        ("strings", "has string ids, but .* integer ids"),
        ("damaged", "damaged"),
        ("none", "no release"),
    ):
        with pytest.raises(StoreError, match=error):
            writer.activate(name)
        assert (writer.release, store.current().release) == ("one", "one")
        assert answer(writer)[9] == 4
    with pytest.raises(StoreError, match="for ids of type integer"):
        open_recaller(store.path, release="strings")


def test_writes_amid_a_swap_are_in_the_new_view(store, writer, monkeypatch):
    """They come after the new release was brought up to date, and before it is served."""
    publish_vectors(store.path, [1, 5], np.eye(2, 4), name="two", activate=False)
    activate = type(store).activate

    def slow(self, name):
        writer.upsert([item(9, *ANY)])
        writer.delete([5])
        assert answer(writer) == BASE | {9: 4}
        return activate(self, name)

    monkeypatch.setattr(type(store), "activate", slow)
    writer.activate("two")
    assert answer(writer) == {9: 4, 1: 1}


def test_vectors_of_another_encoder_are_counted(store, caplog):
    with Journal.open(get_journal_path(store), "integer") as journal:
        new = np.ones(4, dtype=np.float32)
        journal.append(
            [
                Operation(0, "upsert", 9, {"colour": "red"}, new, "ab", has_external_vector=True),
                Operation(
                    0, "upsert", 8, {"colour": "red"}, new, "ab", has_external_vector=False
                ),  # no tower here to make it again
                Operation(0, "upsert", 7, {}, new[:3], None, has_external_vector=True),  # of other vectors once
                Operation(0, "upsert", 6, {"colour": 3, "size": 1}, new, None, has_external_vector=True),
                Operation(0, "upsert", 1, {}, new, "ab", has_external_vector=True),
            ]
        )
    with caplog.at_level(logging.WARNING, "vecall"), open_recaller(store.path, writable=True) as recaller:
        assert answer(recaller) == BASE | {6: 4}
        assert (recaller.live_index.snapshot.rejected_seqs, recaller.live_index.snapshot.seq) == (
            {9: 1, 8: 2, 7: 3, 1: 5},
            5,
        )
        assert recaller.candidates(Query(vector=ANY, k=1, exclude=[4]))["colour"].to_list() == [None]
        recaller.delete([1])
        assert recaller.live_index.snapshot.rejected_seqs == {9: 1, 8: 2, 7: 3}  # a later operation has the last word
    assert "release one cannot take 4 operations of the journal" in caplog.text
    assert "has no place for values of the journal, by column: {'colour': 1, 'size': 1}" in caplog.text


def test_readers_among_writes(writer):
    """A deleted item never comes back, an upserted one is there at once, and every answer is of one moment."""
    stop, gone, there, wrong = threading.Event(), set(), set(), []

    def read():
        while not stop.is_set():
            absent, present = set(gone), set(there)
            found = writer.recall(Query(vector=[1.0, 0, 0, 0], k=1000))
            ids = set(found.ids)
            wrong.extend([("back", one) for one in absent & ids] + [("lost", one) for one in present - ids])
            if {100, 101} & ids not in (set(), {100, 101}):  # always written and deleted together
                wrong.append(("torn", ids & {100, 101}))
            if not found.exhausted or len(ids) != len(found.ids):
                wrong.append(("twice", found.ids))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for one in readers:
        one.start()
    for number in range(150):
        writer.upsert([item(1000 + number, number, 0, 0, 0), item(2, number, 0, 0, 0)])
        there.add(1000 + number)
        if number % 3 == 0:
            there.discard(1000 + number)
            writer.delete([1000 + number])
            gone.add(1000 + number)
        writer.upsert([item(100, 1, 0, 0, 0), item(101, 1, 0, 0, 0)])
        if number % 2:
            writer.delete([101, 100])
    stop.set()
    for one in readers:
        one.join()
    assert wrong == []
    assert len(gone) == 50
