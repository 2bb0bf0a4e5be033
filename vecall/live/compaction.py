"""Base + delta - tombstones = the next release."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vecall.arrays import Rows
from vecall.data.casting import to_id_dtype
from vecall.data.frames import select_columns
from vecall.data.id_map import Id, build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import StoreError
from vecall.index.settings import IndexSettings
from vecall.live.item_columns import Fields, ItemColumns
from vecall.live.journal import Journal
from vecall.live.memtable import MemTable
from vecall.live.pruning import get_journal_path
from vecall.live.replay import replay
from vecall.live.snapshot import Snapshot
from vecall.release.atomic_io import read_array, write_array
from vecall.release.encoder import ENCODERS_FILE, ITEM_ID_VECTORS_FILE, ITEM_TOWER_FILE, QUERY_TOWER_FILE, OnnxEncoder
from vecall.release.release import Release, open_release
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release

logger = logging.getLogger(__name__)

_CHUNK_ROWS = 65_536  # vectors


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
    journal = Journal.open_readonly(get_journal_path(opened), base.item_ids.id_type)
    cut = 0 if journal is None else journal.last_seq
    if journal is None or cut <= base.manifest.journal_seq:
        logger.info("release %s contains all operations already", base.name)
        return base.name
    view = replay(overlay, journal.read_operations(base.manifest.journal_seq, cut))
    changes = _LiveUpserts.from_journal(view, journal, cut)
    if not len(view):
        raise StoreError(f"all items of release {base.name!r} are deleted, and a release has at least one: upsert some")
    with opened.create_draft(name) as draft:
        rows = _collect_live_rows(view)
        contents = _build_contents(view, rows, cut, changes)
        encoder = _copy_encoder(opened.get_release_dir(base.name), draft.directory, view, rows)
        queries = (
            None if base.golden_queries is None or encoder is not None else np.asarray(base.golden_queries.vectors)
        )
        settings = _resolve_index_settings(base)
        description = write_release(draft.directory, contents, settings, queries=queries, encoder=encoder)
        return draft.commit(description, activate=activate, expected_current=base.name)


def _resolve_index_settings(base: Release) -> IndexSettings:
    """Those that the base was built by. The structure that was found for it is not looked for again."""
    settings = IndexSettings.model_validate(base.manifest.index.settings)
    if settings.engine == "auto" and base.manifest.index.engine != "exact":
        return IndexSettings.model_validate(base.manifest.index.settings | {"engine": base.manifest.index.engine})
    return settings


def _collect_live_rows(snapshot: Snapshot) -> Rows:
    """Rows of the items that stay, in the order of their ids."""
    n = snapshot.release.index.size
    base = np.arange(n) if snapshot.live_base_rows is None else np.flatnonzero(snapshot.live_base_rows.to_mask())
    rows: Rows = np.concatenate([base, n + np.flatnonzero(snapshot.delta.live_mask)])
    return np.take(rows, _build_id_column(snapshot, rows).arg_sort().to_numpy())


def _build_id_column(snapshot: Snapshot, rows: Rows) -> pl.Series:
    return pl.Series("id", snapshot.to_ids(rows), dtype=to_id_dtype(snapshot.release.item_ids.id_type))


def _to_base_rows(snapshot: Snapshot, rows: Rows) -> Rows:
    """Row of each item in the base; -1 where it is new."""
    n = snapshot.release.index.size
    origins = rows.copy()
    origins[rows >= n] = snapshot.delta.base_rows[rows[rows >= n] - n]
    return origins


@dataclass(frozen=True)
class _LiveUpserts:
    """What the delta's items were given with, by id."""

    fields_by_id: Mapping[Id, Fields]
    external_vector_ids: frozenset[Id]

    @classmethod
    def from_journal(cls, snapshot: Snapshot, journal: Journal, until_seq: int) -> "_LiveUpserts":
        """Read from the journal again: a view keeps what requests look at alone."""
        fields: dict[Id, Fields] = {}
        given = set()
        for operation in journal.read_operations(snapshot.release.manifest.journal_seq, until_seq):
            if operation.kind == "upsert":
                fields[operation.id] = operation.fields or {}
                given |= {operation.id} if operation.has_external_vector else set()
        return cls(fields, frozenset(given))


def _build_item_features(snapshot: Snapshot, rows: Rows, upserts: _LiveUpserts) -> pl.DataFrame | None:
    """[len(rows)] rows of the features that a release keeps."""
    release, new = snapshot.release, rows >= snapshot.release.index.size
    if release.item_features is None:
        return None
    old = release.item_features.take(rows[~new])
    columns = ItemColumns.from_release(release)
    given = [columns.select_compatible_fields(upserts.fields_by_id[one]) for one in snapshot.to_ids(rows[new])]
    both = old.vstack(select_columns(columns.build_feature_frame(given), old.columns))
    return both[np.argsort(np.concatenate([np.flatnonzero(~new), np.flatnonzero(new)]))]


def _find_external_vector_rows(snapshot: Snapshot, rows: Rows, upserts: _LiveUpserts) -> Rows:
    """Places among the rows of items whose vector was given."""
    new = rows >= snapshot.release.index.size
    given = np.isin(rows, snapshot.release.external_vector_rows) & ~new
    given[new] = [one in upserts.external_vector_ids for one in snapshot.to_ids(rows[new])]
    return np.flatnonzero(given)


def _build_contents(snapshot: Snapshot, rows: Rows, until_seq: int, upserts: _LiveUpserts) -> ReleaseContents:
    base, origins = snapshot.release, _to_base_rows(snapshot, rows)
    vectors = np.empty((len(rows), base.index.dim), dtype=np.float16)  # as they are stored, so no bit is lost
    for start in range(0, len(rows), _CHUNK_ROWS):
        vectors[start : start + _CHUNK_ROWS] = snapshot.get_vectors(rows[start : start + _CHUNK_ROWS])
    popularity = None
    if base.popularity is not None:
        popularity = np.where(origins >= 0, base.popularity[origins], 0).astype(np.float32)
    return ReleaseContents(
        item_ids=build_id_map(_build_id_column(snapshot, rows), base.item_ids.id_type),
        vectors=vectors,
        attributes=snapshot.get_attributes(rows),
        popularity=popularity,
        users=None if base.users is None else _remap_users(base.users, origins, base.index.size),
        item_features=_build_item_features(snapshot, rows, upserts),
        external_vector_rows=_find_external_vector_rows(snapshot, rows, upserts)
        if base.encoder is not None
        else rows[:0],
        metrics=base.manifest.metrics,
        journal_seq=until_seq,
        tables_seq=base.manifest.tables_seq,
    )


def _remap_users(users: UserTable, base_rows: Rows, base_size: int) -> UserTable:
    """The same users, with histories in the new rows; what is not there any more leaves them."""
    row_now = np.full(base_size, -1, dtype=np.int64)
    row_now[base_rows[base_rows >= 0]] = np.flatnonzero(base_rows >= 0)
    rows = row_now[users.histories.values]
    there = rows >= 0
    histories = RaggedArray.from_groups(users.histories.segment_ids[there], rows[there], len(users.histories))
    return UserTable(users.ids, users.features, histories)


def _copy_encoder(base_dir: Path, draft_dir: Path, snapshot: Snapshot, rows: Rows) -> tuple[OnnxEncoder, str] | None:
    """Copy the towers, which stay what they are, and the id vectors of the items that stay."""
    digest = snapshot.release.manifest.encoder
    if digest is None:
        return None
    for file in (QUERY_TOWER_FILE, ITEM_TOWER_FILE, ENCODERS_FILE):
        shutil.copyfile(base_dir / file, draft_dir / file)
    if (base_dir / ITEM_ID_VECTORS_FILE).exists():
        table = read_array(base_dir / ITEM_ID_VECTORS_FILE)  # its last row, -1 as it were, is the unknown item
        write_array(draft_dir / ITEM_ID_VECTORS_FILE, table[np.append(_to_base_rows(snapshot, rows), -1)])
    return OnnxEncoder(draft_dir), digest
