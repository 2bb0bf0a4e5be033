"""The one place where views are made: operations in, the next view out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.id_map import Id
from vecall.index.bitmap import Bitmap
from vecall.live.item_columns import ItemColumns
from vecall.live.operations import Operation
from vecall.live.snapshot import Delta, IdSlots, Snapshot
from vecall.release.release import Release

_MAX_CHUNKS = 32  # of the attributes; a filter looks at each
_MAX_DEAD_SLOTS = 1_024  # slots that may be out of use before they are cleared away


@dataclass(frozen=True)
class PreparedBatch:
    """Operations that can be applied without fail.

    Attributes:
        last_operations: the last operation of each id.
        upserts: those of them that are upserts.
        half_vectors: float16 [upserts, D] their vectors.
        attributes: [upserts] rows of the release's attributes.
    """

    last_operations: Mapping[Id, Operation]
    upserts: Sequence[Operation]
    half_vectors: NDArray[np.float16]
    attributes: pl.DataFrame


class MemTable:
    """A release's changes. One thread applies them; views may be read by any number of others meanwhile.

    Arrays of slots are appended to, and copied only when they grow; a view sees their beginning, which stays.
    What does change is copied per batch: the bits of the base and of the slots that are live.

    Attributes:
        view: after all that was applied.
    """

    def __init__(self, release: Release) -> None:
        self.snapshot = Snapshot.from_release(release)
        self._columns = ItemColumns.from_release(release)
        self._half_vectors: NDArray[np.float16] = self.snapshot.delta.half_vectors  # [room, D]
        self._base_rows: Rows = self.snapshot.delta.base_rows  # [room]
        self._merged_attributes = self._recent_attributes = self.snapshot.delta.attributes

    def prepare(self, operations: Sequence[Operation]) -> "PreparedBatch":
        """All of an application that may fail, so that what was prepared can be written down and applied.

        Args:
            operations: of equal ids the last one counts. Upserts have a vector of this release's space and fields
                that were checked against it.

        Raises:
            UnfitValueError: a column does not take a value; its row is that of the upsert among the upserts.
        """
        last = {operation.id: operation for operation in operations}
        upserts = [operation for operation in last.values() if operation.vector is not None]
        codes = np.empty((len(upserts), self.snapshot.release.index.dim), dtype=np.float16)
        for place, operation in enumerate(upserts):
            codes[place] = operation.vector
        rows = self._columns.build_attribute_frame([operation.fields or {} for operation in upserts])
        return PreparedBatch(last, upserts, codes, rows)

    def commit(
        self, prepared: "PreparedBatch", *, seq: int, rejected_seqs: Mapping[Id, int] = MappingProxyType({})
    ) -> Snapshot:
        """The view after some more operations.

        Args:
            prepared: what `prepare` made of them.
            seq: the last operation that is contained from now on.
            rejected_seqs: ids whose last operation, by its number, this release cannot take.
        """
        before, last = self.snapshot, prepared.last_operations
        origins = before.release.item_ids.to_rows(list(last))
        delta = self._append_slots(before.delta, prepared, origins)
        gone = origins[origins >= 0]
        live = before.live_base_rows
        if len(gone):
            live = (Bitmap.full(before.release.index.size) if live is None else live).exclude(gone)
        if rejected_seqs or not before.rejected_seqs.keys().isdisjoint(last):
            left = {one: number for one, number in before.rejected_seqs.items() if one not in last}
            rejected_seqs = MappingProxyType(left | dict(rejected_seqs))
        else:
            rejected_seqs = before.rejected_seqs
        self.snapshot = Snapshot(before.release, live, delta, seq, rejected_seqs)
        return self.snapshot

    def apply(self, operations: Sequence[Operation], *, seq: int) -> Snapshot:
        """Prepare and commit at once: for operations that are written down already, or never will be."""
        return self.commit(self.prepare(operations), seq=seq)

    def _append_slots(self, delta: Delta, prepared: "PreparedBatch", base_rows: Rows) -> Delta:
        """`delta` with slots for the upserts; slots that the ids had are not live any more."""
        upserts, last, codes, rows = (
            prepared.upserts,
            prepared.last_operations,
            prepared.half_vectors,
            prepared.attributes,
        )
        slots, length, added = delta.slots, len(delta), len(upserts)
        replaced = [slot for one in last if (slot := slots.latest.get(one, -1)) >= 0]
        live = np.concatenate([delta.live_mask, np.ones(added, dtype=np.bool_)])
        live[replaced] = False
        self._grow(length, added)
        self._half_vectors[length : length + added] = codes
        is_upsert = np.fromiter((one.vector is not None for one in last.values()), dtype=np.bool_, count=len(last))
        self._base_rows[length : length + added] = base_rows[is_upsert]
        for operation in upserts:
            slots.append(operation.id)
        appended = Delta(
            half_vectors=_make_readonly(self._half_vectors[: length + added]),
            live_mask=live,
            base_rows=_make_readonly(self._base_rows[: length + added]),
            attributes=self._append_attributes(rows),
            live_count=int(np.count_nonzero(live)),
            distinct_id_count=len(slots.latest),
            slots=slots,
        )
        return (
            self._drop_dead_slots(appended)
            if len(live) > 2 * appended.distinct_id_count + _MAX_DEAD_SLOTS
            else appended
        )

    def _grow(self, length: int, added_count: int) -> None:
        if length + added_count <= len(self._half_vectors):
            return
        room = max(2 * len(self._half_vectors), length + added_count, 64)
        codes, origins = np.empty((room, self._half_vectors.shape[1]), np.float16), np.empty(room, np.int64)
        codes[:length], origins[:length] = self._half_vectors[:length], self._base_rows[:length]
        self._half_vectors, self._base_rows = codes, origins

    def _append_attributes(self, rows: pl.DataFrame) -> pl.DataFrame:
        """All attributes, in few chunks: those of many small batches are joined now and then, old ones seldom."""
        self._recent_attributes = self._recent_attributes.vstack(rows)
        if self._recent_attributes.n_chunks() > _MAX_CHUNKS:
            self._recent_attributes = self._recent_attributes.rechunk()
        if len(self._recent_attributes) > len(self._merged_attributes):
            self._merged_attributes, self._recent_attributes = (
                self._merged_attributes.vstack(self._recent_attributes).rechunk(),
                rows.clear(),
            )
        return self._merged_attributes.vstack(self._recent_attributes)

    def _drop_dead_slots(self, delta: Delta) -> Delta:
        """Each id's last slot alone, in arrays of their own: an item that changes often must not fill the memory."""
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


def _make_readonly(array: Any) -> Any:  # noqa: ANN401 - an array
    array.flags.writeable = False
    return array
