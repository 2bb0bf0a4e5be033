"""The journal of live changes: each acknowledged operation is on the disk, and damage to it does not go unseen.

SQLite in WAL mode does not notice damage by itself. So each row carries a checksum; `seq` is contiguous from
`pruned_to` + 1 to `last_seq`; and what says so carries a checksum too.
"""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Self

from vecall.errors import StoreError
from vecall.live.gil import in_turns
from vecall.live.journal_sqlite import (
    PATIENCE,
    SQLITE_SAYS,
    State,
    connect,
    create,
    damaged,
    explain,
    explained,
    read_state,
)
from vecall.live.operations import SUPERSEDED, Operation, body_of, is_whole, operation_of, row_of
from vecall.schema import IdType

_CHECKPOINT_EVERY = 1_000  # operations
_PRUNED_AT_ONCE = 10_000  # operations in one transaction, so that a writer beside does not wait long

_RANGE = "SELECT * FROM operations WHERE seq > ? AND seq <= ? ORDER BY seq"
_ONE = "SELECT * FROM operations WHERE seq = ?"
_FIND = "SELECT * FROM operations WHERE id = ?"
_INSERT = "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_REPLACE = "REPLACE INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SET_STATE = "UPDATE state SET format = ?, id_type = ?, pruned_to = ?, last_seq = ?, crc = ?"

logger = logging.getLogger(__name__)


class Journal:
    """The operations of a store, per item the last one; a context manager, safe from several threads.

    Other processes may read and prune at the same time. That only one appends is up to `writer.lock`.
    """

    def __init__(self, path: Path, id_type: IdType) -> None:
        self._path = path
        self._id_type: IdType = id_type
        self._lock = Lock()
        self._writer: sqlite3.Connection | None = None
        self._suspect = False  # something went wrong with the writer's connection
        self._behind = 0  # operations since the last checkpoint
        with explained(path), closing(connect(path, "ro")) as db:
            self._state = read_state(db, path, id_type)

    @classmethod
    def open(cls, path: Path, id_type: IdType) -> Self:
        """Open a journal for writing; it is made if there is none.

        Raises:
            JournalDamaged: it is damaged, or no journal.
            JournalFailed: the disk or another process does not let it be opened.
            StoreError: it is of another format, or its ids are of another type.
        """
        with explained(path):
            if not path.exists():
                create(path, id_type)
            journal = cls(path, id_type)
            journal._writer = connect(path, "rw")
        return journal

    @classmethod
    def read(cls, path: Path, id_type: IdType) -> Self | None:
        """Open a journal for `since` alone; None if there is none. It need not be closed.

        Raises:
            JournalDamaged, JournalFailed, StoreError: as for `open`.
        """
        return cls(path, id_type) if path.exists() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last_seq(self) -> int:
        """The last committed operation as of opening and of each append here; 0 if there was none."""
        return self._state.last_seq

    @property
    def pruned_to(self) -> int:
        """The last operation that was dropped, as of opening and of each append or prune here; 0 if none was."""
        return self._state.pruned_to

    def append(self, operations: Sequence[Operation]) -> int:
        """Write operations down, all or none; on return they are on the disk. Their own `seq` is ignored.

        After JournalFailed the journal can be read, and appended to once the disk works again. What failed is
        gone, with one exception: if the disk has it and could not say so, it is there after a restart, whole.

        Returns:
            The last one's `seq`.

        Raises:
            QueryError: an operation cannot be written down.
            JournalFailed: the disk is full or fails, or another process does not let go of the journal.
            JournalDamaged: an operation that was to be replaced, or the journal's state, is damaged.
            StoreError: the journal was opened for reading, or is closed.
        """
        bodies = [body_of(operation, self._id_type) for operation in in_turns(operations)]
        with self._transaction() as (db, state):
            numbered = list(enumerate(bodies, state.last_seq + 1))
            last = {body[1]: seq for seq, body in numbered}
            rows = [row_of(seq, body if last[body[1]] == seq else SUPERSEDED) for seq, body in in_turns(numbered)]
            db.executemany(_REPLACE, [row_of(seq, SUPERSEDED) for seq in self._replaced(db, last)])
            db.executemany(_INSERT, rows)
            self._commit(db, replace(state, last_seq=state.last_seq + len(rows)), len(rows))
            return self._state.last_seq

    def since(self, seq: int, upto: int | None = None) -> Iterator[Operation]:
        """The last operation of each item, above `seq`, in order, as of the moment when the first is taken.

        An item that has changed above `upto` too is left out: what was said of it before is no longer there.
        What was pruned is left out. Every row that is passed is checked. If SQLite's own index was damaged, an item
        may come more than once; its last operation still comes last.

        Args:
            seq: the last operation that is not wanted.
            upto: the last operation that is wanted; None takes all.

        Raises:
            JournalDamaged: an operation is damaged or missing.
            JournalFailed: the disk or another process does not let it be read.
        """
        with explained(self._path), closing(connect(self._path, "ro")) as db:
            db.execute("BEGIN")
            state = read_state(db, self._path, self._id_type)
            place = max(seq, state.pruned_to)
            end = state.last_seq if upto is None else min(upto, state.last_seq)
            try:
                for row in db.execute(_RANGE, (place, end)):
                    if row[0] != place + 1 or not is_whole(row):
                        break
                    place += 1
                    if (operation := operation_of(row)) is not None:
                        yield operation
            except SQLITE_SAYS as error:
                raise explain(self._path, error, place + 1) from error
            if place < end:
                raise damaged(self._path, f"operation {place + 1} is missing or not what was written", place + 1)

    def find(self, one: int | str) -> Operation | None:
        """The last operation of an item; None where it has none, or none any more.

        Raises:
            JournalDamaged: it is not what was written.
            JournalFailed: the disk or another process does not let it be read.
        """
        with explained(self._path), closing(connect(self._path, "ro")) as db:
            read_state(db, self._path, self._id_type)
            for row in db.execute(_FIND, (one,)):
                if row[2] != one or not is_whole(row):
                    raise damaged(self._path, f"operation {row[0]} is not what was written", row[0])
                return operation_of(row)
        return None

    def drop(self, seq: int) -> None:
        """Take one operation out: from now on it says nothing. It may be one that is damaged.

        Its place stays, for the journal has no gaps. What was said of the item before it is no longer there.

        Raises:
            StoreError: the journal has no such operation, or it was dropped or replaced already.
            JournalFailed, JournalDamaged: as for `append`.
        """
        with self._transaction() as (db, state):
            row = db.execute(_ONE, (seq,)).fetchone()
            if row is None:
                raise StoreError(
                    f"{self._path} has no operation {seq}: it holds those from {state.pruned_to + 1} to "
                    f"{state.last_seq}"
                )
            if is_whole(row) and row[1] == SUPERSEDED[0]:
                raise StoreError(
                    f"operation {seq} of {self._path} says nothing: it was dropped, or replaced by a later one"
                )
            db.execute(_REPLACE, row_of(seq, SUPERSEDED))
            self._commit(db, state, 1)

    def prune(self, upto: int) -> int:
        """Drop the operations up to `upto`, which every release that may be opened has to contain.

        Returns:
            How many were dropped, replaced ones included.

        Raises:
            JournalFailed, JournalDamaged, StoreError: as for `append`; some may have been dropped.
        """
        dropped = 0
        while True:
            with self._transaction() as (db, state):
                edge = min(upto, state.last_seq, state.pruned_to + _PRUNED_AT_ONCE)
                if edge <= state.pruned_to:
                    return dropped
                dropped += db.execute("DELETE FROM operations WHERE seq <= ?", (edge,)).rowcount
                self._commit(db, replace(state, pruned_to=edge), edge - state.pruned_to)

    def close(self) -> None:
        """End writing. All goes into the main file: there damage shows, while a damaged -wal just seems shorter."""
        with self._lock:
            db, self._writer = self._writer, None
            if db is not None:
                self._checkpoint(db)
                db.close()

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        """What is not committed at its end is undone."""
        with self._lock, explained(self._path):
            db = self._sound_writer()
            try:
                db.execute("BEGIN IMMEDIATE")
                self._state = read_state(db, self._path, self._id_type)  # another process may have pruned
                yield db, self._state
            except BaseException:
                self._suspect = True
                raise
            finally:
                if db.in_transaction:
                    db.rollback()

    def _commit(self, db: sqlite3.Connection, state: State, changes: int) -> None:
        db.execute(_SET_STATE, state.row())
        db.execute("COMMIT")
        self._state = state
        self._behind += changes
        if self._behind >= _CHECKPOINT_EVERY:
            self._checkpoint(db)

    def _replaced(self, db: sqlite3.Connection, ids: Iterable[int | str | None]) -> Iterator[int]:
        """Where the items' operations stand so far; checked, for a damaged index points to those of other items."""
        for one in ids:
            for row in db.execute(_FIND, (one,)):
                if row[2] != one or not is_whole(row):
                    raise damaged(self._path, f"operation {row[0]}, to be replaced, is not what was written", row[0])
                yield row[0]

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        """Move what was committed into the main file. It stands even if this fails."""
        try:
            db.execute("PRAGMA busy_timeout = 0")  # while another process reads: the next time
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            db.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")
        except sqlite3.Error as error:
            self._suspect = True
            logger.warning("%s: the checkpoint failed, and will be tried again: %s", self._path, error)
        else:
            self._behind = self._behind if busy else 0

    def _sound_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            raise StoreError(f"{self._path} was opened for reading, or is closed: open it with Journal.open to write")
        if self._suspect:
            fresh = connect(self._path, "rw")  # before the old one goes, and the readers' -shm with it
            self._writer.close()
            self._writer, self._suspect = fresh, False
        return self._writer
