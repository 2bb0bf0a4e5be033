"""Where a recaller's views come from, and where its writes go: one release, its journal, and the next release."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from vecall.errors import DeltaFull, StoreError
from vecall.live.compactor import Compactor
from vecall.live.item_columns import UnfitValueError
from vecall.live.item_parsing import deletions, unfit_error, upserts
from vecall.live.journal import Journal
from vecall.live.memory import check_memory
from vecall.live.memtable import Overlay, Prepared
from vecall.live.operations import Operation
from vecall.live.partial_upserts import Completer
from vecall.live.pruning import check_reaches, journal_path
from vecall.live.replay import replay
from vecall.live.tail import Tail, Version
from vecall.release.file_lock import hold
from vecall.release.manifest import read_manifest
from vecall.release.release import Release, open_release, prove_release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked

logger = logging.getLogger(__name__)

DELTA_MAX = 100_000  # items beside the base; each is scanned by each request
_PATIENCE, _LONG = 10.0, 600.0  # seconds to wait for another process's write, and for its loading of a release


@dataclass(frozen=True)
class Written:
    """What an upsert did.

    Attributes:
        release: the one it was checked against.
        seq: the last operation that is contained now.
        accepted: distinct items that were taken.
    """

    release: str
    seq: int
    accepted: int


@dataclass(frozen=True)
class Deleted:
    """What a delete did.

    Attributes:
        release: the one it was looked up in.
        seq: the last operation that is contained now.
        deleted: items that were there, and are not any more.
        unknown: distinct ids that no item had. They are written down all the same: another release may have them.
    """

    release: str
    seq: int
    deleted: int
    unknown: int


@dataclass(frozen=True)
class Others:
    """Other processes that serve the same store. A source that is told of them takes in what they write.

    Attributes:
        turns: a lock file of processes that write one at a time, whose `writer.lock` is held by who started them; None:
            the others take no notice of this one, which only reads.
        copies: how many processes go over to a release together, each with one of its own in memory.
    """

    turns: Path | None = None
    copies: int = 1


class Source:
    """A release and its changes. A request takes `view` once and uses it to its end; any thread may write.

    Attributes:
        view: what is served now.
    """

    def __init__(
        self,
        overlay: Overlay,
        store: Store | None = None,
        *,
        delta_max: int = DELTA_MAX,
        keep_previous: bool = False,
        others: Others | None = None,
    ) -> None:
        self.view = overlay.view
        self._overlay, self._store, self._delta_max = overlay, store, delta_max
        self._keep_previous, self._others = keep_previous, others or Others()
        self._previous: Release | None = None
        self._journal: Journal | None = None  # only of a writer
        self._compactor: Compactor | None = None
        self._tail: Tail | None = None  # where other processes write
        self._seen: Version | None = None
        self._held = ExitStack()
        self._swaps = Lock()
        self._writes = Lock()
        self._applying = Lock()  # of the overlay and what is seen of it; not held while a write goes to the disk

    @classmethod
    def of(cls, release: Release) -> Self:
        """A release by itself, as it was published."""
        return cls(Overlay(release))

    @classmethod
    def open(
        cls,
        store: Store,
        name: str | None,
        *,
        writable: bool,
        delta_max: int = DELTA_MAX,
        auto_compact: bool = True,
        keep_previous: bool = False,
        others: Others | None = None,
    ) -> Self:
        """Open a release and bring the journal's operations onto it.

        Args:
            store: where it lies.
            name: of the release; None is the current one.
            writable: take upserts and deletes; of all processes one may at a time.
            delta_max: items beside the base, beyond which new ones are refused.
            auto_compact: start a compaction when there are many changes, and go over to its release.
            keep_previous: keep in memory the release that was served before, to go back to it at once.
            others: that serve the store too, and whose writes `see_others` takes in; None: there are none.

        Raises:
            StoreError: there is no such release, or the journal is not the one that it was made beside.
            ReleaseRefused: a file of it is damaged, missing or too many.
            JournalDamaged, JournalFailed: the journal cannot be read, or written.
            Locked: `writable`, and another process writes.
        """
        with ExitStack() as held:
            if writable and (others is None or others.turns is None):
                held.enter_context(hold(store.path / "writer.lock", timeout=0))
            overlay = Overlay(open_release(store, name))
            source = cls(overlay, store, delta_max=delta_max, keep_previous=keep_previous, others=others)
            if writable:
                id_type = source.view.release.items.id_type
                source._journal = held.enter_context(Journal.open(journal_path(store), id_type))
                check_reaches(source._journal, store.releases(skip_damaged=True))
                if auto_compact:
                    source._compactor = Compactor(store.path, source.adopt, delta_max, source._others.turns)
                    held.callback(source._compactor.close)
            if others is not None:
                source._tail = Tail(journal_path(store))
                held.callback(source._tail.close)
                source._seen = source._tail.version()
            source._catch_up(source._overlay)
            store.folder(source.view.release.name)  # or operations that it lacks may have been pruned with it
            source.view = source._overlay.view
            source._held = held.pop_all()
        return source

    def close(self) -> None:
        """End writing and a compaction that runs. Views that were taken can be read still."""
        self._held.close()  # not under `_writes`, which an ending compaction may be waiting for
        self._journal = None

    def upsert(self, items: object, *, partial: bool = False) -> Written:
        """Add or replace items, all or none: on return they are on the disk and in `view`. See `Recaller.upsert`."""
        check_not_forked()
        release = self.view.release
        # Which takes long, before others are kept from writing; partial ones need to know what they are part of.
        operations = None if partial else upserts(items, release)
        with self._writing() as journal:
            if operations is None or self.view.release is not release:
                completer = Completer(self.view, journal) if partial else None
                operations = upserts(items, self.view.release, completer)
            self._check_room(operations)
            seq = self._commit(journal, operations, self._prove(operations, items))
            return Written(self.view.release.name, seq, len(operations))

    def _prove(self, operations: list[Operation], items: Any) -> Prepared:  # noqa: ANN401 - as they were given
        """The operations ready to be applied, before they are written down: what is in the journal must never fail."""
        try:
            return self._overlay.prepare(operations)
        except UnfitValueError as error:
            raise unfit_error(error, operations, items) from error

    def delete(self, ids: object) -> Deleted:
        """Delete items, all or none, likewise; it is never too much. See `Recaller.delete`."""
        with self._writing() as journal:
            distinct, operations = deletions(ids, self.view.release)
            there = int(self.view.has(self.view.rows(distinct)).sum())
            seq = self._commit(journal, operations, self._overlay.prepare(operations))
            return Deleted(self.view.release.name, seq, there, len(distinct) - there)

    def see_others(self) -> None:
        """Take in what other processes have written, if this source follows them. Costs next to nothing if none has.

        Raises:
            JournalDamaged, JournalFailed: the journal cannot be read; the view stays.
            StoreError: the release that is served was pruned, and with it what it lacks.
        """
        if self._tail is None or (now := self._tail.version()) == self._seen:
            return
        with self._applying:
            self._catch_up(self._overlay)
            self._of_store().folder(self.view.release.name)  # as in `open`
            self.view, self._seen = self._overlay.view, now

    def activate(self, name: str) -> str | None:
        """Go over to another release, once it has proved itself, and make it the store's current one.

        Requests that have a view keep it. Writes go on meanwhile, and are in the new view as well.

        Returns:
            Name of the release that was current before.

        Raises:
            StoreError: there is no such release, or the journal is not its own.
            ReleaseRefused: a file of it is damaged, missing or too many, or it answers otherwise than it did.
            Locked: another process holds the store's lock.
        """
        store = self._of_store()
        with self._swaps:
            overlay = self._prepared(store, name, copies=self._others.copies)
            previous = store.activate(name)
            self._swap(overlay)
        return previous

    def follow(self) -> str | None:
        """Go over to the store's current release, once it has proved itself, if it is another than the one served.

        Returns:
            Its name; None where it is the one served.

        Raises:
            StoreError: none is current, there is no memory for it, or the journal is not its own.
            ReleaseRefused: it or the file `CURRENT` is damaged, or it answers otherwise than it did.
        """
        store = self._of_store()
        with self._swaps:
            name = store.current().release
            if name == self.view.release.name:
                return None
            self._swap(self._prepared(store, name))
        return name

    def adopt(self, base: str, name: str) -> None:
        """Go over to what was compacted of `base`, unless another release has been activated meanwhile."""
        store = self._of_store()
        with self._swaps:
            if name == base or self.view.release.name != base:
                logger.info("release %s is not gone over to: %s is served", name, self.view.release.name)
                return
            overlay = self._prepared(store, name, copies=self._others.copies)
            current = store.find_current()
            if current is not None and current.release == base:
                store.activate(name)
            elif self._others.turns is not None:
                return  # all of these processes follow what is current
            self._swap(overlay)

    def _prepared(self, store: Store, name: str, *, copies: int = 1) -> Overlay:
        """A release that has proved itself, with the journal's operations so far."""
        release = self._kept(store, name) or self._opened(store, name, copies)
        if self._journal is not None:
            check_reaches(self._journal_now(release) or self._journal, [release.manifest])
            if release.items.id_type != (ids := self.view.release.items.id_type):
                raise StoreError(
                    f"release {name!r} has {release.items.id_type} ids, and {ids} ids are served and in the journal: "
                    "give these items a store of their own"
                )
        overlay = Overlay(release)
        self._catch_up(overlay)
        store.folder(name)  # as above
        return overlay

    def _kept(self, store: Store, name: str) -> Release | None:
        """The release of that name if it is in memory, and what is on the disk is still it."""
        for kept in (self.view.release, self._previous):
            if kept is not None and kept.name == name and kept.manifest == read_manifest(store.folder(name))[0]:
                return kept
        return None

    def _opened(self, store: Store, name: str, copies: int) -> Release:
        self._previous = None  # at most two of them are in memory
        alone = (
            nullcontext()
            if self._others.turns is None
            else hold(self._others.turns.with_name("load.lock"), timeout=_LONG)
        )
        with alone:  # or several would count on the same free memory
            check_memory(read_manifest(store.folder(name))[0], copies)
            return prove_release(store, name)

    def _swap(self, overlay: Overlay) -> None:
        with self._writes, self._applying:
            self._catch_up(overlay)
            before, self._overlay, self.view = self.view, overlay, overlay.view
        if self._keep_previous and before.release is not self.view.release:
            self._previous = before.release
        logger.info("release %s is served, with %d items beside it", self.view.release.name, self.view.delta.count)

    def _catch_up(self, overlay: Overlay) -> None:
        """Apply what the journal has beyond the overlay's view."""
        journal = self._journal_now(overlay.view.release)
        if journal is not None and journal.last_seq > overlay.view.seq:
            replay(overlay, journal.since(overlay.view.seq))

    def _journal_now(self, release: Release) -> Journal | None:
        """The journal as it is now; one that others write to is not known from having been opened."""
        if self._store is None:
            return None
        if self._journal is not None and self._others.turns is None:
            return self._journal
        return Journal.read(journal_path(self._store), release.items.id_type)

    @contextmanager
    def _writing(self) -> Iterator[Journal]:
        check_not_forked()
        with self._writes, self._turn():
            if self._journal is None:
                raise StoreError("this recaller takes no changes: open it with writable=True, and do not close it")
            self.see_others()
            yield self._journal
            if self._compactor is not None:
                self._compactor.consider(self.view)

    def _turn(self) -> AbstractContextManager[object]:
        return nullcontext() if self._others.turns is None else hold(self._others.turns, timeout=_PATIENCE)

    def _check_room(self, operations: list[Operation]) -> None:
        delta = self.view.delta
        new = sum(operation.id not in delta.slots.newest for operation in operations)
        if new and delta.held + new > self._delta_max:
            raise DeltaFull(
                f"{delta.held:,} items stand beside release {self.view.release.name!r}, and {new:,} more would be over "
                f"delta_max = {self._delta_max:,}: run `vecall compact` and activate its release, or wait for the "
                "compaction that runs, then try again"
            )

    def _commit(self, journal: Journal, operations: list[Operation], prepared: Prepared) -> int:
        if operations:
            last = journal.append(operations)
            with self._applying:
                if self.view.seq == last - len(operations):
                    self._overlay.commit(prepared, seq=last)
                else:  # something was on the disk that an earlier failure had not let us know
                    self._catch_up(self._overlay)
                self.view = self._overlay.view
        return self.view.seq

    def _of_store(self) -> Store:
        check_not_forked()
        if self._store is None:
            raise StoreError("this recaller was made of one release and has no store to take another from")
        return self._store
