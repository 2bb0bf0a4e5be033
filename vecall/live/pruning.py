"""Pruning of releases and journal operations, and checks that a release and the journal belong together.

An operation is still needed if some release, or the tables that releases are published from, may not contain it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from vecall.errors import JournalCorruptedError, JournalIOError, StoreError
from vecall.index.dropping import drop_index
from vecall.live.journal import Journal
from vecall.release.manifest import Manifest
from vecall.release.store import Store
from vecall.schema import IdType

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruneResult:
    """What a pruning deleted.

    Attributes:
        release_names: names of the deleted releases, newest first.
        operation_count: number of deleted journal operations, including superseded ones.
    """

    release_names: list[str]
    operation_count: int


def get_journal_path(store: Store) -> Path:
    """Return the path of a store's journal, which need not exist."""
    return store.path / "journal.sqlite"


def prune_store(store: Store, keep: int) -> PruneResult:
    """Delete old releases, with what their engines keep elsewhere, then operations that nothing remaining needs.

    Servers may keep writing to the store.

    Args:
        store: the store.
        keep: number of the newest releases that stay; the current one and its parent always do. See `Store.prune`.

    Raises:
        StoreError: `keep` is negative.
        InvalidReleaseError: `CURRENT` or a manifest is corrupted, so it is not known what must stay.
        JournalCorruptedError, JournalIOError: the journal cannot be pruned; old releases are deleted by then.
        LockedError: another process holds the store's lock.
    """
    infos = {manifest.name: manifest.index for manifest in store.list_releases()}
    deleted = store.prune(keep)
    for name in deleted:
        if name in infos:  # not one that was published and deleted since
            drop_index(infos[name], store.path)
    with store.lock():  # or a release could be published that needs what is pruned
        path, releases = get_journal_path(store), store.list_releases()
        until_seq = find_max_prunable_seq(releases)
        if until_seq == 0 or not path.exists():
            return PruneResult(deleted, 0)
        with Journal.open(path, releases[0].id_type) as journal:
            return PruneResult(deleted, journal.prune(until_seq))


def find_max_prunable_seq(releases: list[Manifest]) -> int:
    """Return the last operation that every release contains, and the tables too, which may be published again.

    Args:
        releases: manifests of all releases of the store, newest first.

    Returns:
        A sequence number; 0 if no operation may be pruned.
    """
    if not releases:
        return 0
    return min(releases[0].tables_seq, *(release.journal_seq for release in releases))


def check_tables_seq(store: Store, id_type: IdType, seq: int) -> None:
    """Check that tables which are said to contain all operations up to `seq` can do so.

    Args:
        store: the store that the tables are published to.
        id_type: type of the item ids.
        seq: the `journal_seq` that the publisher gave.

    Raises:
        StoreError: `seq` is no integer, negative, beyond the end of the journal or before its start, or the journal or
            the current release has ids of another type.
    """
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise StoreError(f"journal_seq is {seq!r:.80}; expected the sequence number of an operation, or 0 for none")
    served = store.find_current_manifest()  # a damaged one does not prevent another
    if served is not None and served.id_type != id_type:
        raise StoreError(
            f"the current release {served.name!r} of {store.path} has item ids of type {served.id_type}, and these are "
            f"of type {id_type}: publish them to another store, since live changes belong to one of the types"
        )
    try:
        # Even where nothing of it is contained: with ids of another type, the store could not be opened any more.
        journal = Journal.open_readonly(get_journal_path(store), id_type)
    except (JournalCorruptedError, JournalIOError):
        if seq == 0:
            return
        raise
    last_seq, pruned_to = (0, 0) if journal is None else (journal.last_seq, journal.pruned_to)
    _check_not_pruned(store, seq, pruned_to)
    if seq == 0 and pruned_to > 0:
        logger.warning(
            "journal_seq is 0, but the journal of %s was pruned up to %d: the release has those operations only if the "
            "tables contain them; give the last operation that the tables contain as journal_seq",
            store.path,
            pruned_to,
        )
    if seq > last_seq:
        raise StoreError(
            f"journal_seq is {seq}, but the journal of {store.path} ends at {last_seq}: give the last operation that "
            "the tables contain, as the response to an upsert or delete returned it in `seq`"
        )


def check_operations_remain(store: Store, id_type: IdType, seq: int) -> None:
    """Check again, when a release is published, that the journal has what its tables do not contain.

    While the release was built, others may have been published and the journal pruned.

    Args:
        store: the store, locked.
        id_type: as for `check_tables_seq`.
        seq: likewise; with 0 nothing is checked, since it is not known what the tables contain.

    Raises:
        StoreError: the journal was pruned beyond `seq`.
        JournalCorruptedError, JournalIOError: the journal cannot be read.
    """
    journal = Journal.open_readonly(get_journal_path(store), id_type) if seq else None
    if journal is not None:
        _check_not_pruned(store, seq, journal.pruned_to)


def _check_not_pruned(store: Store, seq: int, pruned_to: int) -> None:
    if 0 < seq < pruned_to:
        raise StoreError(
            f"journal_seq is {seq}, but the journal of {store.path} was pruned up to {pruned_to}, so the operations "
            "between them would be lost: make the tables again, and give the last operation that they contain then"
        )


def check_journal_covers(journal: Journal, releases: list[Manifest]) -> None:
    """Check that the journal reaches as far as the releases, else they would take new operations for ones they contain.

    Raises:
        StoreError: a release contains operations beyond the journal's end, so the journal was lost or is an old copy.
    """
    for release in releases:
        if release.journal_seq > journal.last_seq:
            raise StoreError(
                f"release {release.name!r} contains operations up to {release.journal_seq}, but the journal ends at "
                f"{journal.last_seq}: it was lost, or restored from an older backup. Restore its newest backup, or "
                "prune that release, before writing"
            )
