"""The memtable: applies operations to a release and produces the next snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.id_map import UNKNOWN_ROW, Id
from vecall.index.bitmap import Bitmap
from vecall.live.item_columns import ItemColumns
from vecall.live.operations import Operation
from vecall.live.snapshot import Delta, IdSlots, Snapshot
from vecall.release.release import Release

_MAX_CHUNKS = 32  # of the recent attributes; a filter visits each chunk
_MAX_EXTRA_SUPERSEDED_SLOTS = 1_024  # superseded slots are dropped once they outnumber the ids by more than this

ArrayT = TypeVar("ArrayT", bound=NDArray[Any])


@dataclass(frozen=True)
class PreparedBatch:
    """Operations that are checked and converted, so that applying them cannot fail.

    Attributes:
        last_operations: the last operation of each id.
        upserts: the U upserts among them.
        half_vectors: float16 [U, D] vectors of the upserts.
        attributes: frame of U rows with the release's attribute columns.
    """

    last_operations: Mapping[Id, Operation]
    upserts: Sequence[Operation]
    half_vectors: NDArray[np.float16]
    attributes: pl.DataFrame


class MemTable:
    """The changes to a release, in memory. One thread at a time may apply operations; any thread may read snapshots.

    The slot arrays are append-only and are copied only when they grow, so a snapshot is a view of their first
    elements. What does change, the bitmap of live base rows and the mask of live slots, is copied for each batch.

    Attributes:
        snapshot: the state after the last batch.
    """

    def __init__(self, release: Release) -> None:
        self.snapshot = Snapshot.from_release(release)
        self._columns = ItemColumns.from_release(release)
        self._half_vectors: NDArray[np.float16] = self.snapshot.delta.half_vectors  # [capacity, D]
        self._base_rows: Rows = self.snapshot.delta.base_rows  # [capacity]
        self._merged_attributes = self._recent_attributes = self.snapshot.delta.attributes

    def prepare(self, operations: Sequence[Operation]) -> PreparedBatch:
        """Do everything that can fail, without a change of state, so that only applicable batches are journaled.

        Args:
            operations: the last operation of each id counts. Upserts have a vector of this release's space, and fields
                that were checked against this release.

        Raises:
            ColumnBuildError: a column does not take a value; its `row` is the position among the upserts.
        """
        last = {operation.id: operation for operation in operations}
        upserts = [operation for operation in last.values() if operation.vector is not None]
        half_vectors = np.empty((len(upserts), self.snapshot.release.vectors.dim), dtype=np.float16)
        for i, operation in enumerate(upserts):
            half_vectors[i] = operation.vector
        attributes = self._columns.build_attribute_frame([operation.fields or {} for operation in upserts])
        return PreparedBatch(last, upserts, half_vectors, attributes)

    def commit(
        self, prepared: PreparedBatch, *, seq: int, rejected_seqs: Mapping[Id, int] = MappingProxyType({})
    ) -> Snapshot:
        """Apply a prepared batch.

        Args:
            prepared: the result of `prepare`.
            seq: `seq` of the new snapshot: every operation up to it is applied or rejected.
            rejected_seqs: item id -> sequence number of its last operation, for items whose last operation this release
                rejects.

        Returns:
            The new snapshot.
        """
        before, last = self.snapshot, prepared.last_operations
        base_rows = before.release.item_ids.to_rows(list(last))
        delta = self._append_slots(before.delta, prepared, base_rows)
        dead_base_rows = base_rows[base_rows >= 0]
        live = before.live_base_rows
        if len(dead_base_rows):
            live = (Bitmap.full(before.release.vectors.size) if live is None else live).exclude(dead_base_rows)
        if rejected_seqs or not before.rejected_seqs.keys().isdisjoint(last):
            still_rejected = {
                item_id: number for item_id, number in before.rejected_seqs.items() if item_id not in last
            }
            rejected_seqs = MappingProxyType(still_rejected | dict(rejected_seqs))
        else:
            rejected_seqs = before.rejected_seqs
        self.snapshot = Snapshot(before.release, live, delta, seq, rejected_seqs)
        return self.snapshot

    def apply(self, operations: Sequence[Operation], *, seq: int) -> Snapshot:
        """Prepare and commit operations that are journaled already, or need no journal."""
        return self.commit(self.prepare(operations), seq=seq)

    def _append_slots(self, delta: Delta, prepared: PreparedBatch, base_rows: Rows) -> Delta:
        """Return `delta` with a slot for each upsert; earlier slots of the same ids are no longer live."""
        last, slots = prepared.last_operations, delta.slots
        start, stop = len(delta), len(delta) + len(prepared.upserts)
        dead_slots = [slot for item_id in last if (slot := slots.latest.get(item_id, UNKNOWN_ROW)) >= 0]
        live_mask = np.concatenate([delta.live_mask, np.ones(stop - start, dtype=np.bool_)])
        live_mask[dead_slots] = False
        self._grow(start, stop)
        self._half_vectors[start:stop] = prepared.half_vectors
        is_upsert = np.fromiter((operation.vector is not None for operation in last.values()), np.bool_, len(last))
        self._base_rows[start:stop] = base_rows[is_upsert]
        for operation in prepared.upserts:
            slots.append(operation.id)
        appended = Delta(
            half_vectors=_make_readonly(self._half_vectors[:stop]),
            live_mask=live_mask,
            base_rows=_make_readonly(self._base_rows[:stop]),
            attributes=self._append_attributes(prepared.attributes),
            live_count=int(np.count_nonzero(live_mask)),
            distinct_id_count=len(slots.latest),
            slots=slots,
        )
        if stop > 2 * appended.distinct_id_count + _MAX_EXTRA_SUPERSEDED_SLOTS:
            return self._drop_superseded_slots(appended)
        return appended

    def _grow(self, length: int, needed: int) -> None:
        """Make room for `needed` slots, of which `length` are in use."""
        if needed <= len(self._half_vectors):
            return
        capacity = max(2 * len(self._half_vectors), needed, 64)
        half_vectors = np.empty((capacity, self._half_vectors.shape[1]), np.float16)
        base_rows = np.empty(capacity, np.int64)
        half_vectors[:length], base_rows[:length] = self._half_vectors[:length], self._base_rows[:length]
        self._half_vectors, self._base_rows = half_vectors, base_rows

    def _append_attributes(self, attributes: pl.DataFrame) -> pl.DataFrame:
        """Append attributes and return all of them, in few chunks.

        Small batches make a chunk each. They are merged now and then; old attributes are seldom copied again, since
        they are merged with the recent ones only when these outgrow them.
        """
        self._recent_attributes = self._recent_attributes.vstack(attributes)
        if self._recent_attributes.n_chunks() > _MAX_CHUNKS:
            self._recent_attributes = self._recent_attributes.rechunk()
        if len(self._recent_attributes) > len(self._merged_attributes):
            self._merged_attributes = self._merged_attributes.vstack(self._recent_attributes).rechunk()
            self._recent_attributes = attributes.clear()
        return self._merged_attributes.vstack(self._recent_attributes)

    def _drop_superseded_slots(self, delta: Delta) -> Delta:
        """Drop all but the last slot of each id, so that an item that changes often does not fill the memory.

        The last slot of a deleted id is kept too, since histories still read its vector. Kept slots are renumbered.
        """
        kept = np.array(sorted(delta.slots.latest.values()), dtype=np.int64)
        slots = IdSlots([], {}, [])
        for slot in kept.tolist():
            slots.append(delta.slots.ids[slot])
        self._half_vectors, self._base_rows = delta.half_vectors[kept], delta.base_rows[kept]
        self._merged_attributes, self._recent_attributes = delta.attributes[kept], delta.attributes.clear()
        return Delta(
            half_vectors=_make_readonly(self._half_vectors[:]),
            live_mask=delta.live_mask[kept],
            base_rows=_make_readonly(self._base_rows[:]),
            attributes=self._merged_attributes,
            live_count=delta.live_count,
            distinct_id_count=delta.distinct_id_count,
            slots=slots,
        )


def _make_readonly(array: ArrayT) -> ArrayT:
    """Clear the write flag of this array object, which is a fresh view, and return it."""
    array.flags.writeable = False
    return array
