"""Repair of a journal with operations that a release cannot take: list the operations, and drop one of them."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vecall.data.id_map import Id
from vecall.errors import StoreError
from vecall.live.journal import Journal
from vecall.live.pruning import get_journal_path
from vecall.live.replay import OperationAdapter
from vecall.release.file_lock import file_lock
from vecall.release.release import open_release
from vecall.release.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OperationStatus:
    """An operation of a journal and whether a release can take it.

    Attributes:
        seq: sequence number.
        op: "upsert" or "delete".
        id: id of the item.
        applicable: whether the release can take the operation.
        problem: why the release cannot take it, or which columns are left out; None if there is no problem.
    """

    seq: int
    op: str
    id: Id
    applicable: bool
    problem: str | None

    def as_json(self) -> dict[str, object]:
        """Return the fields as `vecall journal list --json` prints them."""
        return dict(vars(self))


def list_operations(store: str | Path, release: str | None = None) -> Iterator[OperationStatus]:
    """Iterate over the last operation of each item in a store's journal, oldest first.

    Args:
        store: directory of the store.
        release: name of the release that the operations are checked against; None for the current one.

    Raises:
        StoreError: there is no such store or release.
        JournalCorruptedError: an operation is corrupted; the error's `seq` says which.
    """
    opened_store = Store.open(Path(store))
    opened_release = open_release(opened_store, release)
    adapter = OperationAdapter(opened_release)
    journal = Journal.open_readonly(get_journal_path(opened_store), opened_release.item_ids.id_type)
    if journal is None:
        return
    for operation in journal.read_operations(0):
        adapted = adapter.diagnose(operation)
        is_applicable = adapted.operation is not None
        yield OperationStatus(operation.seq, operation.kind, operation.id, is_applicable, adapted.problem)


def drop_operation(store: str | Path, seq: int) -> None:
    """Drop an operation of a store's journal, which may be corrupted. See `Journal.drop`.

    Args:
        store: directory of the store.
        seq: sequence number of the operation.

    Raises:
        StoreError: there is no such store, or its journal has no such operation.
        LockedError: another process has the store open for writing; the error's `pid` says which.
        JournalCorruptedError, JournalIOError: the journal cannot be read or written.
    """
    opened_store = Store.open(Path(store))
    path = get_journal_path(opened_store)
    with file_lock(opened_store.path / "writer.lock", timeout=0):
        releases = opened_store.list_releases(skip_damaged=True)
        if not path.exists() or not releases:
            raise StoreError(
                f"{opened_store.path} has no journal or no release, so there is no operation to drop: check the path"
            )
        with closing(Journal.open(path, releases[0].id_type)) as journal:
            journal.drop(seq)
    logger.info("dropped operation %d of %s", seq, path)
