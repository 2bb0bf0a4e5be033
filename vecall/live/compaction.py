"""Base + delta - tombstones = the next release."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vecall.data.casting import id_dtype
from vecall.data.frames import select
from vecall.data.id_map import Id, build_vocabulary
from vecall.data.ragged import Sequences
from vecall.errors import StoreError
from vecall.index.bitmap import Rows
from vecall.index.settings import IndexSettings
from vecall.live.item_columns import Fields, ItemFields
from vecall.live.journal import Journal
from vecall.live.memtable import MemTable
from vecall.live.pruning import journal_path
from vecall.live.replay import replay
from vecall.live.snapshot import Snapshot
from vecall.release.atomic_io import read_array, write_array
from vecall.release.encoder import ENCODERS, ITEM_IDS, ITEM_TOWER, QUERY_TOWER, Encoder
from vecall.release.release import Release, open_release
from vecall.release.store import Store
from vecall.release.users import Users
from vecall.release.writer import Contents, write_contents

logger = logging.getLogger(__name__)

_AT_ONCE = 65_536  # vectors


def compact(store: str | Path, *, name: str | None = None, activate: bool = True, release: str | None = None) -> str:
    """Make a release of another one and the operations that came after it.

    Vectors stay as they are, to the bit. New items have the unknown item's id vector and popularity 0; deleted ones
    leave the users' histories. The journal keeps all operations, for other releases. A server may go on writing.

    Args:
        store: the store's folder.
        name: of the new release; None takes the time.
        activate: whether it becomes the current one; it does only if the other one is current still.
        release: the one to start from; None is the current one.

    Returns:
        The new release's name; the old one's where nothing came after it.

    Raises:
        StoreError: there is no such store or release, the name is taken, or no item is left.
        ReleaseRefused: a file of the release is damaged, missing or too many.
        JournalDamaged, JournalFailed: the journal cannot be read.
    """
    opened = Store.open(Path(store))
    base = open_release(opened, release)
    overlay = MemTable(base)
    journal = Journal.read(journal_path(opened), base.items.id_type)
    cut = 0 if journal is None else journal.last_seq
    if journal is None or cut <= base.manifest.journal_seq:
        logger.info("release %s contains all operations already", base.name)
        return base.name
    view = replay(overlay, journal.since(base.manifest.journal_seq, cut))
    changes = _LiveUpserts.of(view, journal, cut)
    if not len(view):
        raise StoreError(f"all items of release {base.name!r} are deleted, and a release has at least one: upsert some")
    with opened.draft(name) as draft:
        rows = _in_order(view)
        contents = _contents(view, rows, cut, changes)
        encoder = _carry_towers(opened.folder(base.name), draft.folder, view, rows)
        queries = None if base.golden is None or encoder is not None else np.asarray(base.golden.vectors)
        settings = _settings(base)
        description = write_contents(draft.folder, contents, settings, queries=queries, encoder=encoder)
        return draft.commit(description, activate=activate, after=base.name)


def _settings(base: Release) -> IndexSettings:
    """Those that the base was built by. The structure that was found for it is not looked for again."""
    settings = IndexSettings.model_validate(base.manifest.index.settings)
    if settings.engine == "auto" and base.manifest.index.engine != "exact":
        return IndexSettings.model_validate(base.manifest.index.settings | {"engine": base.manifest.index.engine})
    return settings


def _in_order(view: Snapshot) -> Rows:
    """Rows of the items that stay, in the order of their ids."""
    n = view.release.index.size
    base = np.arange(n) if view.live is None else np.flatnonzero(view.live.mask())
    rows: Rows = np.concatenate([base, n + np.flatnonzero(view.delta.live)])
    return np.take(rows, _id_column(view, rows).arg_sort().to_numpy())


def _id_column(view: Snapshot, rows: Rows) -> pl.Series:
    return pl.Series("id", view.ids(rows), dtype=id_dtype(view.release.items.id_type))


def _origins(view: Snapshot, rows: Rows) -> Rows:
    """Row of each item in the base; -1 where it is new."""
    n = view.release.index.size
    origins = rows.copy()
    origins[rows >= n] = view.delta.origins[rows[rows >= n] - n]
    return origins


@dataclass(frozen=True)
class _LiveUpserts:
    """What the delta's items were given with, by id."""

    fields: Mapping[Id, Fields]
    given: frozenset[Id]

    @classmethod
    def of(cls, view: Snapshot, journal: Journal, cut: int) -> "_LiveUpserts":
        """Read from the journal again: a view keeps what requests look at alone."""
        fields: dict[Id, Fields] = {}
        given = set()
        for operation in journal.since(view.release.manifest.journal_seq, cut):
            if operation.kind == "upsert":
                fields[operation.id] = operation.fields or {}
                given |= {operation.id} if operation.given else set()
        return cls(fields, frozenset(given))


def _features(view: Snapshot, rows: Rows, changes: _LiveUpserts) -> pl.DataFrame | None:
    """[len(rows)] rows of the features that a release keeps."""
    release, new = view.release, rows >= view.release.index.size
    if release.features is None:
        return None
    old = release.features.take(rows[~new])
    columns = ItemFields.of(release)
    given = [columns.fitting(changes.fields[one]) for one in view.ids(rows[new])]
    both = old.vstack(select(columns.feature_frame(given), old.columns))
    return both[np.argsort(np.concatenate([np.flatnonzero(~new), np.flatnonzero(new)]))]


def _given_rows(view: Snapshot, rows: Rows, changes: _LiveUpserts) -> Rows:
    """Places among the rows of items whose vector was given."""
    new = rows >= view.release.index.size
    given = np.isin(rows, view.release.given_rows) & ~new
    given[new] = [one in changes.given for one in view.ids(rows[new])]
    return np.flatnonzero(given)


def _contents(view: Snapshot, rows: Rows, cut: int, changes: _LiveUpserts) -> Contents:
    base, origins = view.release, _origins(view, rows)
    vectors = np.empty((len(rows), base.index.dim), dtype=np.float16)  # as they are stored, so no bit is lost
    for start in range(0, len(rows), _AT_ONCE):
        vectors[start : start + _AT_ONCE] = view.vectors(rows[start : start + _AT_ONCE])
    popularity = None
    if base.popularity is not None:
        popularity = np.where(origins >= 0, base.popularity[origins], 0).astype(np.float32)
    return Contents(
        items=build_vocabulary(_id_column(view, rows), base.items.id_type),
        vectors=vectors,
        attributes=view.attributes(rows),
        popularity=popularity,
        users=None if base.users is None else _moved(base.users, origins, base.index.size),
        features=_features(view, rows, changes),
        given_rows=_given_rows(view, rows, changes) if base.encoder is not None else rows[:0],
        metrics=base.manifest.metrics,
        journal_seq=cut,
        declared_seq=base.manifest.declared_seq,
    )


def _moved(users: Users, origins: Rows, n: int) -> Users:
    """The same users, with histories in the new rows; what is not there any more leaves them."""
    row_now = np.full(n, -1, dtype=np.int64)
    row_now[origins[origins >= 0]] = np.flatnonzero(origins >= 0)
    rows = row_now[users.histories.rows]
    there = rows >= 0
    histories = Sequences.grouped(users.histories.owners[there], rows[there], len(users.histories))
    return Users(users.ids, users.fields, histories)


def _carry_towers(base: Path, draft: Path, view: Snapshot, rows: Rows) -> tuple[Encoder, str] | None:
    """Copy the towers, which stay what they are, and the id vectors of the items that stay."""
    digest = view.release.manifest.encoder
    if digest is None:
        return None
    for file in (QUERY_TOWER, ITEM_TOWER, ENCODERS):
        shutil.copyfile(base / file, draft / file)
    if (base / ITEM_IDS).exists():
        table = read_array(base / ITEM_IDS)  # its last row, -1 as it were, is the unknown item
        write_array(draft / ITEM_IDS, table[np.append(_origins(view, rows), -1)])
    return Encoder(draft), digest
