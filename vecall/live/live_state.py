"""What is served of a store now, and the locks that keep it consistent."""

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


@dataclass(frozen=True)
class PeerSettings:
    """Other processes that serve the same store.

    Attributes:
        write_lock_path: lock file of processes that write one at a time, whose common `writer.lock` is held by their
            supervisor; None for a process that only reads.
        process_count: how many processes switch to a release together, each loading a copy into memory.
    """

    write_lock_path: Path | None = None
    process_count: int = 1


class LiveState:
    """The memtable that is served, its newest snapshot, and the journal behind it.

    The locks, in the only order in which they may be taken together:

    1. `switch_lock`: one release switch at a time; held while a release is loaded, which takes seconds.
    2. `write_lock`: one write at a time within this process.
    3. the file `peers.write_lock_path`: one write at a time among all processes.
    4. `memtable_lock`: the memtable and `_journal_version`; never held during a disk write.

    Readers take none of them: they read `snapshot` once and keep it to the end of a request.

    Attributes:
        snapshot: what requests are answered from.
        journal: open for writing; None in a process that only reads, and after closing.
    """

    def __init__(self, memtable: MemTable, store: Store | None, peers: PeerSettings | None) -> None:
        self.memtable, self.store, self.peers = memtable, store, peers or PeerSettings()
        self.snapshot: Snapshot = memtable.snapshot
        self.journal: Journal | None = None
        self.switch_lock, self.write_lock, self.memtable_lock = Lock(), Lock(), Lock()
        self._version_reader: JournalVersionReader | None = None
        self._journal_version: JournalVersion | None = None

    def follow_journal(self, reader: JournalVersionReader) -> None:
        """Let `refresh` apply what other processes write."""
        self._version_reader, self._journal_version = reader, reader.current_version()

    def require_store(self) -> Store:
        """The store.

        Raises:
            StoreError: there is none, or the process was forked.
        """
        check_not_forked()
        if self.store is None:
            raise StoreError("this recaller was opened from a single release and has no store to switch releases in")
        return self.store

    def refresh(self) -> None:
        """Apply what other processes have committed; nearly free if there is nothing new.

        Raises:
            JournalDamaged, JournalFailed: the journal cannot be read; the snapshot stays as it is.
            StoreError: the served release was pruned, and with it operations that are needed.
        """
        if self._version_reader is None or (version := self._version_reader.current_version()) == self._journal_version:
            return
        with self.memtable_lock:
            self.catch_up(self.memtable)
            self.require_store().get_release_dir(self.snapshot.release.name)  # else operations it lacks may be pruned
            self.snapshot, self._journal_version = self.memtable.snapshot, version

    def catch_up(self, memtable: MemTable) -> None:
        """Apply the journal's operations that a memtable does not contain yet."""
        journal = self.read_journal(memtable.snapshot.release)
        if journal is not None and journal.last_seq > memtable.snapshot.seq:
            replay(memtable, journal.read_operations(memtable.snapshot.seq))

    def read_journal(self, release: Release) -> Journal | None:
        """The journal in its present state, read again where other processes write to it; None without a store."""
        if self.store is None:
            return None
        if self.journal is not None and self.peers.write_lock_path is None:
            return self.journal
        return Journal.open_readonly(get_journal_path(self.store), release.item_ids.id_type)

    def replace(self, memtable: MemTable) -> Release:
        """Serve another memtable, caught up with all writes.

        Returns:
            The release that was served before.
        """
        with self.write_lock, self.memtable_lock:
            self.catch_up(memtable)
            previous = self.snapshot.release
            self.memtable, self.snapshot = memtable, memtable.snapshot
        return previous
