"""An immutable state of a live index: a release and the changes to it. A request uses one from start to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows, Vectors
from vecall.data.casting import to_id_dtype
from vecall.data.id_map import UNKNOWN_ROW, Id
from vecall.index.bitmap import Bitmap
from vecall.release.release import Release


@dataclass(frozen=True)
class IdSlots:
    """The slots of the delta that each id has had. Append-only, and shared by all snapshots of one memtable.

    Attributes:
        ids: the id of each slot.
        latest: the last slot of each id.
        previous: for each slot, the slot that its id had before; -1 if none.
    """

    ids: list[Id]
    latest: dict[Id, int]
    previous: list[int]

    def find(self, item_id: Id, slot_count: int) -> int:
        """Return the last slot of an id among the first `slot_count` slots; -1 if it has none there."""
        slot = self.latest.get(item_id, UNKNOWN_ROW)
        while slot >= slot_count:
            slot = self.previous[slot]
        return slot

    def append(self, item_id: Id) -> None:
        """Assign the next slot to an id."""
        # Readers run at the same time and start from `latest`, so it is updated last.
        self.ids.append(item_id)
        self.previous.append(self.latest.get(item_id, UNKNOWN_ROW))
        self.latest[item_id] = len(self.ids) - 1


@dataclass(frozen=True)
class Delta:
    """The S upserted items of a snapshot, one slot each: the first S elements of arrays that are only appended to.

    Attributes:
        half_vectors: float16 [S, D] vectors, rounded as a release stores them.
        live_mask: bool [S]; False where the item was deleted or has a later slot.
        base_rows: int64 [S] row of the same item in the base release; -1 if it has none.
        attributes: frame of S rows with the release's attribute columns.
        live_count: number of live slots.
        distinct_id_count: number of distinct ids that have a slot, including deleted ones.
        slots: maps ids to slots and back. It may already hold later slots than the first S.
    """

    half_vectors: NDArray[np.float16]
    live_mask: Mask
    base_rows: Rows
    attributes: pl.DataFrame
    live_count: int
    distinct_id_count: int
    slots: IdSlots

    def __len__(self) -> int:
        return len(self.live_mask)

    @classmethod
    def create_empty(cls, release: Release) -> Self:
        """Return a delta of a release without slots."""
        return cls(
            half_vectors=np.empty((0, release.vectors.dim), dtype=np.float16),
            live_mask=np.empty(0, dtype=np.bool_),
            base_rows=np.empty(0, dtype=np.int64),
            attributes=release.attributes.clear(),
            live_count=0,
            distinct_id_count=0,
            slots=IdSlots([], {}, []),
        )


@dataclass(frozen=True)
class Snapshot:
    """A base release of N items and the changes to it. Rows below N are the base's; row N + i is slot i of the delta.

    Attributes:
        release: the base release.
        live_base_rows: rows of the base that are neither deleted nor replaced; None if all N are live.
        delta: the items upserted since.
        seq: sequence number of the last journal operation that is applied.
        rejected_seqs: by item id, sequence number of its last upsert where this release cannot take that upsert. The
            item is served as it was before.
    """

    release: Release
    live_base_rows: Bitmap | None
    delta: Delta
    seq: int
    rejected_seqs: Mapping[Id, int] = field(default_factory=dict)

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """Return the snapshot of a release without changes."""
        manifest = release.manifest
        return cls(release, None, Delta.create_empty(release), manifest.journal_seq, dict(manifest.rejected_changes))

    @property
    def tombstone_count(self) -> int:
        """Number of base rows that are deleted or replaced."""
        return 0 if self.live_base_rows is None else self.live_base_rows.size - self.live_base_rows.count

    def __len__(self) -> int:
        """Number of live items."""
        return self.release.vectors.size - self.tombstone_count + self.delta.live_count

    def to_rows(self, ids: Sequence[Id]) -> Rows:
        """Return the [len(ids)] rows of item ids.

        A deleted item still has a row; `is_live` tells it apart.

        Returns:
            int64 rows; -1 where an id is unknown.

        Raises:
            DataError: an id is not of the release's id type.
        """
        rows = self.release.item_ids.to_rows(ids)
        if (length := len(self.delta)) == 0:
            return rows
        slots = np.fromiter((self.delta.slots.find(item_id, length) for item_id in ids), np.int64, count=len(ids))
        return np.where(slots >= 0, slots + self.release.vectors.size, rows)

    def to_latest_rows(self, rows: Rows) -> Rows:
        """Map base rows to the rows that the same items have now; rows of deleted items are returned unchanged."""
        if self.live_base_rows is None or not len(rows) or (is_live := self.live_base_rows.contains(rows)).all():
            return rows
        latest = rows.copy()
        latest[~is_live] = self.to_rows(self.release.item_ids.to_ids(rows[~is_live]))
        return latest

    def to_base_rows(self, rows: Rows) -> Rows:
        """Return the row that the same item has in the base release; -1 for new items."""
        base_rows, in_delta = rows.copy(), rows >= self.release.vectors.size
        base_rows[in_delta] = self.delta.base_rows[rows[in_delta] - self.release.vectors.size]
        return base_rows

    def is_live(self, rows: Rows) -> Mask:
        """Return a bool [len(rows)] mask of the rows whose item is live; False for row -1."""
        slots = rows - self.release.vectors.size
        is_live = rows >= 0
        in_base = is_live & (slots < 0)
        if self.live_base_rows is not None:
            is_live[in_base] = self.live_base_rows.contains(rows[in_base])
        is_live[slots >= 0] = self.delta.live_mask[slots[slots >= 0]]
        return is_live

    def to_ids(self, rows: Rows) -> list[int] | list[str]:
        """Return the ids of rows."""
        if not len(self.delta):
            return self.release.item_ids.to_ids(rows)
        slots = rows - self.release.vectors.size
        if (slots < 0).all():
            return self.release.item_ids.to_ids(rows)
        base_ids, slot_ids = iter(self.release.item_ids.to_ids(rows[slots < 0])), self.delta.slots.ids
        return cast(
            "list[int] | list[str]", [slot_ids[slot] if slot >= 0 else next(base_ids) for slot in slots.tolist()]
        )

    def to_id_column(self, rows: Rows) -> pl.Series:
        """Return the ids of rows as a column `id`."""
        return pl.Series("id", self.to_ids(rows), dtype=to_id_dtype(self.release.item_ids.id_type))

    def list_live_rows(self) -> Rows:
        """Return the rows of all live items, ascending by item id."""
        n_base = self.release.vectors.size
        base = np.arange(n_base) if self.live_base_rows is None else np.flatnonzero(self.live_base_rows.to_mask())
        in_delta = n_base + np.flatnonzero(self.delta.live_mask)
        if not len(in_delta):  # base rows ascend with their ids
            return base
        rows: Rows = np.concatenate([base, in_delta])
        return np.take(rows, self.to_id_column(rows).arg_sort().to_numpy())

    def get_vectors(self, rows: Rows) -> Vectors:
        """Return the stored vectors of rows as float32 [len(rows), D]."""
        if not len(self.delta):
            return self.release.vectors.get_vectors(rows)
        slots = rows - self.release.vectors.size
        in_delta = slots >= 0
        vectors = np.empty((len(rows), self.release.vectors.dim), dtype=np.float32)
        vectors[in_delta] = self.delta.half_vectors[slots[in_delta]]
        vectors[~in_delta] = self.release.vectors.get_vectors(rows[~in_delta])
        return vectors

    def get_attributes(self, rows: Rows) -> pl.DataFrame:
        """Return the attributes of rows: a frame of len(rows) rows in the same order."""
        slots = rows - self.release.vectors.size
        in_delta = slots >= 0
        if not in_delta.any():
            return self.release.attributes[rows]
        return interleave_rows(
            in_delta, self.release.attributes[rows[~in_delta]], self.delta.attributes[slots[in_delta]]
        )


def interleave_rows(from_second: Mask, first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Merge the rows of two frames with equal columns.

    Args:
        from_second: bool [n]; row i of the result is the next row of `second` where True, of `first` where False.
        first: frame of as many rows as the mask has False.
        second: frame of as many rows as the mask has True.

    Returns:
        Frame of n rows.
    """
    positions = np.concatenate([np.flatnonzero(~from_second), np.flatnonzero(from_second)])
    return first.vstack(second)[np.argsort(positions)]
