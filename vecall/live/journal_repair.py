"""What an operator can do about a journal whose changes a release cannot take: look at them, and take one out."""

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
    """One operation of a journal, held against a release.

    Attributes:
        seq: its number.
        op: "upsert" or "delete".
        id: of the item.
        applicable: whether the release can take it.
        problem: why it cannot, or what of it is left out; None where nothing is.
    """

    seq: int
    op: str
    id: Id
    applicable: bool
    problem: str | None

    def as_json(self) -> dict[str, object]:
        """As `vecall journal list --json` prints it."""
        return dict(vars(self))


def list_operations(store: str | Path, release: str | None = None) -> Iterator[OperationStatus]:
    """The last operation of each item that the journal holds, oldest first.

    Args:
        store: the store's folder.
        release: what they are held against; None is the current release.

    Raises:
        StoreError: there is no such store or release.
        JournalDamaged: an operation is not what was written; the error carries its number.
    """
    opened = Store.open(Path(store))
    adapter = OperationAdapter(base := open_release(opened, release))
    journal = Journal.open_readonly(get_journal_path(opened), base.item_ids.id_type)
    if journal is None:
        return
    for operation in journal.read_operations(0):
        applicable, problem = adapter.check_applicable(operation)
        yield OperationStatus(operation.seq, operation.kind, operation.id, applicable, problem)


def drop_operation(store: str | Path, seq: int) -> None:
    """Take an operation out of the journal, a damaged one too; its place and number stay.

    Args:
        store: the store's folder.
        seq: the operation's number.

    Raises:
        StoreError: there is no such store, or its journal has no such operation.
        Locked: another process takes changes; the error carries its pid.
        JournalDamaged, JournalFailed: the journal cannot be used.
    """
    opened = Store.open(Path(store))
    path = get_journal_path(opened)
    with file_lock(opened.path / "writer.lock", timeout=0):
        releases = opened.list_releases(skip_damaged=True)
        if not path.exists() or not releases:
            raise StoreError(f"{opened.path} has no journal or no release: nothing was ever upserted or deleted here")
        with closing(Journal.open(path, releases[0].id_type)) as journal:
            journal.drop(seq)
    logger.info("operation %d of %s is dropped", seq, path)
