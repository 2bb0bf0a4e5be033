"""Compaction: write a base release and the live changes since as the next release (base + delta - tombstones)."""

import logging
from pathlib import Path

from vecall.errors import StoreError
from vecall.index.settings import IndexSettings
from vecall.live.journal import Journal
from vecall.live.memtable import MemTable
from vecall.live.pruning import get_journal_path
from vecall.live.replay import replay
from vecall.live.snapshot_release import LiveUpserts, write_snapshot
from vecall.release.release import Release, open_release
from vecall.release.store import Store

logger = logging.getLogger(__name__)


def compact(store: str | Path, *, name: str | None = None, activate: bool = True, release: str | None = None) -> str:
    """Write a release of a base release and the operations since.

    Vectors are copied bit by bit. New items get the unknown item's id vector and popularity 0; deleted items are
    removed from the users' histories. The journal keeps all operations, because other releases may need them. A server
    may keep writing.

    Args:
        store: directory of the store.
        name: name of the new release; None for a name made of the current time.
        activate: make the new release the current one, if the base still is the current one at the end.
        release: name of the base release; None for the current one.

    Returns:
        Name of the new release, or of the base release if there are no operations after it.

    Raises:
        StoreError: there is no such store or release, the name is taken, or no item is left.
        InvalidReleaseError: the base release has a corrupted, missing or unexpected file.
        JournalCorruptedError, JournalIOError: the journal cannot be read.
    """
    opened_store = Store.open(Path(store))
    base = open_release(opened_store, release)
    memtable = MemTable(base)
    journal = Journal.open_readonly(get_journal_path(opened_store), base.item_ids.id_type)
    until_seq = 0 if journal is None else journal.last_seq
    if journal is None or until_seq <= base.manifest.journal_seq:
        logger.info("release %s already contains all operations of the journal", base.name)
        return base.name
    upserts = LiveUpserts()
    snapshot = replay(memtable, upserts.record(journal.read_operations(base.manifest.journal_seq, until_seq)))
    if not len(snapshot):
        raise StoreError(
            f"all items of release {base.name!r} are deleted, and a release needs at least one item: upsert some first"
        )
    settings = _resolve_index_settings(base)
    with opened_store.create_draft(name) as draft:
        metadata = write_snapshot(opened_store, draft, snapshot, upserts, until_seq, settings)
        return draft.commit(metadata, activate=activate, activate_only_if_current=base.name, base=base.name)


def _resolve_index_settings(base: Release) -> IndexSettings:
    """Return the settings of the base's index, with the engine that was selected for it in place of "auto"."""
    settings = IndexSettings.model_validate(base.manifest.index.settings)
    if settings.engine == "auto" and base.manifest.index.engine != "exact":
        return IndexSettings.model_validate(base.manifest.index.settings | {"engine": base.manifest.index.engine})
    return settings
