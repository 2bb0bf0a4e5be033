"""A session for `fault_injection.disk`: steps of a journal, and the expected content after each of them."""

import json
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from vecall.errors import JournalIOError, StoreError
from vecall.live import journal as journal_module
from vecall.live.journal import Journal
from vecall.live.operations import Operation

JOURNAL_FILE = "journal.sqlite"
LONG_TEXT = "矢" * 700  # more than half a page of SQLite


def make_upsert(item_id: str, text: str) -> Operation:
    vector = np.arange(4, dtype=np.float32) + len(text)
    return Operation(0, "upsert", item_id, {"title": text}, vector, "tower", len(text) % 2 == 0)


def make_delete(item_id: str) -> Operation:
    return Operation(0, "delete", item_id, None, None, None, False)


def make_upserts(prefix: str, count: int) -> tuple[Operation, ...]:
    return tuple(make_upsert(f"{prefix}{i}", f"{prefix} {i} {LONG_TEXT if i % 3 == 0 else ''}") for i in range(count))


# Run with a checkpoint every 8 operations.
STEPS: tuple[tuple, ...] = (
    ("append", (make_upsert("a", "first"),)),
    ("append", make_upserts("b", 5)),
    ("append", (make_upsert("a", "again"), make_delete("b1"), make_upsert("a", "and again"))),
    ("prune", 4),
    ("close",),
    ("append", (make_delete("a"),)),
    ("append", make_upserts("b", 4) + make_upserts("c", 4)),
    ("prune", 9),
    ("append", (make_upsert("d", LONG_TEXT),)),
    ("close",),
)


@dataclass(frozen=True)
class ExpectedJournal:
    """The content that a journal must have.

    Attributes:
        pruned_to: last pruned operation.
        last_seq: last operation.
        operations: the last operation of each item that is not pruned, in the order of `seq`.
    """

    pruned_to: int = 0
    last_seq: int = 0
    operations: dict[int | str, Operation] = field(default_factory=dict)

    def apply_step(self, step: tuple) -> "ExpectedJournal":
        if step[0] == "append":
            numbered = [replace(operation, seq=seq) for seq, operation in enumerate(step[1], self.last_seq + 1)]
            operations = dict(self.operations)
            for operation in numbered:
                operations.pop(operation.id, None)
                operations[operation.id] = operation
            return ExpectedJournal(self.pruned_to, self.last_seq + len(numbered), operations)
        if step[0] == "prune":
            pruned_to = max(self.pruned_to, min(step[1], self.last_seq))
            kept = {item_id: last for item_id, last in self.operations.items() if last.seq > pruned_to}
            return ExpectedJournal(pruned_to, self.last_seq, kept)
        return self

    def dump(self) -> list:
        return dump_journal(self, self.operations.values())


def dump_journal(journal, operations) -> list:
    """Return `pruned_to`, `last_seq` and the operations of a journal as JSON values."""
    rows = [
        [value.tolist() if isinstance(value, np.ndarray) else value for value in astuple(operation)]
        for operation in operations
    ]
    return [journal.pruned_to, journal.last_seq, rows]


def run_session(directory: Path, emit) -> None:
    journal_module._OPS_PER_CHECKPOINT = 8
    journal = None
    for number, step in enumerate(STEPS):
        try:
            journal = journal or Journal.open(directory / JOURNAL_FILE, "string")
            if step[0] == "close":
                journal.close()
                journal = None
            else:
                getattr(journal, step[0])(step[1])
        except StoreError as error:
            is_disk_full = isinstance(error, JournalIOError) and error.disk_full
            emit(f"failed {number} {type(error).__name__} {'full' if is_disk_full else '-'} {error}")
        else:
            emit(f"done {number}")
        if journal is not None:
            emit(f"reads {json.dumps(dump_journal(journal, journal.read_operations(0)))}")
