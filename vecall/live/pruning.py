"""Which operations of a journal are still needed: those that some release, or the tables, may not hold yet."""

from dataclasses import dataclass
from pathlib import Path

from vecall.errors import StoreError
from vecall.live.journal import Journal
from vecall.release.manifest import Manifest
from vecall.release.store import Store
from vecall.schema import IdType


@dataclass(frozen=True)
class PruneResult:
    """What was deleted.

    Attributes:
        release_names: their names, newest first.
        operation_count: how many of the journal, replaced ones included.
    """

    release_names: list[str]
    operation_count: int


def get_journal_path(store: Store) -> Path:
    """Where a store keeps its journal, if it has one."""
    return store.path / "journal.sqlite"


def prune_store(store: Store, keep: int) -> PruneResult:
    """Delete old releases, and the operations that neither those that stay nor the tables need. See `Store.prune`.

    A server may go on writing meanwhile.

    Raises:
        StoreError: `keep` is negative.
        ReleaseRefused: `CURRENT` or a manifest is damaged: what must stay is not known.
        JournalDamaged, JournalFailed: the journal cannot be pruned; old releases are gone by then.
        Locked: another process holds the store's lock.
    """
    deleted = store.prune(keep)
    path, releases = get_journal_path(store), store.list_releases()
    upto = find_max_prunable_seq(releases)
    if upto == 0 or not path.exists():
        return PruneResult(deleted, 0)
    with Journal.open(path, releases[0].id_type) as journal:
        return PruneResult(deleted, journal.prune(upto))


def find_max_prunable_seq(releases: list[Manifest]) -> int:
    """The last operation that no release, and no table that may be published again, is without.

    Args:
        releases: all that stay, newest first.
    """
    if not releases:
        return 0
    return min(releases[0].tables_seq, *(release.journal_seq for release in releases))


def check_tables_seq(store: Store, id_type: IdType, seq: int) -> None:
    """Refuse to publish tables that are said to hold operations which were never written.

    Raises:
        StoreError: the journal ends before `seq`, or its ids are of another type.
    """
    if seq < 0:
        raise StoreError(f"journal_seq is {seq}; expected the number of an operation, or 0 for none")
    if seq == 0:
        return
    journal = Journal.open_readonly(get_journal_path(store), id_type)
    last = 0 if journal is None else journal.last_seq
    if seq > last:
        raise StoreError(
            f"journal_seq is {seq}, but the journal of {store.path} ends at {last}: expected the last operation that "
            "the tables hold, as an upsert's or delete's answer named it in `seq`"
        )


def check_journal_covers(journal: Journal, releases: list[Manifest]) -> None:
    """Refuse to write where the numbers of new operations would be taken for old ones.

    Raises:
        StoreError: a release contains operations beyond the journal's end: the journal was lost, or is an old copy.
    """
    for release in releases:
        if release.journal_seq > journal.last_seq:
            raise StoreError(
                f"release {release.name!r} contains operations up to {release.journal_seq}, but the journal ends at "
                f"{journal.last_seq}: it was lost, or brought back from an older copy. Bring back the newest copy of "
                "it, or prune that release, before anything is written"
            )
