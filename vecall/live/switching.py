"""Switching of a running index from one release to another, without interrupting requests or writes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from vecall.errors import StoreError
from vecall.live.index_unloading import IndexUnloader
from vecall.live.live_state import LiveState
from vecall.live.memory import check_memory
from vecall.live.memtable import MemTable
from vecall.live.pruning import check_journal_covers
from vecall.release.file_lock import file_lock
from vecall.release.manifest import read_manifest
from vecall.release.release import Release, open_and_check_release
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_LOAD_LOCK_TIMEOUT_SECONDS = 600.0  # for the other processes of the machine to load the release, one after another


class ReleaseSwitcher:
    """Verifies a release, replays the journal onto it, and serves it.

    Args:
        state: the state of the index.
        keep_previous: keep the previously served release in memory, so that switching back needs no loading.
    """

    def __init__(self, state: LiveState, *, keep_previous: bool) -> None:
        self._state, self._keep_previous = state, keep_previous
        self._previous: Release | None = None  # guarded by the state's `switch_lock`
        self._has_kept_previous = False
        self._unloader = IndexUnloader(self._is_current)

    def close(self) -> None:
        """End the threads and connections of indexes on servers."""
        self._unloader.close()
        self._state.snapshot.release.close()

    def activate(self, name: str) -> str | None:
        """Make a release the store's current one and serve it. See `LiveIndex.activate`."""
        state, store = self._state, self._state.require_store()
        with (
            state.switch_lock,
            self._prepare(store, name, process_count=state.peers.total_process_count) as memtable,
        ):
            previous_current = store.activate(name)
            self._switch(memtable)
        return previous_current

    def switch_to_current(self) -> str | None:
        """Serve the store's current release. See `LiveIndex.switch_to_current`."""
        store = self._state.require_store()
        with self._state.switch_lock:
            current, served = store.get_current(), self._state.snapshot.release
            name = current.release
            if name == served.name:
                if current.manifest_sha256 == served.manifest_sha256:
                    return None
                # Another release was put in its place, as on a machine that gets copies, unless `CURRENT` is wrong.
                read_manifest(store.get_release_dir(name), expected_sha256=current.manifest_sha256)
            with self._prepare(store, name) as memtable:
                self._switch(memtable)
        return name

    def switch_to_compacted(self, base: str, name: str) -> bool:
        """Serve a compaction; returns whether it is served. See `LiveIndex.switch_to_compacted`."""
        state, store = self._state, self._state.require_store()
        with state.switch_lock:
            served = state.snapshot.release.name
            if name == base or served != base:
                logger.info("not switching to release %s: %s is served", name, served)
                return False
            with self._prepare(store, name, process_count=state.peers.total_process_count) as memtable:
                if not store.replace_current(base, name) and state.peers.write_lock_path is not None:
                    return False  # all these processes follow the current release, which is another one by now
                self._switch(memtable)
        return True

    @contextmanager
    def _prepare(self, store: Store, name: str, *, process_count: int = 1) -> Iterator[MemTable]:
        """Verify a release, replay the journal's operations so far onto it, and give it up unless it is served then.

        Args:
            store: the store.
            name: name of the release.
            process_count: number of processes that load the release at the same time.
        """
        release = self._find_in_memory(store, name) or self._load(store, name, process_count)
        self._unloader.cancel(release)
        try:
            if release.remote_index is not None:
                release.remote_index.load()  # it may have been unloaded since it was served
            yield self._replay(store, release)
        finally:
            self._retire(release)

    def _replay(self, store: Store, release: Release) -> MemTable:
        state, journal, name = self._state, self._state.journal, release.name
        if journal is not None:
            check_journal_covers(state.get_current_journal(release.item_ids.id_type) or journal, [release.manifest])
            if release.item_ids.id_type != (id_type := state.snapshot.release.item_ids.id_type):
                raise StoreError(
                    f"release {name!r} has {release.item_ids.id_type} ids, but the served release and the journal have "
                    f"{id_type} ids: publish it to a store of its own"
                )
        memtable = MemTable(release)
        state.catch_up(memtable)
        store.get_release_dir(name)  # raises if it was pruned meanwhile, as in `LiveState.refresh`
        return memtable

    def _find_in_memory(self, store: Store, name: str) -> Release | None:
        """Return the release if it is in memory and still the same on the disk."""
        for release in (self._state.snapshot.release, self._previous):
            if release is None or release.name != name:
                continue
            if release.manifest == read_manifest(store.get_release_dir(name))[0]:
                return release
        return None

    def _load(self, store: Store, name: str, process_count: int) -> Release:
        if self._has_kept_previous:  # the other processes hold one, too, and drop it before they load
            process_count = 1
        self._previous = None  # at most two releases are in memory
        write_lock_path = self._state.peers.write_lock_path
        load_lock = (
            nullcontext()
            if write_lock_path is None
            else file_lock(write_lock_path.with_name("load.lock"), timeout=_LOAD_LOCK_TIMEOUT_SECONDS)
        )
        with load_lock:  # otherwise several processes would count on the same free memory
            check_memory(read_manifest(store.get_release_dir(name))[0], process_count)
            return open_and_check_release(store, name)

    def _switch(self, memtable: MemTable) -> None:
        previous = self._state.replace_memtable(memtable)
        self._retire(previous)
        snapshot = self._state.snapshot
        if self._is_current(snapshot.release.name):
            snapshot.release.mark_current()
        if self._keep_previous and previous is not snapshot.release:
            self._previous, self._has_kept_previous = previous, True
        logger.info("serving release %s with %d live delta items", snapshot.release.name, snapshot.delta.live_count)

    def _retire(self, release: Release) -> None:
        """Unload the index of a release later, unless it is served."""
        if release is not self._state.snapshot.release:
            self._unloader.schedule(release, self._state.peers.total_process_count)

    def _is_current(self, name: str) -> bool:
        current = None if self._state.store is None else self._state.store.find_current()
        return current is not None and current.release == name
