"""What one request looks at from its beginning to its end: a release, and what was changed since."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows, Vectors
from vecall.data.id_map import UNKNOWN_ROW, Id
from vecall.index.bitmap import Bitmap
from vecall.release.release import Release


@dataclass(frozen=True)
class IdSlots:
    """Which slots of the delta each id has had. It only grows, and all views of one overlay share it.

    Attributes:
        ids: the id of each slot.
        latest: the last slot of each id.
        previous: for each slot the one that its id had before, or -1.
    """

    ids: list[Id]
    latest: dict[Id, int]
    previous: list[int]

    def find(self, item_id: Id, slot_count: int) -> int:
        """The last of an id's slots among the first `slot_count`; -1 if there is none."""
        slot = self.latest.get(item_id, UNKNOWN_ROW)
        while slot >= slot_count:
            slot = self.previous[slot]
        return slot

    def append(self, item_id: Id) -> None:
        """Give an id the next slot; in this order, since views look while it is done."""
        self.ids.append(item_id)
        self.previous.append(self.latest.get(item_id, UNKNOWN_ROW))
        self.latest[item_id] = len(self.ids) - 1


@dataclass(frozen=True)
class Delta:
    """Items beside the base: a snapshot of the first `length` slots of arrays that are only ever appended to.

    Attributes:
        half_vectors: float16 [length, D] vectors, as a release would store them.
        live_mask: bool [length]; False where the item was deleted or has a later slot.
        base_rows: int64 [length] row of the same item in the base; -1 where it has none.
        attributes: [length] rows of the release's attributes.
        live_count: how many slots are live.
        distinct_id_count: how many distinct ids have a slot, deleted ones among them.
        slots: ids to slots and back.
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
        """Without a slot."""
        return cls(
            half_vectors=np.empty((0, release.index.dim), dtype=np.float16),
            live_mask=np.empty(0, dtype=np.bool_),
            base_rows=np.empty(0, dtype=np.int64),
            attributes=release.attributes.clear(),
            live_count=0,
            distinct_id_count=0,
            slots=IdSlots([], {}, []),
        )


@dataclass(frozen=True)
class Snapshot:
    """A release of N items and a delta. A row below N is of the base, row N + i is slot i of the delta.

    Attributes:
        release: the base.
        live_base_rows: rows of the base that are neither deleted nor replaced; None: all of them.
        delta: what was upserted since.
        seq: the last operation that is contained.
        rejected_seqs: items whose last upsert this release cannot take, and the operation's number: what was served of
            them before is served still.
    """

    release: Release
    live_base_rows: Bitmap | None
    delta: Delta
    seq: int
    rejected_seqs: Mapping[Id, int] = field(default_factory=dict)

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """A release without changes."""
        return cls(release, None, Delta.create_empty(release), release.manifest.journal_seq)

    @property
    def tombstone_count(self) -> int:
        """Rows of the base that are deleted or replaced."""
        return 0 if self.live_base_rows is None else self.live_base_rows.size - self.live_base_rows.count

    def __len__(self) -> int:
        """Items that can be answers."""
        return self.release.index.size - self.tombstone_count + self.delta.live_count

    def to_rows(self, ids: Sequence[Id]) -> Rows:
        """[len(ids)] rows, -1 where an id is unknown. A deleted item has a row still, see `has`.

        Raises:
            DataError: an id is not of the release's type.
        """
        rows = self.release.item_ids.to_rows(ids)
        if (length := len(self.delta)) == 0:
            return rows
        slots = np.fromiter((self.delta.slots.find(one, length) for one in ids), dtype=np.int64, count=len(ids))
        return np.where(slots >= 0, slots + self.release.index.size, rows)

    def to_latest_rows(self, rows: Rows) -> Rows:
        """The rows that the items of some base rows have now; those of deleted items stay."""
        if self.live_base_rows is None or not len(rows) or (alive := self.live_base_rows.contains(rows)).all():
            return rows
        now = rows.copy()
        now[~alive] = self.to_rows(self.release.item_ids.to_ids(rows[~alive]))
        return now

    def is_live(self, rows: Rows) -> Mask:
        """[len(rows)] whether each row is an item that can be an answer; -1 is none."""
        slots = rows - self.release.index.size
        found = rows >= 0
        base = found & (slots < 0)
        if self.live_base_rows is not None:
            found[base] = self.live_base_rows.contains(rows[base])
        found[slots >= 0] = self.delta.live_mask[slots[slots >= 0]]
        return found

    def to_ids(self, rows: Rows) -> list[int] | list[str]:
        """The ids at `rows`."""
        if not len(self.delta):
            return self.release.item_ids.to_ids(rows)
        slots = rows - self.release.index.size
        if (slots < 0).all():
            return self.release.item_ids.to_ids(rows)
        base, names = iter(self.release.item_ids.to_ids(rows[slots < 0])), self.delta.slots.ids
        return cast("list[int] | list[str]", [names[slot] if slot >= 0 else next(base) for slot in slots.tolist()])

    def get_vectors(self, rows: Rows) -> Vectors:
        """[len(rows), D] stored vectors, as float32."""
        if not len(self.delta):
            return self.release.index.get_vectors(rows)
        slots = rows - self.release.index.size
        new = slots >= 0
        vectors = np.empty((len(rows), self.release.index.dim), dtype=np.float32)
        vectors[new] = self.delta.half_vectors[slots[new]]
        vectors[~new] = self.release.index.get_vectors(rows[~new])
        return vectors

    def get_attributes(self, rows: Rows) -> pl.DataFrame:
        """[len(rows)] attributes in this order."""
        slots = rows - self.release.index.size
        new = slots >= 0
        if not new.any():
            return self.release.attributes[rows]
        both = self.release.attributes[rows[~new]].vstack(self.delta.attributes[slots[new]])
        places = np.concatenate([np.flatnonzero(~new), np.flatnonzero(new)])
        return both[np.argsort(places)]
