"""The journal's SQLite file: its creation, connections and header row, and the translation of SQLite's errors."""

import errno
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import Lock
from typing import Literal
from zlib import crc32

from vecall.errors import JournalCorruptedError, JournalIOError, StoreError
from vecall.runtime.durable_files import fsync_path
from vecall.schema import IdType

JournalVersion = tuple[int, bool, int]  # inode of the file, whether a -wal file exists, SQLite's data_version

JOURNAL_FORMAT = 1
BUSY_TIMEOUT_SECONDS = 10.0  # to wait for another process's transaction

# `id` is unique, so it finds the last operation of an item: superseded rows have NULL there.
_SCHEMA = """
    BEGIN;
    CREATE TABLE state (format INTEGER, id_type TEXT, pruned_to INTEGER, last_seq INTEGER, crc INTEGER);
    CREATE TABLE operations (
        seq INTEGER PRIMARY KEY, kind TEXT, id {id} UNIQUE, given INTEGER, fields TEXT, encoder TEXT, vector BLOB,
        crc INTEGER
    );
    INSERT INTO state VALUES {state};
    COMMIT;
    PRAGMA journal_mode = WAL;
"""

# What calls to SQLite may raise; the second for corrupted text that is not UTF-8, even within an error message.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

# SQLite's codes for failures of the disk and conflicts with another process. All others mean corruption here.
_IO_ERROR_CODES = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_TOOBIG),
}


@dataclass(frozen=True)
class JournalHeader:
    """The journal's only row of table `state`, which has a checksum.

    Attributes:
        format: version of the file format.
        id_type: type of the item ids.
        pruned_to: last pruned operation; 0 if none was pruned.
        last_seq: last operation; 0 if there was none.
    """

    format: int
    id_type: IdType
    pruned_to: int
    last_seq: int

    def to_row(self) -> tuple[int | str, ...]:
        """Return the columns of table `state`: the fields and their checksum."""
        return (*astuple(self), crc32(repr(astuple(self)).encode()))


def check_not_lost(path: Path) -> None:
    """Check that a journal is not missing beside its -wal file, with changes that are in neither then.

    Raises:
        JournalCorruptedError: it is.
    """
    # In this order: whoever creates a journal creates the file before its -wal.
    if path.with_name(f"{path.name}-wal").exists() and not path.exists():
        raise make_corruption_error(path, "the file is gone, though its -wal file exists")


def create_journal(path: Path, id_type: IdType) -> None:
    """Create an empty journal atomically, so that a file without content is known to be corrupted.

    A journal that another process creates at the same time is kept.

    Raises:
        JournalCorruptedError: the file is missing, but its -wal file exists.
    """
    check_not_lost(path)
    id_column_type = "INTEGER" if id_type == "integer" else "TEXT"
    header = JournalHeader(JOURNAL_FORMAT, id_type, 0, 0)
    temporary_path = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        with closing(sqlite3.connect(temporary_path, isolation_level=None)) as connection:
            connection.executescript(_SCHEMA.format(id=id_column_type, state=header.to_row()))
        os.link(temporary_path, path)  # unlike a rename, it does not replace a file of another process
    except FileExistsError:
        pass
    except FileNotFoundError:  # a process that writes a release took it for a leftover
        create_journal(path, id_type)
    finally:
        temporary_path.unlink(missing_ok=True)


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Open a connection with explicit transactions, which are durable once committed."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        uri += "&immutable=1"  # on a read-only disk SQLite cannot create the -shm file, and there is no writer
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if mode == "rw":
            connection.executescript(
                "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_mode = WAL"
            )
            # Makes the file names durable, that of the -wal file too. SQLite does the same, but ignores failures.
            fsync_path(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def read_header(connection: sqlite3.Connection, path: Path, id_type: IdType) -> JournalHeader:
    """Read and verify the header.

    Raises:
        JournalCorruptedError: the header does not match its checksum, or its last operation is not the last row.
        StoreError: the journal has another format, or ids of another type.
    """
    # One query, so that both are of the same moment.
    rows = connection.execute("SELECT *, (SELECT max(seq) FROM operations) FROM state").fetchall()
    header = JournalHeader(*rows[0][:4]) if len(rows) == 1 else None
    if header is None or header.to_row() != rows[0][:5]:
        raise make_corruption_error(path, f"its header is corrupted: {rows}")
    if header.format != JOURNAL_FORMAT:
        raise StoreError(
            f"{path} is a journal of format {header.format}, expected format {JOURNAL_FORMAT}: use the vecall version "
            "that wrote it"
        )
    if header.id_type != id_type:
        raise StoreError(
            f"{path} is a journal of changes to items with ids of type {header.id_type}, and this release has ids of "
            f"type {id_type}: activate a release with ids of type {header.id_type}, or use another store for these"
        )
    max_seq = rows[0][5]
    if (header.pruned_to if max_seq is None else max_seq) != header.last_seq:
        raise make_corruption_error(
            path, f"expected operation {header.last_seq} to be the last one, got {max_seq}", header.last_seq
        )
    return header


@contextmanager
def translate_sqlite_errors(path: Path) -> Iterator[None]:
    """Raise SQLite's and the system's errors as a JournalCorruptedError or a JournalIOError."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise to_journal_error(path, error) from error
    except OSError as error:
        disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise JournalIOError(
            f"{path} cannot be opened: {error}. Fix this, then try again", disk_full=disk_full
        ) from error


def to_journal_error(path: Path, error: Exception, seq: int | None = None) -> StoreError:
    """Translate an error of SQLite.

    Args:
        path: the journal.
        error: one of `SQLITE_ERRORS`.
        seq: the operation that was being read; None if it is not known.

    Returns:
        A JournalIOError for failures of the disk and conflicts with other processes, else a JournalCorruptedError.
    """
    code = getattr(error, "sqlite_errorcode", None)  # None for text that is not UTF-8
    if not isinstance(error, sqlite3.Error) or code is None or code & 0xFF not in _IO_ERROR_CODES:
        subject = "it" if seq is None else f"operation {seq}"
        return make_corruption_error(path, f"{subject} cannot be read: {error}", seq)
    advice = "free space on its disk, or make the file writable, then try again"
    if code & 0xFF == sqlite3.SQLITE_BUSY:
        advice = f"another process has kept it locked for {BUSY_TIMEOUT_SECONDS:g} s: try again"
    return JournalIOError(
        f"{path}: {error} ({error.sqlite_errorname}). Acknowledged operations are not lost; {advice}",
        disk_full=code & 0xFF == sqlite3.SQLITE_FULL,
    )


def make_corruption_error(path: Path, reason: str, seq: int | None = None) -> JournalCorruptedError:
    """Return the error of a corrupted journal, with advice."""
    return JournalCorruptedError(
        f"{path} is corrupted: {reason}. Restore the file from a backup; or move it and its -wal file away, and repeat "
        "the upserts and deletes since the release was published",
        seq=seq,
    )


class JournalVersionReader:
    """Detects cheaply whether a journal has changed. Thread-safe.

    Args:
        path: the journal, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._wal_path = path, path.with_name(f"{path.name}-wal")
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._file_state = (0, False)

    def current_version(self) -> JournalVersion | None:
        """Return a value that differs from the last one if the journal was written to since; None while it is missing.

        Raises:
            JournalIOError, JournalCorruptedError: the journal cannot be opened.
        """
        with self._lock, translate_sqlite_errors(self._path):
            try:
                file_state = (self._path.stat().st_ino, self._wal_path.exists())
            except FileNotFoundError:
                return None
            # The inode changes when the file is restored from a backup. A connection that was opened on a read-only
            # disk, without a -wal file, takes the file for immutable, so it is opened again when one appears.
            if self._connection is None or file_state != self._file_state:
                self._close_connection()
                self._connection, self._file_state = connect(self._path, "ro"), file_state
            return *file_state, self._connection.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Close the connection; the next `current_version` opens it again."""
        with self._lock:
            self._close_connection()

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
