"""A session of a journal, for `disk_faults`, and what is right after each step of it."""

import json
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from vecall.errors import JournalIOError, StoreError
from vecall.live import journal as module
from vecall.live.journal import Journal
from vecall.live.operations import Operation

JOURNAL_FILE = "journal.sqlite"
LONG_TEXT = "矢" * 700  # more than half a page


def make_upsert(item_id: str, text: str) -> Operation:
    vector = np.arange(4, dtype=np.float32) + len(text)
    return Operation(0, "upsert", item_id, {"title": text}, vector, "tower", len(text) % 2 == 0)


def make_delete(item_id: str) -> Operation:
    return Operation(0, "delete", item_id, None, None, None, False)


def make_upserts(prefix: str, count: int) -> tuple[Operation, ...]:
    return tuple(make_upsert(f"{prefix}{i}", f"{prefix} {i} {LONG_TEXT if i % 3 == 0 else ''}") for i in range(count))


# With a checkpoint at every 8 operations.
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
    """What a journal holds."""

    pruned_to: int = 0
    last_seq: int = 0
    operations: dict[int | str, Operation] = field(default_factory=dict)

    def apply_step(self, step: tuple) -> "ExpectedJournal":
        if step[0] == "append":
            numbered = [replace(one, seq=seq) for seq, one in enumerate(step[1], self.last_seq + 1)]
            operations = dict(self.operations)
            for one in numbered:
                operations.pop(one.id, None)
                operations[one.id] = one
            return ExpectedJournal(self.pruned_to, self.last_seq + len(numbered), operations)
        if step[0] == "prune":
            pruned_to = max(self.pruned_to, min(step[1], self.last_seq))
            kept = {one: last for one, last in self.operations.items() if last.seq > pruned_to}
            return ExpectedJournal(pruned_to, self.last_seq, kept)
        return self

    def dump(self) -> list:
        return dump_journal(self, self.operations.values())


def dump_journal(journal, operations) -> list:
    """What `journal` says and holds, as JSON."""
    rows = [
        [None if part is None else part.tolist() if isinstance(part, np.ndarray) else part for part in astuple(one)]
        for one in operations
    ]
    return [journal.pruned_to, journal.last_seq, rows]


def run_session(directory: Path, emit) -> None:
    module._OPS_PER_CHECKPOINT = 8
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
            full = isinstance(error, JournalIOError) and error.disk_full
            emit(f"failed {number} {type(error).__name__} {'full' if full else '-'} {error}")
        else:
            emit(f"done {number}")
        if journal is not None:
            emit(f"reads {json.dumps(dump_journal(journal, journal.read_operations(0)))}")
