"""The mutable index that a recaller serves: a release, the changes since, and switches to other releases."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

from vecall.errors import DeltaFullError, ForkError, StoreError
from vecall.live.compactor import Compactor
from vecall.live.item_columns import ColumnBuildError
from vecall.live.item_parsing import parse_deletes, parse_upserts, to_query_error
from vecall.live.journal import Journal
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

MAX_DELTA_ITEMS = 100_000  # by default; each request scans all of them
_WRITE_LOCK_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class UpsertResult:
    """The result of an upsert.

    Attributes:
        release: name of the release that the items were checked against.
        seq: sequence number of the last journal operation that is applied.
        accepted: number of distinct items.
    """

    release: str
    seq: int
    accepted: int


@dataclass(frozen=True)
class DeleteResult:
    """The result of a delete.

    Attributes:
        release: name of the release that the ids were looked up in.
        seq: sequence number of the last journal operation that is applied.
        deleted: number of items that existed.
        unknown: number of distinct ids without an item. Their deletes are in the journal too, because another release
            may have these items.
    """

    release: str
    seq: int
    deleted: int
    unknown: int


class LiveIndex:
    """A release and the changes to it. Thread-safe.

    A request reads `snapshot` once and uses it to its end. `LiveState` describes the locks.

    Args:
        memtable: the release to serve, and changes to it.
        store: the store that the release is from; None for a read-only index of a single release.
        max_delta_items: capacity of the delta.
        keep_previous: keep the previously served release in memory, so that switching back needs no loading.
        peers: other processes that serve the store; None if there are none.

    Attributes:
        on_compaction_served: called after a switch to a compaction, which nobody has asked for.
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
        self.on_compaction_served: Callable[[], None] = lambda: None
        self._compactor: Compactor | None = None
        self._resources = ExitStack()

    @property
    def snapshot(self) -> Snapshot:
        """The state that is served."""
        return self._state.snapshot

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """Return a read-only index of a release as it was published, without a store."""
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
            store: the store.
            name: name of the release; None for the current one.
            writable: accept upserts and deletes. Only one process at a time may do so, unless they are `peers` that
                share a write lock.
            max_delta_items: capacity of the delta; upserts beyond it are rejected until a compaction.
            auto_compact: if writable, start a compaction when there are many changes, and switch to its release.
            keep_previous: keep the previously served release in memory, so that switching back needs no loading.
            peers: other processes that serve the store, whose writes `refresh` applies; None if there are none.

        Raises:
            ForkError: this process was forked from one that used vecall.
            StoreError: there is no such release, or a release contains operations beyond the end of the journal.
            InvalidReleaseError: the release has a corrupted, missing or unexpected file.
            JournalCorruptedError, JournalIOError: the journal cannot be read, or opened for writing.
            LockedError: `writable`, and another process has the store open for writing.
        """
        check_not_forked()
        with ExitStack() as resources:
            if writable and (peers is None or peers.write_lock_path is None):
                resources.enter_context(file_lock(store.path / "writer.lock", timeout=0))
            memtable = MemTable(open_release(store, name))
            index = cls(memtable, store, max_delta_items=max_delta_items, keep_previous=keep_previous, peers=peers)
            resources.callback(index._switcher.close)
            if writable:
                index._open_journal(resources, auto_compact=auto_compact)
            state = index._state
            if peers is not None:
                resources.callback(state.disable_refresh)
                state.enable_refresh()
            state.catch_up(memtable)
            store.get_release_dir(memtable.snapshot.release.name)  # raises if it was pruned, as in `LiveState.refresh`
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
        """Stop accepting writes and following other processes, and end a running compaction.

        Reads go on to work, except those that ask a server, whose connection is closed. In a forked child this does
        nothing: the files, threads and locks are the parent's.
        """
        try:
            check_not_forked()
        except ForkError:
            return
        self._resources.close()  # not under a lock, which an ending compaction may be waiting for
        self._state.journal = None

    def upsert(self, items: object, *, partial: bool = False) -> UpsertResult:
        """Add or replace items, all or none; on return they are durable and in `snapshot`. See `Recaller.upsert`."""
        check_not_forked()
        release = self.snapshot.release
        # Parsing encodes items, which is slow, so it precedes the lock. A partial item needs the current values.
        operations = None if partial else parse_upserts(items, release)
        with self._write_transaction() as journal:
            snapshot = self.snapshot  # its release stays until the end of the transaction
            if operations is None or snapshot.release is not release:
                merger = PartialItemMerger(snapshot, journal) if partial else None
                operations = parse_upserts(items, snapshot.release, merger)
            self._check_delta_capacity(snapshot, operations)
            seq = self._commit(journal, operations, self._prepare(operations, items))
            return UpsertResult(snapshot.release.name, seq, len(operations))

    def _prepare(self, operations: list[Operation], items: Any) -> PreparedBatch:  # noqa: ANN401 - the caller's objects
        """Prepare operations for the memtable before they are written: operations in the journal must not fail."""
        try:
            return self._state.memtable.prepare(operations)
        except ColumnBuildError as error:
            raise to_query_error(error, operations, items) from error

    def delete(self, ids: object) -> DeleteResult:
        """Delete items, all or none; a full delta does not matter. See `Recaller.delete`."""
        with self._write_transaction() as journal:
            snapshot = self.snapshot
            distinct_ids, operations = parse_deletes(ids, snapshot.release)
            deleted = int(snapshot.is_live(snapshot.to_rows(distinct_ids)).sum())
            seq = self._commit(journal, operations, self._state.memtable.prepare(operations))
            return DeleteResult(snapshot.release.name, seq, deleted, len(distinct_ids) - deleted)

    def refresh(self) -> None:
        """Apply what other processes have written. See `LiveState.refresh`."""
        self._state.refresh()

    def activate(self, name: str) -> str | None:
        """Verify a release, make it the store's current one and serve it.

        Running requests keep their snapshot. Writes go on meanwhile, and are in the new snapshot as well.

        Returns:
            Name of the release that was the store's current one before; None if there was none.

        Raises:
            StoreError: there is no such release, it does not fit into memory, or it and the journal do not belong
                together.
            InvalidReleaseError: the release has a corrupted, missing or unexpected file, or its golden queries return
                other results than when it was published.
            EngineUnavailableError: the server that holds the release's index does not answer; the served one stays.
            LockedError: another process holds the store's lock.
        """
        return self._switcher.activate(name)

    def switch_to_current(self) -> str | None:
        """Verify and serve the store's current release, if another one is served.

        Returns:
            Name of the current release; None if it was served already.

        Raises:
            StoreError: no release is current, it does not fit into memory, or it and the journal do not belong
                together.
            InvalidReleaseError: the release or the file `CURRENT` is corrupted, or the golden queries return other
                results than when the release was published.
        """
        return self._switcher.switch_to_current()

    def switch_to_compacted(self, base: str, name: str) -> None:
        """Serve a compaction, unless another release than its base is served by now.

        It becomes the store's current release if the base is that.

        Args:
            base: name of the release that was compacted.
            name: name of the compaction.

        Raises:
            StoreError, InvalidReleaseError, LockedError: as for `activate`.
        """
        if self._switcher.switch_to_compacted(base, name):
            self.on_compaction_served()

    @contextmanager
    def _write_transaction(self) -> Iterator[Journal]:
        """Hold the write locks, with all earlier writes applied; yield the journal."""
        check_not_forked()
        with self._state.write_lock, self._peer_write_lock():
            if self._state.journal is None:
                raise StoreError("this recaller is read-only or closed: open it with writable=True")
            self.refresh()
            try:
                yield self._state.journal
            finally:  # also where the delta is full
                if self._compactor is not None:
                    self._compactor.maybe_start(self.snapshot)

    def _peer_write_lock(self) -> AbstractContextManager[object]:
        path = self._state.peers.write_lock_path
        return nullcontext() if path is None else file_lock(path, timeout=_WRITE_LOCK_TIMEOUT_SECONDS)

    def _check_delta_capacity(self, snapshot: Snapshot, operations: list[Operation]) -> None:
        delta = snapshot.delta
        added = sum(operation.id not in delta.slots.latest for operation in operations)
        if added and delta.distinct_id_count + added > self._max_delta_items:
            raise DeltaFullError(
                f"the delta of release {snapshot.release.name!r} has {delta.distinct_id_count:,} items, and {added:,} "
                f"more would exceed max_delta_items = {self._max_delta_items:,}: run `vecall compact` and activate its "
                "release, or wait for the running compaction, then try again"
            )

    def _commit(self, journal: Journal, operations: list[Operation], prepared: PreparedBatch) -> int:
        """Append operations to the journal, then apply them.

        Returns:
            The last sequence number that is applied.
        """
        state = self._state
        if operations:
            last_seq = journal.append(operations)
            with state.memtable_lock:
                if state.memtable.snapshot.seq == last_seq - len(operations):
                    state.memtable.commit(prepared, seq=last_seq)
                else:
                    # Either an earlier append reached the disk although it was reported as failed, or a `refresh` in
                    # another thread has applied these operations already.
                    state.catch_up(state.memtable)
                state.snapshot = state.memtable.snapshot
        return state.snapshot.seq
