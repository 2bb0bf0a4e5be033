"""The journal: stored operations, rejected input, detection of corruption, and concurrent use."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sessions.journal_session import ExpectedJournal, dump_journal, make_delete, make_upsert, make_upserts

from vecall.errors import JournalCorruptedError, JournalIOError, QueryError, StoreError
from vecall.live import journal as journal_module
from vecall.live import journal_sqlite
from vecall.live.journal import Journal
from vecall.live.operations import Operation

COLUMNS = ("seq", "kind", "id", "given", "fields", "encoder", "vector", "crc")
# Batches that give rows 1 to 9, of which three are superseded, one of them by its own batch.
HISTORY = (
    make_upserts("b", 3),
    (make_upsert("b1", "again"), make_delete("b0")),
    (make_upsert("c", "one"), make_upsert("c", "two")),
    make_upserts("d", 2),
)


def expect(*batches: tuple[Operation, ...]) -> ExpectedJournal:
    """Return the expected journal after appending batches."""
    state = ExpectedJournal()
    for batch in batches:
        state = state.apply_step(("append", batch))
    return state


def dump(journal: Journal) -> list:
    return dump_journal(journal, journal.read_operations(0))


def read_seqs(journal: Journal, *bounds: int) -> list[int]:
    return [operation.seq for operation in journal.read_operations(*bounds)]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def written(path: Path) -> Path:
    """The path of a journal with the operations of `HISTORY`."""
    with Journal.open(path, "string") as journal:
        for batch in HISTORY:
            journal.append(batch)
    return path


def execute_sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# Stored operations


def test_appended_operations_are_read_back_unchanged(path: Path) -> None:
    fields = {"标签": ["红", "", "\0"], "n": -0.1, "big": 2**70, "deep": {"a": [None, True, {}]}, "quote": '"\\\n😀'}
    vector = np.array([1.5, -0.0, np.float32(1e-45), 3e38], dtype=np.float32)
    for id_type, ids in (("string", ["", "a\0b", "é😀", "1"]), ("integer", [0, -(2**63), 2**63 - 1, 1])):
        with Journal.open(path.with_name(id_type), id_type) as journal:
            appended = [
                Operation(99, "upsert", ids[0], fields, vector, "tower", True),
                Operation(0, "upsert", ids[1], {}, vector[:0], None, False),
                Operation(0, "upsert", ids[2], None, vector[::2], "", True),
                Operation(0, "delete", ids[3], None, None, None, False),
            ]
            assert (journal.last_seq, journal.append(appended), journal.last_seq, journal.append([])) == (0, 4, 4, 4)
        for opened in (
            Journal.open(path.with_name(id_type), id_type),
            Journal.open_readonly(path.with_name(id_type), id_type),
        ):
            for seq, (old, new) in enumerate(zip(appended, opened.read_operations(0), strict=True), 1):
                assert (new.seq, new.kind, new.id, type(new.id)) == (seq, old.kind, old.id, type(old.id))
                assert (new.fields, new.encoder_hash) == (old.fields, old.encoder_hash)
                assert new.has_external_vector == old.has_external_vector
                assert (new.vector is None) == (old.vector is None)
                assert old.vector is None or new.vector.tobytes() == old.vector.tobytes()
                assert old.vector is None or (new.vector.dtype, new.vector.ndim) == (np.float32, 1)
            opened.close()


def test_last_operation_of_each_item_is_read_in_order(written: Path) -> None:
    journal = Journal.open_readonly(written, "string")
    assert dump(journal) == expect(*HISTORY).dump()
    assert read_seqs(journal, 0) == [3, 4, 5, 7, 8, 9]
    assert read_seqs(journal, 4) == [5, 7, 8, 9]
    assert read_seqs(journal, 0, 7) == [3, 4, 5, 7]
    assert read_seqs(journal, 0, 3) == [3]  # b0 and b1 changed later
    assert [read_seqs(journal, *bounds) for bounds in ((9,), (99,), (5, 4))] == [[], [], []]


def test_content_of_superseded_operations_is_erased(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append([make_upsert("a", "SECRET"), make_upsert("b", "kept")])
        journal.append([make_delete("a")])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT kind, id, fields, vector FROM operations WHERE seq = 1").fetchall() == [
            ("superseded", None, None, None)
        ]
    operations = Journal.open_readonly(path, "string").read_operations(0)
    assert [operation.id for operation in operations] == ["b", "a"]


def test_pruned_operations_are_gone_and_their_numbers_stay_used(written: Path) -> None:
    with Journal.open(written, "string") as journal:
        assert [journal.prune(until_seq) for until_seq in (4, 4, -1, 0)] == [4, 0, 0, 0]
        assert dump(journal) == expect(*HISTORY).apply_step(("prune", 4)).dump()
        assert (journal.prune(10**9), journal.pruned_to, journal.last_seq) == (5, 9, 9)
        assert not read_seqs(journal, 0)
    with Journal.open(written, "string") as journal:
        assert (journal.last_seq, journal.append([make_upsert("b0", "new")])) == (9, 10)
        assert read_seqs(journal, 0) == [10]


IDS = st.sampled_from(["a", "b", "c", "é"])
OPERATIONS = st.builds(make_upsert, IDS, st.text(max_size=3)) | st.builds(make_delete, IDS)
STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(OPERATIONS, max_size=5).map(tuple)),
    st.tuples(st.just("prune"), st.integers(-1, 20)),
    st.just(("reopen",)),
    st.tuples(st.just("read"), st.integers(-1, 20), st.integers(-1, 20)),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=12))
def test_any_steps_give_the_expected_journal(steps: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path, state = Path(directory) / "journal.sqlite", ExpectedJournal()
        journal = Journal.open(path, "string")
        for name, *values in steps:
            if name == "reopen":
                journal.close()
                journal = Journal.open(path, "string")
            elif name == "read":
                all_seqs = [operation.seq for operation in state.operations.values()]
                assert read_seqs(journal, *values) == [seq for seq in all_seqs if values[0] < seq <= values[1]]
            else:
                result, before = getattr(journal, name)(*values), state
                state = state.apply_step((name, *values))
                assert result == (state.last_seq if name == "append" else state.pruned_to - before.pruned_to)
            assert dump(journal) == state.dump()
        journal.close()


# Rejected input


@pytest.mark.parametrize(
    ("id_type", "invalid"),
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
def test_batch_with_an_invalid_operation_is_not_written(path: Path, id_type, invalid: Operation) -> None:
    valid = make_delete(1) if id_type == "integer" else make_delete("valid")
    with Journal.open(path, id_type) as journal:
        with pytest.raises(QueryError):
            journal.append([valid, invalid])
        assert (journal.last_seq, journal.append([valid])) == (0, 1)


def test_readonly_and_closed_journals_reject_writes(written: Path) -> None:
    readonly = Journal.open_readonly(written, "string")
    closed = Journal.open(written, "string")
    closed.close()
    closed.close()
    for journal in (readonly, closed):
        with pytest.raises(StoreError, match=r"Journal\.open"):
            journal.append([make_delete("a")])
        with pytest.raises(StoreError, match=r"Journal\.open"):
            journal.prune(1)
    assert Journal.open_readonly(written.with_name("other"), "string") is None


def test_journal_with_ids_of_another_type_is_rejected(written: Path) -> None:
    with pytest.raises(StoreError, match="ids of type string, and this release has ids of type integer"):
        Journal.open(written, "integer")


def test_journal_of_another_format_is_rejected(written: Path) -> None:
    header_row = journal_sqlite.JournalHeader(2, "string", 0, 9).to_row()
    execute_sql(written, f"UPDATE state SET format = 2, crc = {header_row[-1]}")
    with pytest.raises(StoreError, match="of format 2"):
        Journal.open_readonly(written, "string")


def test_creating_a_journal_keeps_one_that_another_process_created(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        journal_sqlite.create_journal(path, "string")  # as a process does that saw no journal a moment ago
        assert journal.append(make_upserts("b", 1)) == 4
    assert Journal.open_readonly(path, "string").last_seq == 4
    assert not list(path.parent.glob("tmp-*"))


def test_creating_a_journal_whose_temporary_file_was_swept_begins_again(path: Path, monkeypatch) -> None:
    """A process that writes a release removes `tmp-*` files as leftovers of dead processes."""
    swept = []

    def sweep_once_and_link(source: Path, target: Path) -> None:
        if not swept:
            swept.append(source)
            source.unlink()
        link(source, target)

    link = os.link
    monkeypatch.setattr(os, "link", sweep_once_and_link)
    with Journal.open(path, "string") as journal:
        assert journal.append(make_upserts("a", 3)) == 3
    assert swept
    assert not list(path.parent.glob("tmp-*"))


@pytest.mark.parametrize("obstacle", ["path is a directory", "parent is missing", "parent is a file"])
def test_path_that_cannot_be_a_journal_is_an_io_error(path: Path, obstacle: str) -> None:
    if obstacle == "path is a directory":
        path.mkdir()
    elif obstacle == "parent is missing":
        path.parent.rmdir()
    else:
        path.parent.rmdir()
        path.parent.write_text("")
    with pytest.raises(JournalIOError):
        Journal.open(path, "string")


def test_journal_on_a_read_only_disk_can_be_read(written: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions would not stop root
    before = sorted(file.name for file in written.parent.iterdir())
    assert dump(Journal.open_readonly(written, "string")) == expect(*HISTORY).dump()
    assert sorted(file.name for file in written.parent.iterdir()) == before


# Corruption


def read_rows(path: Path) -> list[dict[str, object]]:
    with closing(sqlite3.connect(path)) as connection:
        return [dict(zip(COLUMNS, row, strict=True)) for row in connection.execute("SELECT * FROM operations")]


def check_reported_as_corrupted(path: Path, seq: int | None = None) -> JournalCorruptedError:
    with pytest.raises(JournalCorruptedError, match="is corrupted") as caught:
        list(Journal.open_readonly(path, "string").read_operations(0))
    assert caught.value.seq == seq
    return caught.value


def test_change_of_any_byte_of_a_row_is_detected(written: Path) -> None:
    for row in read_rows(written):
        for column, value in row.items():
            if column == "seq":
                continue
            for changed in _list_changes(value):
                copy = Path(shutil.copy(written, written.with_name("copy")))
                with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                    statement = f"UPDATE OR IGNORE operations SET {column} = ? WHERE seq = ?"
                    connection.execute(statement, (changed, row["seq"]))
                    if not connection.execute("SELECT changes()").fetchone()[0]:
                        continue  # ignored, because another row has that id
                error = check_reported_as_corrupted(copy, row["seq"])
                assert f"operation {row['seq']} " in str(error), (column, changed)


def _list_changes(value) -> list:
    """Return values that differ from a column's value in a byte, in length or in type."""
    if value is None:
        return ["", 0, b""]
    if isinstance(value, int):
        return [value ^ 1, None, str(value) + "x", value + 0.5]
    content = value.encode() if isinstance(value, str) else value
    positions = range(len(content)) if len(content) < 60 else [0, 1, 30, len(content) - 1]
    flipped = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in positions]
    same_type = [changed.decode() for changed in flipped] if isinstance(value, str) else flipped
    return [*same_type, None, content if isinstance(value, str) else content.hex(), value[:-1]]


@pytest.mark.parametrize("seq", range(1, 10))
def test_missing_row_is_detected(written: Path, seq: int) -> None:
    execute_sql(written, f"DELETE FROM operations WHERE seq = {seq}")
    check_reported_as_corrupted(written, seq)


def test_swapped_rows_are_detected(written: Path) -> None:
    moves = ((3, 99), (5, 3), (99, 5))
    execute_sql(written, *(f"UPDATE operations SET seq = {new} WHERE seq = {old}" for old, new in moves))
    check_reported_as_corrupted(written, 3)


def test_additional_row_is_detected(written: Path) -> None:
    execute_sql(
        written,
        "INSERT INTO operations SELECT 10, kind, NULL, given, fields, encoder, vector, crc FROM operations LIMIT 1",
    )
    check_reported_as_corrupted(written, 9)


@pytest.mark.parametrize("column", ["format", "id_type", "pruned_to", "last_seq", "crc"])
def test_corrupted_header_is_detected(written: Path, column: str) -> None:
    execute_sql(written, f"UPDATE state SET {column} = {column} + 1")
    check_reported_as_corrupted(written)
    with pytest.raises(JournalCorruptedError):
        Journal.open(written, "string")


def test_corrupted_operation_is_not_superseded(written: Path) -> None:
    execute_sql(written, "UPDATE operations SET fields = '{}' WHERE seq = 4")
    with Journal.open(written, "string") as journal:
        with pytest.raises(JournalCorruptedError, match="operation 4, which is to be superseded") as caught:
            journal.append([make_upsert("new", ""), make_upsert("b1", "later")])
        assert (caught.value.seq, journal.last_seq, journal.append([make_upsert("new", "")])) == (4, 9, 10)


def test_index_entry_of_another_item_is_detected(written: Path) -> None:
    content = written.read_bytes()
    assert content.count(b"d1\x09") == 1  # the entry of SQLite's index: item d1 has row 9
    written.write_bytes(content.replace(b"d1\x09", b"d2\x09"))
    with Journal.open(written, "string") as journal:
        with pytest.raises(JournalCorruptedError, match="operation 9, which is to be superseded"):
            journal.append([make_delete("d2")])
        assert dump(journal) == expect(*HISTORY).dump()


def check_corrupted_file(path: Path) -> bool:
    """Check that a corrupted file is either read correctly or reported, both before and after an append.

    Returns:
        Whether reading before the append reported it.
    """
    expected, batch = expect(*HISTORY), (make_upsert("b1", "more"), make_delete("d0"), make_upsert("e", "more"))
    is_reported = False
    try:
        assert dump_last_operations(Journal.open_readonly(path, "string")) == expected.dump()
    except StoreError:
        is_reported = True
    expected = expected.apply_step(("append", batch))
    with suppress(StoreError):
        with Journal.open(path, "string") as journal:
            journal.append(batch)
            assert dump_last_operations(journal) == expected.dump()
        assert dump_last_operations(Journal.open_readonly(path, "string")) == expected.dump()
    return is_reported


def dump_last_operations(journal: Journal) -> list:
    """As `dump`, for a journal whose SQLite index may be corrupted, so that items may come twice."""
    operations: dict[object, Operation] = {}
    for operation in journal.read_operations(0):
        operations.pop(operation.id, None)
        operations[operation.id] = operation
    return dump_journal(journal, operations.values())


def check_flipped_bits(path: Path, positions) -> None:
    """Flip two bits of each of these bytes, one at a time, and check the file."""
    content = path.read_bytes()
    for position in positions:
        for bit in (position % 8, (position + 3) % 8):
            copy = path.with_name("copy")
            copy.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
            for name in ("copy-wal", "copy-shm"):
                path.with_name(name).unlink(missing_ok=True)
            try:
                check_corrupted_file(copy)
            except BaseException as error:
                error.add_note(f"byte {position}, bit {bit}")
                raise


def test_flipped_bits_are_detected_or_harmless(written: Path) -> None:
    used = [position for position, byte in enumerate(written.read_bytes()) if byte]
    check_flipped_bits(written, [*range(0, 100, 3), *used[::17]])


@pytest.mark.slow
def test_all_flipped_bits_are_detected_or_harmless(written: Path) -> None:
    content = written.read_bytes()
    check_flipped_bits(written, [i for i, byte in enumerate(content) if byte or i % 16 == 0])


def test_truncated_file_is_detected(written: Path) -> None:
    content = written.read_bytes()
    for size in range(0, len(content), 512):
        copy = written.with_name("copy")
        copy.write_bytes(content[:size])
        assert check_corrupted_file(copy) or size > 12288, size  # SQLite's index, which readers do not use, comes last


def test_missing_file_with_a_wal_is_detected(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        path.unlink()
        for open_journal in (Journal.open, Journal.open_readonly):
            with pytest.raises(JournalCorruptedError, match="gone"):
                open_journal(path, "string")


def test_corrupted_wal_loses_complete_batches_only(path: Path, tmp_path_factory) -> None:
    journal = Journal.open(path, "string")
    for batch in HISTORY:
        journal.append(batch)
    crashed = tmp_path_factory.mktemp("crashed")
    shutil.copy(path, crashed / path.name)
    wal = path.with_name(path.name + "-wal").read_bytes()
    journal.close()
    expected_dumps = [expect(*HISTORY[:count]).dump() for count in range(len(HISTORY) + 1)]
    batch_counts = []
    for position in [*range(60), *range(60, len(wal), 211)]:
        corrupted = wal[:position] + bytes([wal[position] ^ 1]) + wal[position + 1 :]
        (crashed / f"{path.name}-wal").write_bytes(corrupted)
        (crashed / f"{path.name}-shm").unlink(missing_ok=True)
        batch_counts.append(expected_dumps.index(dump(Journal.open_readonly(crashed / path.name, "string"))))
    assert batch_counts == sorted(batch_counts)  # the batches before the corruption are there
    assert set(batch_counts) == set(range(len(HISTORY)))  # SECURITY.md: the others are lost without an error


# Concurrent use


def test_reader_sees_one_state_and_does_not_block_the_writer(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(journal_module, "_OPS_PER_CHECKPOINT", 10)
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 20))
        operations = journal.read_operations(0)
        first = next(operations)
        start = time.monotonic()
        for number in range(5):
            journal.append(make_upserts("a", 20) + make_upserts(f"b{number}", 10))
        journal.prune(70)
        assert time.monotonic() - start < 2  # checkpoints did not wait for the reader
        assert [first.seq, *(operation.seq for operation in operations)] == list(range(1, 21))
        journal.append([make_delete("a0")])
        assert path.with_name(path.name + "-wal").stat().st_size == 0  # the checkpoint was made up for
        assert read_seqs(journal, 0)[-1] == journal.last_seq == 171


def test_header_and_operations_are_read_from_one_state(written: Path, monkeypatch) -> None:
    with Journal.open(written, "string") as journal:

        def read_header_and_prune(*args):
            header = journal_sqlite.read_header(*args)
            monkeypatch.undo()
            journal.prune(8)
            return header

        monkeypatch.setattr(journal_module, "read_header", read_header_and_prune)
        assert read_seqs(journal, 0) == [3, 4, 5, 7, 8, 9]
        assert read_seqs(journal, 0) == [9]


def test_checkpoints_truncate_the_wal(path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 600))
        assert wal.stat().st_size > 0
        journal.append(make_upserts("b", 400))
        assert wal.stat().st_size == 0
        journal.append(make_upserts("b", 1))
    assert not wal.exists()


def test_append_fails_while_the_journal_is_locked_and_works_afterwards(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(journal_sqlite, "BUSY_TIMEOUT_SECONDS", 0.05)
    with Journal.open(path, "string") as journal, closing(sqlite3.connect(path, isolation_level=None)) as other:
        journal.append(make_upserts("a", 1))
        connection = journal._write_connection
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalIOError, match="another process has kept it locked") as caught:
            journal.append(make_upserts("b", 1))
        assert not caught.value.disk_full
        assert len(read_seqs(journal, 0)) == 1
        other.execute("ROLLBACK")
        assert journal.append(make_upserts("c", 1)) == 2
        assert journal._write_connection is not connection  # reconnected, since the state of the old one is not known
        assert [operation.id for operation in journal.read_operations(0)] == ["a0", "c0"]


def test_batches_of_concurrent_threads_are_not_mixed(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        last_seqs: list[int] = []

        def write(thread_number: int) -> None:
            for number in range(10):
                last_seqs.append(journal.append(make_upserts(f"{thread_number}-{number}-", 3)))
                list(journal.read_operations(0))

        threads = [Thread(target=write, args=(thread_number,)) for thread_number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(last_seqs) == list(range(3, 121, 3))
        batches = [operation.id.rsplit("-", 1)[0] for operation in journal.read_operations(0)]
        assert all(len(set(batches[i : i + 3])) == 1 for i in range(0, 120, 3))


PRUNER_SOURCE = """
import sys
from pathlib import Path
from vecall.live.journal import Journal
path, last_seq = Path(sys.argv[1]), 0
print("ready", flush=True)
while last_seq < 600:
    reader = Journal.open_readonly(path, "string")
    seqs = [operation.seq for operation in reader.read_operations(0)]
    assert seqs == sorted(set(seqs)) and seqs[-1:] >= [reader.last_seq], seqs
    assert reader.last_seq >= last_seq
    last_seq = reader.last_seq
    with Journal.open(path, "string") as pruner:
        pruner.prune(last_seq - 100)
print("done", pruner.pruned_to)
"""


def test_another_process_can_read_and_prune_while_one_appends(path: Path) -> None:
    with Journal.open(path, "string") as journal:
        journal.append(make_upserts("a", 3))
        command = [sys.executable, "-c", PRUNER_SOURCE, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as pruner:
            assert pruner.stdout.readline() == "ready\n"
            for number in range(200):
                assert journal.append(make_upserts("ab"[number % 2], 3)) == 6 + 3 * number
            output, errors = pruner.communicate(timeout=30)
        assert output.startswith("done"), errors
        assert journal.append([make_delete("z")]) == 604
        assert journal.pruned_to == int(output.split()[1])
        remaining_ids = [operation.id for operation in journal.read_operations(journal.pruned_to)]
        assert remaining_ids == ["a0", "a1", "a2", "b0", "b1", "b2", "z"]


def test_appending_and_reading_are_fast(path: Path) -> None:
    """With loose limits, because the machine may be busy. The measured times are in benchmarks/."""
    vectors = np.random.default_rng(0).standard_normal((5_000, 128), dtype=np.float32)
    items = [Operation(0, "upsert", i, {"year": i, "tags": ["a", "b"]}, vectors[i], "e", False) for i in range(5_000)]
    with Journal.open(path, "integer") as journal:
        start = time.perf_counter()
        for position in range(0, 5_000, 1_000):
            journal.append(items[position : position + 1_000])
        appended = time.perf_counter()
        assert sum(1 for _ in journal.read_operations(0)) == 5_000
        read = time.perf_counter()
    assert appended - start < 2.5
    assert read - appended < 1
