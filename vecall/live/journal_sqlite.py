"""The journal's SQLite file: made whole, opened, asked for its state; what SQLite says, in our words."""

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
from vecall.release.atomic_io import fsync_path
from vecall.schema import IdType

JournalVersion = tuple[int, bool, int]

JOURNAL_FORMAT = 1
BUSY_TIMEOUT_SECONDS = 10.0  # seconds to wait for another process's transaction

# `id` is NULL in superseded rows: it finds the last operation of an item.
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

# What its calls may raise; the second where damaged text is no UTF-8, even in its own message.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

# SQLite's words for trouble with the disk or another process. Whatever else it may say here means damage.
_IO_ERROR_CODES = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_TOOBIG),
}


@dataclass(frozen=True)
class JournalHeader:
    """What a journal says of itself, in one row with a checksum."""

    format: int
    id_type: IdType
    pruned_to: int
    last_seq: int

    def to_row(self) -> tuple[int | str, ...]:
        """The columns of the table `state`."""
        return (*astuple(self), crc32(repr(astuple(self)).encode()))


def create_journal(path: Path, id_type: IdType) -> None:
    """Have an empty journal appear whole, so that a file of no bytes is known for damage."""
    if path.with_name(f"{path.name}-wal").exists() and not path.exists():  # in this order: the file comes first
        raise make_corruption_error(path, "it is gone, though its -wal is there")
    column = "INTEGER" if id_type == "integer" else "TEXT"
    fresh = path.with_name(f"tmp-{uuid.uuid4().hex}")
    try:
        with closing(sqlite3.connect(fresh, isolation_level=None)) as db:
            db.executescript(_SCHEMA.format(id=column, state=JournalHeader(JOURNAL_FORMAT, id_type, 0, 0).to_row()))
        os.link(fresh, path)  # unlike a renaming, it spares one that another process made meanwhile
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def connect(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """A connection whose transactions are begun and ended by hand, and are on the disk when they have ended."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        uri += "&immutable=1"  # a read-only disk has no place for -shm, and no writer
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if mode == "rw":
            db.executescript("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_mode = WAL")
            fsync_path(path.parent)  # for the names, -wal's too: SQLite does the same, but does not say if it fails
    except BaseException:
        db.close()
        raise
    return db


def read_header(db: sqlite3.Connection, path: Path, id_type: IdType) -> JournalHeader:
    """What the journal says of itself, once that was checked.

    Raises:
        JournalDamaged: it is not what was written, or there is another last operation.
        StoreError: another format, or ids of another type.
    """
    rows = db.execute("SELECT *, (SELECT max(seq) FROM operations) FROM state").fetchall()  # one query, one moment
    state = JournalHeader(*rows[0][:4]) if len(rows) == 1 else None
    if state is None or state.to_row() != rows[0][:5]:
        raise make_corruption_error(path, f"what it says of itself is not what was written: {rows}")
    if (state.format, state.id_type) != (JOURNAL_FORMAT, id_type):
        raise StoreError(
            f"{path} is a journal of format {state.format} for ids of type {state.id_type}, expected format {JOURNAL_FORMAT} "
            f"and {id_type}: use the vecall that wrote it, or another store for these items"
        )
    last = rows[0][5]
    if (state.pruned_to if last is None else last) != state.last_seq:
        raise make_corruption_error(
            path, f"operation {state.last_seq} is to be the last one, found {last}", state.last_seq
        )
    return state


@contextmanager
def translate_sqlite_errors(path: Path) -> Iterator[None]:
    """Errors of SQLite and the system, as ours."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise to_journal_error(path, error) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise JournalIOError(f"{path} cannot be opened: {error}. Mend this, then try again", disk_full=full) from error


def to_journal_error(path: Path, error: Exception, seq: int | None = None) -> StoreError:
    """An error of SQLite as ours; `seq` is the operation that was to be read."""
    code = getattr(error, "sqlite_errorcode", None)  # None: text that is no UTF-8
    if not isinstance(error, sqlite3.Error) or code is None or code & 0xFF not in _IO_ERROR_CODES:
        return make_corruption_error(
            path, f"{'it' if seq is None else f'operation {seq}'} cannot be read: {error}", seq
        )
    advice = "free space on its disk, or see to it that it can be written; then try again"
    if code & 0xFF == sqlite3.SQLITE_BUSY:
        advice = f"another process has been busy with it for {BUSY_TIMEOUT_SECONDS:g} s: try again"
    return JournalIOError(
        f"{path}: {error} ({error.sqlite_errorname}). What was acknowledged stands; {advice}",
        disk_full=code & 0xFF == sqlite3.SQLITE_FULL,
    )


def make_corruption_error(path: Path, reason: str, seq: int | None = None) -> JournalCorruptedError:
    """The refusal of a damaged journal."""
    return JournalCorruptedError(
        f"{path} is damaged: {reason}. Bring the file back from a copy; or move it and its -wal away, and give again "
        "what changed since the release was made",
        seq=seq,
    )


class JournalVersionReader:
    """The end of a journal, as others may move it. Safe to use from several threads.

    Args:
        path: of the journal, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._wal_path = path, path.with_name(f"{path.name}-wal")
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._file_state = (0, False)

    def current_version(self) -> JournalVersion | None:
        """Another value than before if anything was written since; None while there is no journal.

        Raises:
            JournalFailed, JournalDamaged: it cannot be looked at.
        """
        with self._lock, translate_sqlite_errors(self._path):
            try:
                file = (self._path.stat().st_ino, self._wal_path.exists())
            except FileNotFoundError:
                return None
            # Another file was brought back from a copy. Without -wal on a read-only disk it was taken for unchangeable.
            if self._connection is None or file != self._file_state:
                self._close_connection()
                self._connection, self._file_state = connect(self._path, "ro"), file
            return *file, self._connection.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._close_connection()

    def _close_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
