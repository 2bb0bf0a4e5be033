"""Whether other processes have written to a journal since it was read: asked before each recall, so it is cheap."""

import sqlite3
from pathlib import Path
from threading import Lock

from vecall.live.journal_sqlite import connect, explained

Version = tuple[int, bool, int]


class Tail:
    """The end of a journal, as others may move it. Safe to use from several threads.

    Args:
        path: of the journal, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._wal = path, path.with_name(f"{path.name}-wal")
        self._lock = Lock()
        self._db: sqlite3.Connection | None = None
        self._file = (0, False)

    def version(self) -> Version | None:
        """Another value than before if anything was written since; None while there is no journal.

        Raises:
            JournalFailed, JournalDamaged: it cannot be looked at.
        """
        with self._lock, explained(self._path):
            try:
                file = (self._path.stat().st_ino, self._wal.exists())
            except FileNotFoundError:
                return None
            # Another file was brought back from a copy. Without -wal on a read-only disk it was taken for unchangeable.
            if self._db is None or file != self._file:
                self._close()
                self._db, self._file = connect(self._path, "ro"), file
            return *file, self._db.execute("PRAGMA data_version").fetchone()[0]

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
