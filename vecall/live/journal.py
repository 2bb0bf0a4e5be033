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
from vecall.live.gil import iterate_cooperatively
from vecall.live.journal_sqlite import (
    BUSY_TIMEOUT_SECONDS,
    SQLITE_ERRORS,
    JournalHeader,
    connect,
    create_journal,
    make_corruption_error,
    read_header,
    to_journal_error,
    translate_sqlite_errors,
)
from vecall.live.operations import SUPERSEDED_BODY, Operation, decode_row, encode_body, encode_row, has_valid_checksum
from vecall.schema import IdType

_OPS_PER_CHECKPOINT = 1_000  # operations
_PRUNE_BATCH_SIZE = 10_000  # operations in one transaction, so that a writer beside does not wait long

_SELECT_RANGE = "SELECT * FROM operations WHERE seq > ? AND seq <= ? ORDER BY seq"
_SELECT_BY_SEQ = "SELECT * FROM operations WHERE seq = ?"
_SELECT_BY_ID = "SELECT * FROM operations WHERE id = ?"
_INSERT = "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_REPLACE = "REPLACE INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_HEADER = "UPDATE state SET format = ?, id_type = ?, pruned_to = ?, last_seq = ?, crc = ?"

logger = logging.getLogger(__name__)


class Journal:
    """The operations of a store, per item the last one; a context manager, safe from several threads.

    Other processes may read and prune at the same time. That only one appends is up to `writer.lock`.
    """

    def __init__(self, path: Path, id_type: IdType) -> None:
        self._path = path
        self._id_type: IdType = id_type
        self._lock = Lock()
        self._write_connection: sqlite3.Connection | None = None
        self._needs_reconnect = False  # something went wrong with the writer's connection
        self._ops_since_checkpoint = 0  # operations since the last checkpoint
        with translate_sqlite_errors(path), closing(connect(path, "ro")) as db:
            self._header = read_header(db, path, id_type)

    @classmethod
    def open(cls, path: Path, id_type: IdType) -> Self:
        """Open a journal for writing; it is made if there is none.

        Raises:
            JournalDamaged: it is damaged, or no journal.
            JournalFailed: the disk or another process does not let it be opened.
            StoreError: it is of another format, or its ids are of another type.
        """
        with translate_sqlite_errors(path):
            if not path.exists():
                create_journal(path, id_type)
            journal = cls(path, id_type)
            journal._write_connection = connect(path, "rw")
        return journal

    @classmethod
    def open_readonly(cls, path: Path, id_type: IdType) -> Self | None:
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
        return self._header.last_seq

    @property
    def pruned_to(self) -> int:
        """The last operation that was dropped, as of opening and of each append or prune here; 0 if none was."""
        return self._header.pruned_to

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
        bodies = [encode_body(operation, self._id_type) for operation in iterate_cooperatively(operations)]
        with self._begin_transaction() as (db, state):
            numbered = list(enumerate(bodies, state.last_seq + 1))
            last = {body[1]: seq for seq, body in numbered}
            rows = [
                encode_row(seq, body if last[body[1]] == seq else SUPERSEDED_BODY)
                for seq, body in iterate_cooperatively(numbered)
            ]
            db.executemany(_REPLACE, [encode_row(seq, SUPERSEDED_BODY) for seq in self._find_superseded_seqs(db, last)])
            db.executemany(_INSERT, rows)
            self._commit(db, replace(state, last_seq=state.last_seq + len(rows)), len(rows))
            return self._header.last_seq

    def read_operations(self, after_seq: int, until_seq: int | None = None) -> Iterator[Operation]:
        """The last operation of each item, above `after_seq`, in order, as of the moment when the first is taken.

        An item that has changed above `until_seq` too is left out: what was said of it before is no longer there.
        What was pruned is left out. Every row that is passed is checked. If SQLite's own index was damaged, an item
        may come more than once; its last operation still comes last.

        Args:
            after_seq: the last operation that is not wanted.
            until_seq: the last operation that is wanted; None takes all.

        Raises:
            JournalDamaged: an operation is damaged or missing.
            JournalFailed: the disk or another process does not let it be read.
        """
        with translate_sqlite_errors(self._path), closing(connect(self._path, "ro")) as db:
            db.execute("BEGIN")
            state = read_header(db, self._path, self._id_type)
            place = max(after_seq, state.pruned_to)
            end = state.last_seq if until_seq is None else min(until_seq, state.last_seq)
            try:
                for row in db.execute(_SELECT_RANGE, (place, end)):
                    if row[0] != place + 1 or not has_valid_checksum(row):
                        break
                    place += 1
                    if (operation := decode_row(row)) is not None:
                        yield operation
            except SQLITE_ERRORS as error:
                raise to_journal_error(self._path, error, place + 1) from error
            if place < end:
                raise make_corruption_error(
                    self._path, f"operation {place + 1} is missing or not what was written", place + 1
                )

    def find_last(self, item_id: int | str) -> Operation | None:
        """The last operation of an item; None where it has none, or none any more.

        Raises:
            JournalDamaged: it is not what was written.
            JournalFailed: the disk or another process does not let it be read.
        """
        with translate_sqlite_errors(self._path), closing(connect(self._path, "ro")) as db:
            read_header(db, self._path, self._id_type)
            for row in db.execute(_SELECT_BY_ID, (item_id,)):
                if row[2] != item_id or not has_valid_checksum(row):
                    raise make_corruption_error(self._path, f"operation {row[0]} is not what was written", row[0])
                return decode_row(row)
        return None

    def drop(self, seq: int) -> None:
        """Take one operation out: from now on it says nothing. It may be one that is damaged.

        Its place stays, for the journal has no gaps. What was said of the item before it is no longer there.

        Raises:
            StoreError: the journal has no such operation, or it was dropped or replaced already.
            JournalFailed, JournalDamaged: as for `append`.
        """
        with self._begin_transaction() as (db, state):
            row = db.execute(_SELECT_BY_SEQ, (seq,)).fetchone()
            if row is None:
                raise StoreError(
                    f"{self._path} has no operation {seq}: it holds those from {state.pruned_to + 1} to "
                    f"{state.last_seq}"
                )
            if has_valid_checksum(row) and row[1] == SUPERSEDED_BODY[0]:
                raise StoreError(
                    f"operation {seq} of {self._path} says nothing: it was dropped, or replaced by a later one"
                )
            db.execute(_REPLACE, encode_row(seq, SUPERSEDED_BODY))
            self._commit(db, state, 1)

    def prune(self, until_seq: int) -> int:
        """Drop the operations up to `until_seq`, which every release that may be opened has to contain.

        Returns:
            How many were dropped, replaced ones included.

        Raises:
            JournalFailed, JournalDamaged, StoreError: as for `append`; some may have been dropped.
        """
        dropped = 0
        while True:
            with self._begin_transaction() as (db, state):
                edge = min(until_seq, state.last_seq, state.pruned_to + _PRUNE_BATCH_SIZE)
                if edge <= state.pruned_to:
                    return dropped
                dropped += db.execute("DELETE FROM operations WHERE seq <= ?", (edge,)).rowcount
                self._commit(db, replace(state, pruned_to=edge), edge - state.pruned_to)

    def close(self) -> None:
        """End writing. All goes into the main file: there damage shows, while a damaged -wal just seems shorter."""
        with self._lock:
            db, self._write_connection = self._write_connection, None
            if db is not None:
                self._checkpoint(db)
                db.close()

    @contextmanager
    def _begin_transaction(self) -> Iterator[tuple[sqlite3.Connection, JournalHeader]]:
        """What is not committed at its end is undone."""
        with self._lock, translate_sqlite_errors(self._path):
            db = self._get_write_connection()
            try:
                db.execute("BEGIN IMMEDIATE")
                self._header = read_header(db, self._path, self._id_type)  # another process may have pruned
                yield db, self._header
            except BaseException:
                self._needs_reconnect = True
                raise
            finally:
                if db.in_transaction:
                    db.rollback()

    def _commit(self, db: sqlite3.Connection, header: JournalHeader, change_count: int) -> None:
        db.execute(_UPDATE_HEADER, header.to_row())
        db.execute("COMMIT")
        self._header = header
        self._ops_since_checkpoint += change_count
        if self._ops_since_checkpoint >= _OPS_PER_CHECKPOINT:
            self._checkpoint(db)

    def _find_superseded_seqs(self, db: sqlite3.Connection, ids: Iterable[int | str | None]) -> Iterator[int]:
        """Where the items' operations stand so far; checked, for a damaged index points to those of other items."""
        for one in ids:
            for row in db.execute(_SELECT_BY_ID, (one,)):
                if row[2] != one or not has_valid_checksum(row):
                    raise make_corruption_error(
                        self._path, f"operation {row[0]}, to be replaced, is not what was written", row[0]
                    )
                yield row[0]

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        """Move what was committed into the main file. It stands even if this fails."""
        try:
            db.execute("PRAGMA busy_timeout = 0")  # while another process reads: the next time
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")
        except sqlite3.Error as error:
            self._needs_reconnect = True
            logger.warning("%s: the checkpoint failed, and will be tried again: %s", self._path, error)
        else:
            self._ops_since_checkpoint = self._ops_since_checkpoint if busy else 0

    def _get_write_connection(self) -> sqlite3.Connection:
        if self._write_connection is None:
            raise StoreError(f"{self._path} was opened for reading, or is closed: open it with Journal.open to write")
        if self._needs_reconnect:
            fresh = connect(self._path, "rw")  # before the old one goes, and the readers' -shm with it
            self._write_connection.close()
            self._write_connection, self._needs_reconnect = fresh, False
        return self._write_connection
