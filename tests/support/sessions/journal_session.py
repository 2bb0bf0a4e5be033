"""A session of a journal, for `disk_faults`, and what is right after each step of it."""

import json
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from vecall.errors import JournalFailed, StoreError
from vecall.live import journal as module
from vecall.live.journal import Journal
from vecall.live.operations import Operation

NAME = "journal.sqlite"
LONG = "矢" * 700  # more than half a page


def upsert(one: str, text: str) -> Operation:
    vector = np.arange(4, dtype=np.float32) + len(text)
    return Operation(0, "upsert", one, {"title": text}, vector, "tower", len(text) % 2 == 0)


def delete(one: str) -> Operation:
    return Operation(0, "delete", one, None, None, None, False)


def batch(prefix: str, count: int) -> tuple[Operation, ...]:
    return tuple(upsert(f"{prefix}{i}", f"{prefix} {i} {LONG if i % 3 == 0 else ''}") for i in range(count))


# With a checkpoint at every 8 operations.
STEPS: tuple[tuple, ...] = (
    ("append", (upsert("a", "first"),)),
    ("append", batch("b", 5)),
    ("append", (upsert("a", "again"), delete("b1"), upsert("a", "and again"))),
    ("prune", 4),
    ("close",),
    ("append", (delete("a"),)),
    ("append", batch("b", 4) + batch("c", 4)),
    ("prune", 9),
    ("append", (upsert("d", LONG),)),
    ("close",),
)


@dataclass(frozen=True)
class Expected:
    """What a journal holds."""

    pruned_to: int = 0
    last_seq: int = 0
    operations: dict[int | str, Operation] = field(default_factory=dict)

    def after(self, step: tuple) -> "Expected":
        if step[0] == "append":
            numbered = [replace(one, seq=seq) for seq, one in enumerate(step[1], self.last_seq + 1)]
            operations = dict(self.operations)
            for one in numbered:
                operations.pop(one.id, None)
                operations[one.id] = one
            return Expected(self.pruned_to, self.last_seq + len(numbered), operations)
        if step[0] == "prune":
            pruned_to = max(self.pruned_to, min(step[1], self.last_seq))
            kept = {one: last for one, last in self.operations.items() if last.seq > pruned_to}
            return Expected(pruned_to, self.last_seq, kept)
        return self

    def content(self) -> list:
        return content(self, self.operations.values())


def content(journal, operations) -> list:
    """What `journal` says and holds, as JSON."""
    rows = [
        [None if part is None else part.tolist() if isinstance(part, np.ndarray) else part for part in astuple(one)]
        for one in operations
    ]
    return [journal.pruned_to, journal.last_seq, rows]


def session(folder: Path, say) -> None:
    module._OPS_PER_CHECKPOINT = 8
    journal = None
    for number, step in enumerate(STEPS):
        try:
            journal = journal or Journal.open(folder / NAME, "string")
            if step[0] == "close":
                journal.close()
                journal = None
            else:
                getattr(journal, step[0])(step[1])
        except StoreError as error:
            full = isinstance(error, JournalFailed) and error.disk_full
            say(f"failed {number} {type(error).__name__} {'full' if full else '-'} {error}")
        else:
            say(f"done {number}")
        if journal is not None:
            say(f"reads {json.dumps(content(journal, journal.read_operations(0)))}")
