"""The state of a live index that its threads share, and the locks that keep it consistent."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from vecall.errors import StoreError
from vecall.live.journal import Journal
from vecall.live.journal_sqlite import JournalVersion, JournalVersionReader
from vecall.live.memtable import MemTable
from vecall.live.pruning import get_journal_path
from vecall.live.replay import replay
from vecall.live.snapshot import Snapshot
from vecall.release.release import Release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import IdType


@dataclass(frozen=True)
class PeerSettings:
    """How this process serves a store together with others.

    Attributes:
        write_lock_path: lock file that lets one worker at a time write to the store, while their supervisor holds
            `writer.lock` for all of them; None for a reader, and for the only writer, which holds `writer.lock` itself.
        total_process_count: number of processes, this one included, that load a new release at the same time, each
            into memory of its own.
    """

    write_lock_path: Path | None = None
    total_process_count: int = 1


class LiveState:
    """The memtable, its served snapshot, and the journal.

    The locks, in the only order in which they may be nested:

    1. `switch_lock`: one release switch at a time. It is held while a release is loaded, which takes seconds.
    2. `write_lock`: one write at a time within this process, and no switch during a write.
    3. The lock file `peers.write_lock_path`: one write at a time among all processes.
    4. `memtable_lock`: guards the memtable, the assignment of `snapshot`, and `_journal_version`. It is held while the
       journal is read, but not while it is written.

    Further locks fit into this order: a compaction holds the lock file `compaction.lock` around all of them; a switch
    takes `load.lock`, and after that `store.lock`, between 1 and 2; the locks within `Journal` and
    `JournalVersionReader` come last.

    Requests take none of the numbered locks: they read `snapshot` once and use it to their end. Only `refresh`, if
    there is something to apply, takes `memtable_lock`.

    Attributes:
        memtable: the changes to the served release.
        store: the store; None for a release without one.
        peers: how the store is served together with other processes.
        snapshot: the state that requests read.
        journal: the journal, open for writing; None in a process that only reads, and after closing.
    """

    def __init__(self, memtable: MemTable, store: Store | None, peers: PeerSettings | None) -> None:
        self.memtable, self.store, self.peers = memtable, store, peers or PeerSettings()
        self.snapshot: Snapshot = memtable.snapshot
        self.journal: Journal | None = None
        self.switch_lock, self.write_lock, self.memtable_lock = Lock(), Lock(), Lock()
        self._version_reader: JournalVersionReader | None = None
        self._journal_version: JournalVersion | None = None

    def enable_refresh(self) -> None:
        """Let `refresh` apply what other processes have written; until this call it does nothing. Starts no thread.

        Call it before `catch_up`, so that no write is missed.
        """
        self._version_reader = JournalVersionReader(get_journal_path(self.require_store()))
        self._journal_version = self._version_reader.current_version()

    def disable_refresh(self) -> None:
        """Let `refresh` do nothing again."""
        reader, self._version_reader = self._version_reader, None
        if reader is not None:
            reader.close()

    def require_store(self) -> Store:
        """Return the store.

        Raises:
            ForkError: this process was forked from one that used vecall.
            StoreError: there is no store.
        """
        check_not_forked()
        if self.store is None:
            raise StoreError("this recaller was opened from a single release and has no store to switch releases in")
        return self.store

    def refresh(self) -> None:
        """Apply what other processes have written. Takes microseconds if there is nothing new.

        Raises:
            ForkError: this process was forked from one that used vecall.
            JournalCorruptedError, JournalIOError: the journal cannot be read; the snapshot stays.
            StoreError: the served release was pruned, so operations that it lacks may have been pruned from the
                journal too; the snapshot stays.
        """
        check_not_forked()
        reader = self._version_reader
        if reader is None or (version := reader.current_version()) == self._journal_version:
            return
        with self.memtable_lock:
            self.catch_up(self.memtable)
            # Raises if the release was pruned: then operations that it lacks may have been pruned too.
            self.require_store().get_release_dir(self.snapshot.release.name)
            # Writes after `version` was read may be applied as well; then the next refresh finds nothing to apply.
            self.snapshot, self._journal_version = self.memtable.snapshot, version

    def catch_up(self, memtable: MemTable) -> None:
        """Apply the journal's operations that a memtable does not contain yet.

        The caller holds `memtable_lock`, unless no other thread has access to the memtable.
        """
        journal = self.get_current_journal(memtable.snapshot.release.item_ids.id_type)
        if journal is not None and journal.last_seq > memtable.snapshot.seq:
            replay(memtable, journal.read_operations(memtable.snapshot.seq))

    def get_current_journal(self, id_type: IdType) -> Journal | None:
        """Return the journal as it is now, opened again if other processes may have written to it.

        Args:
            id_type: type of the ids that the journal must have.

        Returns:
            The journal; None without a store, or if the store has no journal.
        """
        journal = self.journal
        if self.store is None or (journal is not None and self.peers.write_lock_path is None):
            return journal
        return Journal.open_readonly(get_journal_path(self.store), id_type)

    def replace_memtable(self, memtable: MemTable) -> Release:
        """Serve another memtable, after it has caught up with all writes of this process.

        Returns:
            The release that was served before.
        """
        with self.write_lock, self.memtable_lock:
            self.catch_up(memtable)
            previous = self.snapshot.release
            self.memtable, self.snapshot = memtable, memtable.snapshot
        return previous
