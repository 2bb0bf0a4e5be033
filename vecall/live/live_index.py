"""The mutable index that a recaller serves: a release, the live changes since, and switches to other releases."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

from vecall.errors import DeltaFullError, StoreError
from vecall.live.compactor import Compactor
from vecall.live.item_columns import ColumnBuildError
from vecall.live.item_parsing import parse_deletes, parse_upserts, to_query_error
from vecall.live.journal import Journal
from vecall.live.journal_sqlite import JournalVersionReader
from vecall.live.live_state import LiveState, PeerSettings
from vecall.live.memtable import MemTable, PreparedBatch
from vecall.live.operations import Operation
from vecall.live.partial_upserts import PartialItemMerger
from vecall.live.pruning import check_journal_covers, get_journal_path
from vecall.live.snapshot import Snapshot
from vecall.live.switching import ReleaseSwitcher
from vecall.release.file_lock import file_lock
from vecall.release.release import Release, open_release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked

MAX_DELTA_ITEMS = 100_000  # each request scans all of them
_WRITE_LOCK_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class UpsertResult:
    """What an upsert did.

    Attributes:
        release: the release that the items were checked against.
        seq: the last journal operation that is applied now.
        accepted: number of distinct items.
    """

    release: str
    seq: int
    accepted: int


@dataclass(frozen=True)
class DeleteResult:
    """What a delete did.

    Attributes:
        release: the release that the ids were looked up in.
        seq: the last journal operation that is applied now.
        deleted: number of items that existed.
        unknown: number of distinct ids without an item. They are journalled all the same: another release may have
            them.
    """

    release: str
    seq: int
    deleted: int
    unknown: int


class LiveIndex:
    """A release and its live changes. Any thread may read or write.

    A request reads `snapshot` once and uses that to its end. `LiveState` describes the locks.
    """

    def __init__(
        self,
        memtable: MemTable,
        store: Store | None = None,
        *,
        max_delta_items: int = MAX_DELTA_ITEMS,
        keep_previous: bool = False,
        peers: PeerSettings | None = None,
    ) -> None:
        self._state = LiveState(memtable, store, peers)
        self._switcher = ReleaseSwitcher(self._state, keep_previous=keep_previous)
        self._max_delta_items = max_delta_items
        self._compactor: Compactor | None = None
        self._resources = ExitStack()

    @property
    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self._state.snapshot

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """A release as it was published, without a store: read-only."""
        return cls(MemTable(release))

    @classmethod
    def open(
        cls,
        store: Store,
        name: str | None,
        *,
        writable: bool,
        max_delta_items: int = MAX_DELTA_ITEMS,
        auto_compact: bool = True,
        keep_previous: bool = False,
        peers: PeerSettings | None = None,
    ) -> Self:
        """Open a release and replay the journal onto it.

        Args:
            store: the store to open from.
            name: of the release; None opens the current one.
            writable: accept upserts and deletes; one process at a time may.
            max_delta_items: live items beyond the release; more are refused.
            auto_compact: start a compaction when there are many changes, and switch to its release.
            keep_previous: keep the release served before in memory, so that switching back takes no loading.
            peers: other processes that serve the store, whose writes `refresh` applies; None if there are none.

        Raises:
            StoreError: there is no such release, or the journal is not the one that it was made beside.
            ReleaseRefused: a file of it is damaged, missing or too many.
            JournalDamaged, JournalFailed: the journal cannot be read, or written.
            Locked: `writable`, and another process writes.
        """
        with ExitStack() as resources:
            if writable and (peers is None or peers.write_lock_path is None):
                resources.enter_context(file_lock(store.path / "writer.lock", timeout=0))
            memtable = MemTable(open_release(store, name))
            index = cls(memtable, store, max_delta_items=max_delta_items, keep_previous=keep_previous, peers=peers)
            if writable:
                index._open_journal(resources, auto_compact=auto_compact)
            state = index._state
            if peers is not None:
                reader = JournalVersionReader(get_journal_path(store))
                resources.callback(reader.close)
                state.follow_journal(reader)
            state.catch_up(memtable)
            store.get_release_dir(memtable.snapshot.release.name)  # else operations that it lacks may be pruned
            state.snapshot = memtable.snapshot
            index._resources = resources.pop_all()
        return index

    def _open_journal(self, resources: ExitStack, *, auto_compact: bool) -> None:
        state, store = self._state, self._state.require_store()
        journal = Journal.open(get_journal_path(store), state.snapshot.release.item_ids.id_type)
        state.journal = resources.enter_context(journal)
        check_journal_covers(journal, store.list_releases(skip_damaged=True))
        if auto_compact:
            self._compactor = Compactor(
                store.path, self.switch_to_compacted, self._max_delta_items, state.peers.write_lock_path
            )
            resources.callback(self._compactor.close)

    def close(self) -> None:
        """Stop writing, and a compaction that runs. Snapshots stay readable."""
        self._resources.close()  # not under `write_lock`, which an ending compaction may be waiting for
        self._state.journal = None

    def upsert(self, items: object, *, partial: bool = False) -> UpsertResult:
        """Add or replace items, all or none; on return they are durable and in `snapshot`. See `Recaller.upsert`."""
        check_not_forked()
        release = self.snapshot.release
        # Parsing is slow, so it is done before the lock; a partial item must see what it is a part of.
        operations = None if partial else parse_upserts(items, release)
        with self._write_transaction() as journal:
            if operations is None or self.snapshot.release is not release:
                completer = PartialItemMerger(self.snapshot, journal) if partial else None
                operations = parse_upserts(items, self.snapshot.release, completer)
            self._check_delta_capacity(operations)
            seq = self._commit(journal, operations, self._prepare(operations, items))
            return UpsertResult(self.snapshot.release.name, seq, len(operations))

    def _prepare(self, operations: list[Operation], items: Any) -> PreparedBatch:  # noqa: ANN401 - the caller's own objects
        """The operations ready to be applied, before they are durable: what the journal holds must never fail."""
        try:
            return self._state.memtable.prepare(operations)
        except ColumnBuildError as error:
            raise to_query_error(error, operations, items) from error

    def delete(self, ids: object) -> DeleteResult:
        """Delete items, all or none; never refused for capacity. See `Recaller.delete`."""
        with self._write_transaction() as journal:
            distinct, operations = parse_deletes(ids, self.snapshot.release)
            deleted = int(self.snapshot.is_live(self.snapshot.to_rows(distinct)).sum())
            seq = self._commit(journal, operations, self._state.memtable.prepare(operations))
            return DeleteResult(self.snapshot.release.name, seq, deleted, len(distinct) - deleted)

    def refresh(self) -> None:
        """Apply what other processes have committed. See `LiveState.refresh`."""
        self._state.refresh()

    def activate(self, name: str) -> str | None:
        """Verify a release, make it the store's current one and serve it.

        Requests keep the snapshot that they have. Writes go on meanwhile, and are in the new snapshot as well.

        Returns:
            Name of the release that was current before.

        Raises:
            StoreError: there is no such release, or the journal is not its own.
            ReleaseRefused: a file of it is damaged, missing or too many, or its golden queries have other answers.
            Locked: another process holds the store's lock.
        """
        return self._switcher.activate(name)

    def switch_to_current(self) -> str | None:
        """Verify and serve the store's current release, if another one is served.

        Returns:
            Its name; None if it is served already.

        Raises:
            StoreError: none is current, there is no memory for it, or the journal is not its own.
            ReleaseRefused: it or the file `CURRENT` is damaged, or its golden queries have other answers.
        """
        return self._switcher.switch_to_current()

    def switch_to_compacted(self, base: str, name: str) -> None:
        """Serve the compaction `name` of release `base`, unless another release was activated meanwhile."""
        self._switcher.switch_to_compacted(base, name)

    @contextmanager
    def _write_transaction(self) -> Iterator[Journal]:
        check_not_forked()
        with self._state.write_lock, self._peer_write_lock():
            if self._state.journal is None:
                raise StoreError("this recaller is read-only or closed: open it with writable=True")
            self.refresh()
            yield self._state.journal
            if self._compactor is not None:
                self._compactor.maybe_start(self.snapshot)

    def _peer_write_lock(self) -> AbstractContextManager[object]:
        path = self._state.peers.write_lock_path
        return nullcontext() if path is None else file_lock(path, timeout=_WRITE_LOCK_TIMEOUT_SECONDS)

    def _check_delta_capacity(self, operations: list[Operation]) -> None:
        delta = self.snapshot.delta
        added = sum(operation.id not in delta.slots.latest for operation in operations)
        if added and delta.distinct_id_count + added > self._max_delta_items:
            raise DeltaFullError(
                f"release {self.snapshot.release.name!r} has {delta.distinct_id_count:,} live delta items, and {added:,} more would "
                f"exceed max_delta_items = {self._max_delta_items:,}: run `vecall compact` and activate its release, "
                "or wait for the running compaction, then try again"
            )

    def _commit(self, journal: Journal, operations: list[Operation], prepared: PreparedBatch) -> int:
        """Write operations down, then apply them.

        Returns:
            The last sequence number that is applied.
        """
        state = self._state
        if operations:
            last = journal.append(operations)
            with state.memtable_lock:
                if state.snapshot.seq == last - len(operations):
                    state.memtable.commit(prepared, seq=last)
                else:  # an earlier append reached the disk though it was reported as failed
                    state.catch_up(state.memtable)
                state.snapshot = state.memtable.snapshot
        return state.snapshot.seq
