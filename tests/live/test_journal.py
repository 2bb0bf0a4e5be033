"""The journal: what it keeps, what it refuses, who may use it at the same time."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions.journal_session import ExpectedJournal, dump_journal, make_delete, make_upsert, make_upserts

from vecall.errors import JournalCorruptedError, JournalIOError, QueryError, StoreError
from vecall.live import journal as module
from vecall.live import journal_sqlite
from vecall.live.journal import Journal
from vecall.live.operations import Operation

COLUMNS = ("seq", "kind", "id", "given", "fields", "encoder", "vector", "crc")
# Rows 1 .. 9: three superseded ones, one of them within its batch.
HISTORY = (
    make_upserts("b", 3),
    (make_upsert("b1", "again"), make_delete("b0")),
    (make_upsert("c", "one"), make_upsert("c", "two")),
    make_upserts("d", 2),
)


def expected(*batches: tuple[Operation, ...]) -> ExpectedJournal:
    state = ExpectedJournal()
    for one in batches:
        state = state.apply_step(("append", one))
    return state


def held(journal: Journal) -> list:
    return dump_journal(journal, journal.read_operations(0))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def written(path: Path) -> Path:
    with Journal.open(path, "string") as journal:
        for one in HISTORY:
            journal.append(one)
    return path


def damaged(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


# What it keeps


def test_what_is_appended_comes_back_as_it_was(path: Path) -> None:
    fields = {"标签": ["红", "", "\0"], "n": -0.1, "big": 2**70, "deep": {"a": [None, True, {}]}, "quote": '"\\\n😀'}
    vector = np.array([1.5, -0.0, np.float32(1e-45), 3e38], dtype=np.float32)
    for id_type, ids in (("string", ["", "a\0b", "é😀", "1"]), ("integer", [0, -(2**63), 2**63 - 1, 1])):
        with Journal.open(path.with_name(id_type), id_type) as journal:
            sent = [
                Operation(99, "upsert", ids[0], fields, vector, "tower", True),
                Operation(0, "upsert", ids[1], {}, vector[:0], None, False),
                Operation(0, "upsert", ids[2], None, vector[::2], "", True),
                Operation(0, "delete", ids[3], None, None, None, False),
            ]
            assert (journal.last_seq, journal.append(sent), journal.last_seq, journal.append([])) == (0, 4, 4, 4)
        for opened in (
            Journal.open(path.with_name(id_type), id_type),
            Journal.open_readonly(path.with_name(id_type), id_type),
        ):
            for number, (was, now) in enumerate(zip(sent, opened.read_operations(0), strict=True), 1):
                assert (now.seq, now.kind, now.id, type(now.id)) == (number, was.kind, was.id, type(was.id))
                assert (now.fields, now.encoder_hash, now.has_external_vector) == (
                    was.fields,
                    was.encoder_hash,
                    was.has_external_vector,
                )
                assert (now.vector is None) == (was.vector is None)
                assert was.vector is None or now.vector.tobytes() == was.vector.tobytes()
                assert was.vector is None or (now.vector.dtype, now.vector.ndim) == (np.float32, 1)
            opened.close()


def test_the_last_word_on_an_item_counts(written: Path) -> None:
    journal = Journal.open_readonly(written, "string")
    assert held(journal) == expected(*HISTORY).dump()
    assert [one.seq for one in journal.read_operations(0)] == [3, 4, 5, 7, 8, 9]
    assert [one.seq for one in journal.read_operations(4)] == [5, 7, 8, 9]
    assert [one.seq for one in journal.read_operations(0, until_seq=7)] == [3, 4, 5, 7]
    assert [one.seq for one in journal.read_operations(0, until_seq=3)] == [3]  # b0 and b1 changed later
    assert [list(journal.read_operations(*span)) for span in ((9,), (99,), (5, 4))] == [[], [], []]


def test_what_was_replaced_is_no_longer_on_the_disk(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append([make_upsert("a", "SECRET"), make_upsert("b", "kept")])
        journal.append([make_delete("a")])
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT kind, id, fields, vector FROM operations WHERE seq = 1").fetchall() == [
            ("superseded", None, None, None)
        ]
    assert [one.id for one in Journal.open_readonly(path, "string").read_operations(0)] == ["b", "a"]


def test_pruning(written: Path) -> None:
    with Journal.open(written, "string") as journal:
        assert [journal.prune(upto) for upto in (4, 4, -1, 0)] == [4, 0, 0, 0]
        assert held(journal) == expected(*HISTORY).apply_step(("prune", 4)).dump()
        assert (journal.prune(10**9), journal.pruned_to, journal.last_seq) == (5, 9, 9)
        assert not list(journal.read_operations(0))
    with Journal.open(written, "string") as journal:
        assert (journal.last_seq, journal.append([make_upsert("b0", "new")])) == (9, 10)
        assert [one.seq for one in journal.read_operations(0)] == [10]


IDS = st.sampled_from(["a", "b", "c", "é"])
OPERATIONS = st.builds(make_upsert, IDS, st.text(max_size=3)) | st.builds(make_delete, IDS)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(OPERATIONS, max_size=5).map(tuple)),
    st.tuples(st.just("prune"), st.integers(-1, 20)),
    st.just(("reopen",)),
    st.tuples(st.just("since"), st.integers(-1, 20), st.integers(-1, 20)),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=12))
def test_it_is_a_dict_of_the_last_operations(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, state = Path(folder) / "journal.sqlite", ExpectedJournal()
        journal = Journal.open(path, "string")
        for name, *values in steps:
            if name == "reopen":
                journal.close()
                journal = Journal.open(path, "string")
            elif name == "since":
                seqs = [one.seq for one in journal.read_operations(*values)]
                assert seqs == [seq for seq in _seqs(state) if values[0] < seq <= values[1]]
            else:
                result, before = getattr(journal, name)(*values), state
                state = state.apply_step((name, *values))
                assert result == (state.last_seq if name == "append" else state.pruned_to - before.pruned_to)
            assert held(journal) == state.dump()
        journal.close()


def _seqs(state: ExpectedJournal) -> list[int]:
    return [one.seq for one in state.operations.values()]


# What it refuses


@pytest.mark.parametrize(
    ("id_type", "bad"),
    [
        ("integer", make_upsert("1", "")),
        ("integer", make_delete(2**63)),
        ("integer", make_delete(True)),
        ("string", make_delete(1)),
        ("string", make_delete(None)),
        ("string", make_delete("\ud800")),
        ("string", Operation(0, "upsert", "a", {"x": float("nan")}, None, None, False)),
        ("string", Operation(0, "upsert", "a", {"x": object()}, None, None, False)),
        ("string", Operation(0, "upsert", "a", {"x": ["\udfff"]}, None, None, False)),
        ("string", Operation(0, "upsert", "a", None, np.ones((1, 2), dtype=np.float32), None, True)),
        ("string", Operation(0, "upsert", "a", None, np.ones(2), None, True)),
    ],
)
def test_a_batch_with_one_bad_operation_is_not_written(path: Path, id_type, bad: Operation) -> None:
    good = make_delete(1) if id_type == "integer" else make_delete("good")
    with Journal.open(path, id_type) as journal:
        with pytest.raises(QueryError):
            journal.append([good, bad])
        assert (journal.last_seq, journal.append([good])) == (0, 1)


def test_reading_is_not_writing(written: Path) -> None:
    journal = Journal.open_readonly(written, "string")
    closed = Journal.open(written, "string")
    closed.close()
    closed.close()
    for one in (journal, closed):
        with pytest.raises(StoreError, match=r"Journal\.open"):
            one.append([make_delete("a")])
        with pytest.raises(StoreError, match=r"Journal\.open"):
            one.prune(1)
    assert Journal.open_readonly(written.with_name("other"), "string") is None


def test_ids_of_another_type_are_refused(written: Path) -> None:
    with pytest.raises(StoreError, match="for ids of type string, expected format 1 and integer"):
        Journal.open(written, "integer")


def test_another_format_is_refused(written: Path) -> None:
    state = journal_sqlite.JournalHeader(2, "string", 0, 9).to_row()
    damaged(written, f"UPDATE state SET format = 2, crc = {state[-1]}")
    with pytest.raises(StoreError, match="of format 2"):
        Journal.open_readonly(written, "string")


def test_a_journal_is_made_once(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        journal_sqlite.create_journal(path, "string")  # another process, which saw none a moment ago
        assert journal.append(make_upserts("b", 1)) == 4
    assert Journal.open_readonly(path, "string").last_seq == 4
    assert not list(path.parent.glob("tmp-*"))


@pytest.mark.parametrize("what", ["a folder", "no folder", "no place"])
def test_where_no_journal_can_be(path: Path, what: str) -> None:
    if what == "a folder":
        path.mkdir()
    elif what == "no folder":
        path.parent.rmdir()
    else:
        path.parent.rmdir()
        path.parent.write_text("")
    with pytest.raises(JournalIOError):
        Journal.open(path, "string")


def test_a_read_only_disk_can_be_read(written: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    before = sorted(one.name for one in written.parent.iterdir())
    assert held(Journal.open_readonly(written, "string")) == expected(*HISTORY).dump()
    assert sorted(one.name for one in written.parent.iterdir()) == before


# Damage


def rows(path: Path) -> list[dict[str, object]]:
    with closing(sqlite3.connect(path)) as db:
        return [dict(zip(COLUMNS, row, strict=True)) for row in db.execute("SELECT * FROM operations")]


def refused(path: Path, seq: int | None = None) -> JournalCorruptedError:
    with pytest.raises(JournalCorruptedError, match="is damaged") as caught:
        list(Journal.open_readonly(path, "string").read_operations(0))
    assert caught.value.seq == seq
    return caught.value


def test_every_byte_of_a_row_is_guarded(written: Path) -> None:
    for row in rows(written):
        for column, value in row.items():
            if column == "seq":
                continue
            for changed in _changes(value):
                copy = Path(shutil.copy(written, written.with_name("copy")))
                with closing(sqlite3.connect(copy, isolation_level=None)) as db:
                    db.execute(f"UPDATE OR IGNORE operations SET {column} = ? WHERE seq = ?", (changed, row["seq"]))
                    if not db.execute("SELECT changes()").fetchone()[0]:
                        continue  # another item's id
                assert f"operation {row['seq']} " in str(refused(copy, row["seq"])), (column, changed)


def _changes(value) -> list:
    if value is None:
        return ["", 0, b""]
    if isinstance(value, int):
        return [value ^ 1, None, str(value) + "x", value + 0.5]
    content = value.encode() if isinstance(value, str) else value
    places = range(len(content)) if len(content) < 60 else [0, 1, 30, len(content) - 1]
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in places]
    kept = [one.decode() for one in flipped] if isinstance(value, str) else flipped
    return [*kept, None, content if isinstance(value, str) else content.hex(), value[:-1]]


@pytest.mark.parametrize("seq", range(1, 10))
def test_a_row_that_is_gone_is_missed(written: Path, seq: int) -> None:
    damaged(written, f"DELETE FROM operations WHERE seq = {seq}")
    refused(written, seq)


def test_rows_that_changed_places_are_refused(written: Path) -> None:
    damaged(written, *(f"UPDATE operations SET seq = {to} WHERE seq = {seq}" for seq, to in ((3, 99), (5, 3), (99, 5))))
    refused(written, 3)


def test_a_row_too_many_is_refused(written: Path) -> None:
    damaged(
        written,
        "INSERT INTO operations SELECT 10, kind, NULL, given, fields, encoder, vector, crc FROM operations LIMIT 1",
    )
    refused(written, 9)


@pytest.mark.parametrize("column", ["format", "id_type", "pruned_to", "last_seq", "crc"])
def test_what_a_journal_says_of_itself_is_guarded(written: Path, column: str) -> None:
    damaged(written, f"UPDATE state SET {column} = {column} + 1")
    refused(written)
    with pytest.raises(JournalCorruptedError):
        Journal.open(written, "string")


def test_damage_is_not_written_over(written: Path) -> None:
    damaged(written, "UPDATE operations SET fields = '{}' WHERE seq = 4")
    with Journal.open(written, "string") as journal:
        with pytest.raises(JournalCorruptedError, match="operation 4, to be replaced") as caught:
            journal.append([make_upsert("new", ""), make_upsert("b1", "later")])
        assert (caught.value.seq, journal.last_seq, journal.append([make_upsert("new", "")])) == (4, 9, 10)


def test_an_index_that_points_to_another_item_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    assert whole.count(b"d1\x09") == 1  # d1 stands at 9
    written.write_bytes(whole.replace(b"d1\x09", b"d2\x09"))
    with Journal.open(written, "string") as journal:
        with pytest.raises(JournalCorruptedError, match="operation 9, to be replaced"):
            journal.append([make_delete("d2")])
        assert held(journal) == expected(*HISTORY).dump()


def check_damaged_file(path: Path) -> bool:
    """What is answered is right, or it is refused, before and after writing. Whether it was refused before."""
    right, more = expected(*HISTORY), (make_upsert("b1", "more"), make_delete("d0"), make_upsert("e", "more"))
    refusals = []
    try:
        assert last_words(Journal.open_readonly(path, "string")) == right.dump()
    except StoreError as error:
        refusals.append(error)
    try:
        with Journal.open(path, "string") as journal:
            journal.append(more)
            assert last_words(journal) == right.apply_step(("append", more)).dump()
        assert last_words(Journal.open_readonly(path, "string")) == right.apply_step(("append", more)).dump()
    except StoreError:
        pass
    return bool(refusals)


def last_words(journal: Journal) -> list:
    """As `held`, for one whose index may be damaged."""
    operations: dict[object, Operation] = {}
    for one in journal.read_operations(0):
        operations.pop(one.id, None)
        operations[one.id] = one
    return dump_journal(journal, operations.values())


def flip(path: Path, places) -> None:
    whole = path.read_bytes()
    for place in places:
        for bit in (place % 8, (place + 3) % 8):
            copy = path.with_name("copy")
            copy.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            for beside in ("copy-wal", "copy-shm"):
                path.with_name(beside).unlink(missing_ok=True)
            try:
                check_damaged_file(copy)
            except BaseException as error:
                error.add_note(f"byte {place}, bit {bit}")
                raise


def test_a_flipped_bit_does_not_go_unseen(written: Path) -> None:
    used = [place for place, byte in enumerate(written.read_bytes()) if byte]
    flip(written, [*range(0, 100, 3), *used[::17]])


@pytest.mark.slow
def test_no_flipped_bit_goes_unseen(written: Path) -> None:
    content = written.read_bytes()
    flip(written, [place for place, byte in enumerate(content) if byte or place % 16 == 0])


def test_a_truncated_file_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    for size in range(0, len(whole), 512):
        copy = written.with_name("copy")
        copy.write_bytes(whole[:size])
        assert check_damaged_file(copy) or size > 12288, size  # SQLite's index, which readers do not need, comes last


def test_a_file_that_is_gone_but_for_its_wal_is_missed(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        path.unlink()
        with pytest.raises(JournalCorruptedError, match="gone"):
            Journal.open(path, "string")


def test_a_damaged_wal_gives_whole_batches_or_nothing(path: Path, tmp_path_factory) -> None:
    journal = Journal.open(path, "string")
    for one in HISTORY:
        journal.append(one)
    crashed = tmp_path_factory.mktemp("crashed")
    shutil.copy(path, crashed / path.name)
    wal = path.with_name(path.name + "-wal").read_bytes()
    journal.close()
    prefixes = [expected(*HISTORY[:count]).dump() for count in range(len(HISTORY) + 1)]
    found = []
    for place in [*range(60), *range(60, len(wal), 211)]:
        (crashed / f"{path.name}-wal").write_bytes(wal[:place] + bytes([wal[place] ^ 1]) + wal[place + 1 :])
        (crashed / f"{path.name}-shm").unlink(missing_ok=True)
        found.append(prefixes.index(held(Journal.open_readonly(crashed / path.name, "string"))))
    assert found == sorted(found)  # what stands before the damage is there
    assert set(found) == set(range(len(HISTORY)))  # SECURITY.md: the rest is lost in silence


# Together


def test_a_reader_sees_one_moment_and_holds_no_one_up(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_CHECKPOINT_EVERY", 10)
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 20))
        reading = journal.read_operations(0)
        first = next(reading)
        begun = time.monotonic()
        for number in range(5):
            journal.append(make_upserts("a", 20) + make_upserts(f"b{number}", 10))
        journal.prune(70)
        assert time.monotonic() - begun < 2  # checkpoints did not wait for the reader
        assert [first.seq, *(one.seq for one in reading)] == list(range(1, 21))
        journal.append([make_delete("a0")])
        assert path.with_name(path.name + "-wal").stat().st_size == 0  # and are made up for
        assert [one.seq for one in journal.read_operations(0)][-1] == journal.last_seq == 171


def test_a_pass_and_its_state_are_of_one_moment(written: Path, monkeypatch) -> None:
    with Journal.open(written, "string") as journal:

        def read_state(*given):
            state = journal_sqlite.read_header(*given)
            monkeypatch.undo()
            journal.prune(8)
            return state

        monkeypatch.setattr(module, "read_state", read_state)
        assert [one.seq for one in journal.read_operations(0)] == [3, 4, 5, 7, 8, 9]
        assert [one.seq for one in journal.read_operations(0)] == [9]


def test_checkpoints_keep_the_wal_short(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 600))
        assert wal.stat().st_size > 0
        journal.append(make_upserts("b", 400))
        assert wal.stat().st_size == 0
        journal.append(make_upserts("b", 1))
    assert not wal.exists()


def test_a_busy_journal_fails_and_goes_on(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(journal_sqlite, "PATIENCE", 0.05)
    with Journal.open(path, "string") as journal, closing(sqlite3.connect(path, isolation_level=None)) as other:
        journal.append(make_upserts("a", 1))
        before = journal._write_connection
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalIOError, match="another process has been busy") as caught:
            journal.append(make_upserts("b", 1))
        assert not caught.value.disk_full
        assert len(list(journal.read_operations(0))) == 1
        other.execute("ROLLBACK")
        assert journal.append(make_upserts("c", 1)) == 2
        assert journal._write_connection is not before  # who knows what is wrong with it
        assert [one.id for one in journal.read_operations(0)] == ["a0", "c0"]


def test_threads_take_turns(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        answers: list[int] = []

        def write(name: int) -> None:
            for number in range(10):
                answers.append(journal.append(make_upserts(f"{name}-{number}-", 3)))
                list(journal.read_operations(0))

        threads = [Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == list(range(3, 121, 3))
        groups = [one.id.rsplit("-", 1)[0] for one in journal.read_operations(0)]
        assert all(len(set(groups[i : i + 3])) == 1 for i in range(0, 120, 3))


OTHER = """
import sys
from pathlib import Path
from vecall.live.journal import Journal
path, most = Path(sys.argv[1]), 0
print("ready", flush=True)
while most < 600:
    reader = Journal.read(path, "string")
    seqs = [one.seq for one in reader.since(0)]
    assert seqs == sorted(set(seqs)) and seqs[-1:] >= [reader.last_seq], seqs
    assert reader.last_seq >= most
    most = reader.last_seq
    with Journal.open(path, "string") as pruner:
        pruner.prune(most - 100)
print("done", pruner.pruned_to)
"""


def test_another_process_reads_and_prunes_meanwhile(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        command = [sys.executable, "-c", OTHER, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "ready\n"
            for number in range(200):
                assert journal.append(make_upserts("ab"[number % 2], 3)) == 6 + 3 * number
            said, wrong = other.communicate(timeout=30)
        assert said.startswith("done"), wrong
        assert journal.append([make_delete("z")]) == 604
        assert journal.pruned_to == int(said.split()[1])
        assert [one.id for one in journal.read_operations(journal.pruned_to)] == [
            "a0",
            "a1",
            "a2",
            "b0",
            "b1",
            "b2",
            "z",
        ]


def test_it_is_quick_enough(path: Path) -> None:
    """Loosely: the machine may be busy. The figures are in benchmarks/."""
    vectors = np.random.default_rng(0).standard_normal((5_000, 128), dtype=np.float32)
    items = [Operation(0, "upsert", i, {"year": i, "tags": ["a", "b"]}, vectors[i], "e", False) for i in range(5_000)]
    with Journal.open(path, "integer") as journal:
        begun = time.perf_counter()
        for start in range(0, 5_000, 1_000):
            journal.append(items[start : start + 1_000])
        written = time.perf_counter()
        assert sum(1 for _ in journal.read_operations(0)) == 5_000
        read = time.perf_counter()
    assert written - begun < 2.5
    assert read - written < 1
