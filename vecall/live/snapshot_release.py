"""Writing a release of what another release and the live changes since it hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from vecall.arrays import Rows
from vecall.channels.channel_tables import invert_rows
from vecall.data.frames import select_columns
from vecall.data.id_map import Id, build_id_map
from vecall.data.ragged import RaggedArray
from vecall.data.request_features import Fields
from vecall.index.settings import IndexSettings
from vecall.live.item_columns import ItemColumns
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot, interleave_rows
from vecall.release.drafts import Draft
from vecall.release.encoder import ENCODERS_FILE, ITEM_ID_VECTORS_FILE, ITEM_TOWER_FILE, QUERY_TOWER_FILE, OnnxEncoder
from vecall.release.file_io import map_array, translate_write_errors, write_array
from vecall.release.manifest import ReleaseMetadata, read_release_file
from vecall.release.ranker_io import copy_ranker
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release

_CHUNK_ROWS = 65_536  # vectors that are gathered at a time


@dataclass(frozen=True)
class LiveUpserts:
    """The upserts of the delta's items, as far as a snapshot does not hold them.

    Attributes:
        fields_by_id: the item's fields.
        external_vector_ids: items whose vector the caller gave.
    """

    fields_by_id: dict[Id, Fields] = field(default_factory=dict)
    external_vector_ids: set[Id] = field(default_factory=set)

    def record(self, operations: Iterable[Operation]) -> Iterator[Operation]:
        """Yield the operations that a snapshot is made of, and keep what it will not hold of them.

        The journal is read once: a second reading may lack items that were changed again in the meantime.
        """
        for operation in operations:
            if operation.kind == "upsert":
                self.fields_by_id[operation.id] = operation.fields or {}
                if operation.has_external_vector:
                    self.external_vector_ids.add(operation.id)
            yield operation


def write_snapshot(
    store: Store, draft: Draft, snapshot: Snapshot, upserts: LiveUpserts, until_seq: int, settings: IndexSettings
) -> ReleaseMetadata:
    """Write all that a snapshot holds to a draft: its items, and the rest of its release.

    Vectors are copied bit by bit, and the index is built and tuned anew, on the users that the base was tuned on.

    Args:
        store: it has the base, the snapshot's release.
        draft: of the new release.
        snapshot: of at least one item.
        upserts: what the snapshot does not hold of the items in its delta.
        until_seq: the snapshot holds the operations up to this one.
        settings: of the new release's index.

    Returns:
        What `Draft.commit` takes.

    Raises:
        StoreError: the base was pruned meanwhile, or the draft cannot be written.
        InvalidReleaseError: a file of the base is damaged.
        ConfigError, EngineUnavailableError: as for `write_release`.
    """
    base, rows = snapshot.release, snapshot.list_live_rows()
    contents = _build_contents(snapshot, rows, until_seq, upserts)
    base_dir = store.get_release_dir(base.name)  # raises if it was pruned, as in `LiveState.refresh`
    encoder = _copy_encoder(base_dir, draft.directory, snapshot, rows)
    copy_ranker(base.manifest.ranker, base_dir, draft.directory)
    golden = base.golden_queries
    # Golden queries with inputs are users of the release, which are encoded again.
    queries = None if golden is None or golden.inputs is not None else np.asarray(golden.vectors)
    return write_release(draft.directory, contents, settings, queries=queries, encoder=encoder, name=draft.name)


def _build_item_features(snapshot: Snapshot, rows: Rows, upserts: LiveUpserts) -> pl.DataFrame | None:
    """Build the frame of len(rows) rows of the item features that a release stores; None if it stores none."""
    release, in_delta = snapshot.release, rows >= snapshot.release.vectors.size
    if release.item_features is None:
        return None
    base_features = release.item_features.take(rows[~in_delta])
    columns = ItemColumns.from_release(release)
    fields = [
        columns.select_compatible_fields(upserts.fields_by_id[item_id]) for item_id in snapshot.to_ids(rows[in_delta])
    ]
    delta_features = select_columns(columns.build_feature_frame(fields), base_features.columns)
    return interleave_rows(in_delta, base_features, delta_features)


def _find_external_vector_rows(snapshot: Snapshot, rows: Rows, upserts: LiveUpserts) -> Rows:
    """Return the positions in `rows` of the items whose vector the caller gave."""
    in_delta = rows >= snapshot.release.vectors.size
    is_external = np.isin(rows, snapshot.release.external_vector_rows) & ~in_delta
    is_external[in_delta] = [item_id in upserts.external_vector_ids for item_id in snapshot.to_ids(rows[in_delta])]
    return np.flatnonzero(is_external)


def _build_contents(snapshot: Snapshot, rows: Rows, until_seq: int, upserts: LiveUpserts) -> ReleaseContents:
    base, base_rows = snapshot.release, snapshot.to_base_rows(rows)
    vectors = np.empty((len(rows), base.vectors.dim), dtype=np.float16)  # the precision of the stored vectors: no loss
    for start in range(0, len(rows), _CHUNK_ROWS):
        vectors[start : start + _CHUNK_ROWS] = snapshot.get_vectors(rows[start : start + _CHUNK_ROWS])
    popularity, external_vector_rows = None, rows[:0]
    if base.popularity is not None:
        popularity = np.where(base_rows >= 0, base.popularity[base_rows], 0).astype(np.float32)
    if base.encoder is not None:
        external_vector_rows = _find_external_vector_rows(snapshot, rows, upserts)
    return ReleaseContents(
        item_ids=build_id_map(snapshot.to_id_column(rows), base.item_ids.id_type),
        vectors=vectors,
        attributes=snapshot.get_attributes(rows),
        popularity=popularity,
        users=None if base.users is None else _remap_users(base.users, base_rows, base.vectors.size),
        item_features=_build_item_features(snapshot, rows, upserts),
        external_vector_rows=external_vector_rows,
        channels=base.channels.remap(base_rows, base.vectors.size),
        merge=base.merge_plan,
        ranker=base.manifest.ranker,
        metrics=base.manifest.metrics,
        trained_settings=base.manifest.trained_settings,
        journal_seq=until_seq,
        tables_seq=base.manifest.tables_seq,
        rejected_seqs=snapshot.rejected_seqs,
    )


def _remap_users(users: UserTable, base_rows: Rows, base_size: int) -> UserTable:
    """Convert the users' histories to the new release's rows; deleted items are left out.

    Args:
        users: the users of the base release.
        base_rows: for each row of the new release, the item's row in the base; -1 for new items.
        base_size: number of items in the base.
    """
    rows = invert_rows(base_rows, base_size)[users.histories.values]
    is_kept = rows >= 0
    histories = RaggedArray.from_sorted_pairs(users.histories.segment_ids[is_kept], rows[is_kept], len(users.histories))
    return UserTable(users.ids, users.features, histories)


def _copy_encoder(base_dir: Path, draft_dir: Path, snapshot: Snapshot, rows: Rows) -> tuple[OnnxEncoder, str] | None:
    """Copy the towers to a draft, and the id vectors of the live items.

    Returns:
        The draft's encoder and its hash; None if the base has no towers.
    """
    digest = snapshot.release.manifest.encoder
    if digest is None:
        return None
    for file in (QUERY_TOWER_FILE, ITEM_TOWER_FILE, ENCODERS_FILE):
        content = read_release_file(base_dir, file)
        with translate_write_errors(draft_dir):
            (draft_dir / file).write_bytes(content)
    if (base_dir / ITEM_ID_VECTORS_FILE).exists():
        # The last row, index -1, is the unknown item's: new items get it, and it is appended as the new last row.
        id_vectors = map_array(base_dir / ITEM_ID_VECTORS_FILE)
        with translate_write_errors(draft_dir):
            write_array(draft_dir / ITEM_ID_VECTORS_FILE, id_vectors[np.append(snapshot.to_base_rows(rows), -1)])
    return OnnxEncoder(draft_dir), digest
