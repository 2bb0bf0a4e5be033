"""The one place where views are made: operations in, the next view out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.index.bitmap import Bitmap, Rows
from vecall.live.item_columns import ItemFields
from vecall.live.operations import Operation
from vecall.live.snapshot import Delta, Slots, Snapshot
from vecall.release.release import Release

_MOST_CHUNKS = 32  # of the attributes; a filter looks at each
_SPARE = 1_024  # slots that may be out of use before they are cleared away


@dataclass(frozen=True)
class Prepared:
    """Operations that can be applied without fail.

    Attributes:
        last: the last operation of each id.
        upserts: those of them that are upserts.
        codes: float16 [upserts, D] their vectors.
        rows: [upserts] rows of the release's attributes.
    """

    last: Mapping[Id, Operation]
    upserts: Sequence[Operation]
    codes: NDArray[np.float16]
    rows: pl.DataFrame


class MemTable:
    """A release's changes. One thread applies them; views may be read by any number of others meanwhile.

    Arrays of slots are appended to, and copied only when they grow; a view sees their beginning, which stays.
    What does change is copied per batch: the bits of the base and of the slots that are live.

    Attributes:
        view: after all that was applied.
    """

    def __init__(self, release: Release) -> None:
        self.snapshot = Snapshot.of(release)
        self._fields = ItemFields.of(release)
        self._codes: NDArray[np.float16] = self.snapshot.delta.codes  # [room, D]
        self._origins: Rows = self.snapshot.delta.origins  # [room]
        self._settled = self._recent = self.snapshot.delta.attributes

    def prepare(self, operations: Sequence[Operation]) -> "Prepared":
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
        rows = self._fields.attribute_frame([operation.fields or {} for operation in upserts])
        return Prepared(last, upserts, codes, rows)

    def commit(self, prepared: "Prepared", *, seq: int, refused: Mapping[Id, int] = MappingProxyType({})) -> Snapshot:
        """The view after some more operations.

        Args:
            prepared: what `prepare` made of them.
            seq: the last operation that is contained from now on.
            refused: ids whose last operation, by its number, this release cannot take.
        """
        before, last = self.snapshot, prepared.last
        origins = before.release.items.rows(list(last))
        delta = self._appended(before.delta, prepared, origins)
        gone = origins[origins >= 0]
        live = before.live
        if len(gone):
            live = (Bitmap.all_of(before.release.index.size) if live is None else live).without(gone)
        if refused or not before.refused.keys().isdisjoint(last):
            left = {one: number for one, number in before.refused.items() if one not in last}
            refused = MappingProxyType(left | dict(refused))
        else:
            refused = before.refused
        self.snapshot = Snapshot(before.release, live, delta, seq, refused)
        return self.snapshot

    def apply(self, operations: Sequence[Operation], *, seq: int) -> Snapshot:
        """Prepare and commit at once: for operations that are written down already, or never will be."""
        return self.commit(self.prepare(operations), seq=seq)

    def _appended(self, delta: Delta, prepared: "Prepared", origins: Rows) -> Delta:
        """`delta` with slots for the upserts; slots that the ids had are not live any more."""
        upserts, last, codes, rows = prepared.upserts, prepared.last, prepared.codes, prepared.rows
        slots, length, added = delta.slots, len(delta), len(upserts)
        replaced = [slot for one in last if (slot := slots.newest.get(one, -1)) >= 0]
        live = np.concatenate([delta.live, np.ones(added, dtype=np.bool_)])
        live[replaced] = False
        self._make_room(length, added)
        self._codes[length : length + added] = codes
        is_upsert = np.fromiter((one.vector is not None for one in last.values()), dtype=np.bool_, count=len(last))
        self._origins[length : length + added] = origins[is_upsert]
        for operation in upserts:
            slots.append(operation.id)
        appended = Delta(
            codes=_read_only(self._codes[: length + added]),
            live=live,
            origins=_read_only(self._origins[: length + added]),
            attributes=self._described(rows),
            count=int(np.count_nonzero(live)),
            held=len(slots.newest),
            slots=slots,
        )
        return self._cleared(appended) if len(live) > 2 * appended.held + _SPARE else appended

    def _make_room(self, length: int, added: int) -> None:
        if length + added <= len(self._codes):
            return
        room = max(2 * len(self._codes), length + added, 64)
        codes, origins = np.empty((room, self._codes.shape[1]), np.float16), np.empty(room, np.int64)
        codes[:length], origins[:length] = self._codes[:length], self._origins[:length]
        self._codes, self._origins = codes, origins

    def _described(self, rows: pl.DataFrame) -> pl.DataFrame:
        """All attributes, in few chunks: those of many small batches are joined now and then, old ones seldom."""
        self._recent = self._recent.vstack(rows)
        if self._recent.n_chunks() > _MOST_CHUNKS:
            self._recent = self._recent.rechunk()
        if len(self._recent) > len(self._settled):
            self._settled, self._recent = self._settled.vstack(self._recent).rechunk(), rows.clear()
        return self._settled.vstack(self._recent)

    def _cleared(self, delta: Delta) -> Delta:
        """Each id's last slot alone, in arrays of their own: an item that changes often must not fill the memory."""
        kept = np.array(sorted(delta.slots.newest.values()), dtype=np.int64)
        slots = Slots([], {}, [])
        for slot in kept.tolist():
            slots.append(delta.slots.ids[slot])
        self._codes, self._origins = delta.codes[kept], delta.origins[kept]
        self._settled, self._recent = delta.attributes[kept], delta.attributes.clear()
        return Delta(
            codes=_read_only(self._codes[:]),
            live=delta.live[kept],
            origins=_read_only(self._origins[:]),
            attributes=self._settled,
            count=delta.count,
            held=delta.held,
            slots=slots,
        )


def _read_only(array: Any) -> Any:  # noqa: ANN401 - an array
    array.flags.writeable = False
    return array
