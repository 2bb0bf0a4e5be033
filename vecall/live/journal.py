"""The journal of live changes: acknowledged operations are durable, and corruption is detected.

SQLite in WAL mode does not detect corruption by itself. Therefore each row has a checksum, `seq` has no gaps from
`pruned_to` + 1 to `last_seq`, and the header row that holds these two numbers has a checksum too.
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
    check_not_lost,
    connect,
    create_journal,
    make_corruption_error,
    read_header,
    to_journal_error,
    translate_sqlite_errors,
)
from vecall.live.operations import SUPERSEDED_BODY, Operation, decode_row, encode_body, encode_row, has_valid_checksum
from vecall.schema import IdType

_OPS_PER_CHECKPOINT = 1_000
_PRUNE_BATCH_SIZE = 10_000  # operations in one transaction, so that a concurrent writer does not wait long

_SELECT_RANGE = "SELECT * FROM operations WHERE seq > ? AND seq <= ? ORDER BY seq"
_SELECT_BY_SEQ = "SELECT * FROM operations WHERE seq = ?"
_SELECT_BY_ID = "SELECT * FROM operations WHERE id = ?"
_INSERT = "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_REPLACE = "REPLACE INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_HEADER = "UPDATE state SET format = ?, id_type = ?, pruned_to = ?, last_seq = ?, crc = ?"

logger = logging.getLogger(__name__)


class Journal:
    """The last operation of each item of a store. A context manager; thread-safe.

    Other processes may read and prune at the same time. The lock file `writer.lock`, which is not taken here, ensures
    that only one process appends.
    """

    def __init__(self, path: Path, id_type: IdType) -> None:
        self._path = path
        self._id_type: IdType = id_type
        self._lock = Lock()
        self._write_connection: sqlite3.Connection | None = None
        self._needs_reconnect = False  # an operation on the write connection has failed
        self._ops_since_checkpoint = 0
        with translate_sqlite_errors(path), closing(connect(path, "ro")) as connection:
            self._header = read_header(connection, path, id_type)

    @classmethod
    def open(cls, path: Path, id_type: IdType) -> Self:
        """Open a journal for writing, and create it if it does not exist.

        Raises:
            JournalCorruptedError: the file is corrupted, or is not a journal.
            JournalIOError: the disk fails, or another process keeps the journal locked.
            StoreError: the journal has another format, or ids of another type.
        """
        with translate_sqlite_errors(path):
            if not path.exists():
                create_journal(path, id_type)
            journal = cls(path, id_type)
            journal._write_connection = connect(path, "rw")
        return journal

    @classmethod
    def open_readonly(cls, path: Path, id_type: IdType) -> Self | None:
        """Open a journal for reading; None if it does not exist. It need not be closed.

        Raises:
            JournalCorruptedError, JournalIOError, StoreError: as for `open`.
        """
        check_not_lost(path)
        return cls(path, id_type) if path.exists() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last_seq(self) -> int:
        """Last committed operation, as of opening and of the last append here; 0 if there was none."""
        return self._header.last_seq

    @property
    def pruned_to(self) -> int:
        """Last pruned operation, as of opening and of the last append or prune here; 0 if none was pruned."""
        return self._header.pruned_to

    def append(self, operations: Sequence[Operation]) -> int:
        """Append operations, all or none; on return they are durable. The `seq` that they have is ignored.

        After a JournalIOError the journal can still be read, and appended to once the disk works again. The failed
        batch is lost, with one exception: if it reached the disk although the disk reported a failure, it is there
        after a restart, as a whole.

        Returns:
            Sequence number of the last operation.

        Raises:
            QueryError: an operation cannot be encoded.
            JournalIOError: the disk is full or fails, or another process keeps the journal locked.
            JournalCorruptedError: the header, or an operation that is to be superseded, is corrupted.
            StoreError: the journal was opened for reading, or is closed.
        """
        bodies = [encode_body(operation, self._id_type) for operation in iterate_cooperatively(operations)]
        with self._begin_transaction() as (connection, header):
            numbered = list(enumerate(bodies, header.last_seq + 1))
            last_seq_by_id = {body[1]: seq for seq, body in numbered}
            rows = [
                encode_row(seq, body if last_seq_by_id[body[1]] == seq else SUPERSEDED_BODY)
                for seq, body in iterate_cooperatively(numbered)
            ]
            superseded_seqs = self._find_superseded_seqs(connection, last_seq_by_id)
            connection.executemany(_REPLACE, [encode_row(seq, SUPERSEDED_BODY) for seq in superseded_seqs])
            connection.executemany(_INSERT, rows)
            self._commit(connection, replace(header, last_seq=header.last_seq + len(rows)), len(rows))
            return self._header.last_seq

    def read_operations(self, after_seq: int, until_seq: int | None = None) -> Iterator[Operation]:
        """Iterate over the last operation of each item in the range `after_seq` < seq <= `until_seq`, in order.

        All operations are read in one transaction, which begins when the first is requested. An item that also changed
        after `until_seq` is left out, because its earlier operations are no longer stored; so are pruned operations.
        The checksum of every row in the range is verified. If SQLite's own index is corrupted, an item may come more
        than once; its last operation still comes last.

        Args:
            after_seq: sequence number before the first operation.
            until_seq: sequence number of the last operation; None for the journal's last.

        Raises:
            JournalCorruptedError: an operation is corrupted or missing.
            JournalIOError: the disk fails, or another process keeps the journal locked.
        """
        with translate_sqlite_errors(self._path), closing(connect(self._path, "ro")) as connection:
            connection.execute("BEGIN")
            header = read_header(connection, self._path, self._id_type)
            seq = max(after_seq, header.pruned_to)
            end = header.last_seq if until_seq is None else min(until_seq, header.last_seq)
            try:
                for row in connection.execute(_SELECT_RANGE, (seq, end)):
                    if row[0] != seq + 1 or not has_valid_checksum(row):
                        break
                    seq += 1
                    if (operation := decode_row(row)) is not None:
                        yield operation
            except SQLITE_ERRORS as error:
                raise to_journal_error(self._path, error, seq + 1) from error
            if seq < end:
                raise make_corruption_error(self._path, f"operation {seq + 1} is missing or corrupted", seq + 1)

    def find_last(self, item_id: int | str) -> Operation | None:
        """Return the last operation of an item; None if it has none, or if that was pruned or dropped.

        Raises:
            JournalCorruptedError: the operation is corrupted.
            JournalIOError: the disk fails, or another process keeps the journal locked.
        """
        with translate_sqlite_errors(self._path), closing(connect(self._path, "ro")) as connection:
            read_header(connection, self._path, self._id_type)
            for row in connection.execute(_SELECT_BY_ID, (item_id,)):
                if row[2] != item_id or not has_valid_checksum(row):
                    raise make_corruption_error(self._path, f"operation {row[0]} is corrupted", row[0])
                return decode_row(row)
        return None

    def drop(self, seq: int) -> None:
        """Drop one operation, which may be corrupted. It no longer has an effect.

        Its row stays, marked as superseded, because the journal has no gaps. Earlier operations on the same item are no
        longer stored, so they do not come back.

        Raises:
            StoreError: the journal has no such operation, or it was dropped or superseded already.
            JournalIOError, JournalCorruptedError: as for `append`.
        """
        with self._begin_transaction() as (connection, header):
            may_exist = 0 < seq <= header.last_seq  # SQLite takes no numbers of more than 64 bits
            row = connection.execute(_SELECT_BY_SEQ, (seq,)).fetchone() if may_exist else None
            if row is None:
                raise StoreError(
                    f"{self._path} has no operation {seq}: it holds operations {header.pruned_to + 1} to "
                    f"{header.last_seq}"
                )
            if has_valid_checksum(row) and row[1] == SUPERSEDED_BODY[0]:
                raise StoreError(
                    f"operation {seq} of {self._path} has no effect any more: it was dropped, or superseded by a later "
                    "operation"
                )
            connection.execute(_REPLACE, encode_row(seq, SUPERSEDED_BODY))
            self._commit(connection, header, 1)

    def prune(self, until_seq: int) -> int:
        """Delete the operations up to `until_seq`, all of which must be contained in every release of the store.

        Returns:
            Number of deleted operations, including superseded ones.

        Raises:
            JournalIOError, JournalCorruptedError, StoreError: as for `append`; some may have been deleted by then.
        """
        deleted = 0
        while True:
            with self._begin_transaction() as (connection, header):
                end = min(until_seq, header.last_seq, header.pruned_to + _PRUNE_BATCH_SIZE)
                if end <= header.pruned_to:
                    return deleted
                deleted += connection.execute("DELETE FROM operations WHERE seq <= ?", (end,)).rowcount
                self._commit(connection, replace(header, pruned_to=end), end - header.pruned_to)

    def close(self) -> None:
        """End writing, and move the -wal file into the main file.

        There corruption is detected, while a corrupted -wal file merely looks shorter.
        """
        with self._lock:
            connection, self._write_connection = self._write_connection, None
            if connection is not None:
                self._checkpoint(connection)
                connection.close()

    @contextmanager
    def _begin_transaction(self) -> Iterator[tuple[sqlite3.Connection, JournalHeader]]:
        """Start a write transaction and yield the connection and the header. Roll back what is not committed."""
        with self._lock, translate_sqlite_errors(self._path):
            connection = self._get_write_connection()
            try:
                connection.execute("BEGIN IMMEDIATE")
                self._header = read_header(connection, self._path, self._id_type)  # another process may have pruned
                yield connection, self._header
            except BaseException:
                self._needs_reconnect = True
                raise
            finally:
                if connection.in_transaction:
                    connection.rollback()

    def _commit(self, connection: sqlite3.Connection, header: JournalHeader, change_count: int) -> None:
        connection.execute(_UPDATE_HEADER, header.to_row())
        connection.execute("COMMIT")
        self._header = header
        self._ops_since_checkpoint += change_count
        if self._ops_since_checkpoint >= _OPS_PER_CHECKPOINT:
            self._checkpoint(connection)

    def _find_superseded_seqs(self, connection: sqlite3.Connection, ids: Iterable[int | str | None]) -> Iterator[int]:
        """Yield the sequence numbers of the items' stored operations.

        Each row is verified, because a corrupted SQLite index leads to the rows of other items.
        """
        for item_id in ids:
            for row in connection.execute(_SELECT_BY_ID, (item_id,)):
                if row[2] != item_id or not has_valid_checksum(row):
                    raise make_corruption_error(
                        self._path, f"operation {row[0]}, which is to be superseded, is corrupted", row[0]
                    )
                yield row[0]

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move committed transactions from the -wal file into the main file. They are durable even if this fails."""
        try:
            connection.execute("PRAGMA busy_timeout = 0")  # do not wait for readers: the next checkpoint will do
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000:.0f}")
        except sqlite3.Error as error:
            self._needs_reconnect = True
            logger.warning("checkpoint of %s failed and will be retried: %s", self._path, error)
        else:
            self._ops_since_checkpoint = self._ops_since_checkpoint if busy else 0

    def _get_write_connection(self) -> sqlite3.Connection:
        if self._write_connection is None:
            raise StoreError(f"{self._path} was opened for reading, or is closed: open it with Journal.open to write")
        if self._needs_reconnect:
            # Connect before closing: closing the last connection would delete the -shm file that readers use.
            connection = connect(self._path, "rw")
            self._write_connection.close()
            self._write_connection, self._needs_reconnect = connection, False
        return self._write_connection
