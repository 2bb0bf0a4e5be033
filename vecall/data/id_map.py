"""Ids of the business's own type to dense rows and back; rows ascend with ids.

Integers are ordered by value, strings by their UTF-8 bytes. A row here is the row of the index and of every array
in a release, so ordering equal scores by row orders them by id.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NewType, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.hashing import Hashes, encode_utf8, hash_bytes, mix_bits, pack_bytes, pack_strings
from vecall.errors import DataError
from vecall.schema import IdType

Id = int | str
Row = NewType("Row", int)

UNKNOWN_ROW = -1

_MEAN_BUCKET_SIZE = 8  # that share their first bits, about
_INT64_RANGE = (-(2**63), 2**63 - 1)


class IdMap(ABC):
    """N distinct ids in ascending order."""

    id_type: IdType

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def to_rows(self, ids: Sequence[Id]) -> Rows:
        """[len(ids)] rows, -1 where an id is unknown.

        Raises:
            DataError: an id is not of this vocabulary's type.
        """

    @abstractmethod
    def to_ids(self, rows: Rows) -> list[int] | list[str]:
        """The ids at `rows`, as Python's own integers or strings."""

    @abstractmethod
    def hash_ids(self) -> Hashes:
        """[N] a hash of each id, the same in every vocabulary that has it."""

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """What `build_id_map_from_arrays` needs to make it again, by name."""

    def to_row(self, entity_id: Id) -> Row | None:
        """The row of one id; None where it is unknown."""
        found = int(self.to_rows([entity_id])[0])
        return None if found == UNKNOWN_ROW else Row(found)

    def column_to_rows(self, column: pl.Series) -> Rows:
        """As `rows`, for a whole column of ids of this type."""
        index = pl.DataFrame({"id": self.to_ids(np.arange(len(self))), "row": np.arange(len(self))})
        asked = column.rename("id").to_frame()
        return asked.join(index, on="id", how="left", maintain_order="left")["row"].fill_null(UNKNOWN_ROW).to_numpy()


class IntegerIdMap(IdMap):
    """Ids are integers of 64 bits; 8 bytes each."""

    id_type: IdType = "integer"

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def to_rows(self, ids: Sequence[Id]) -> Rows:  # noqa: D102
        integers = _to_integers(ids)
        try:
            return self._find_rows(np.array(integers, dtype=np.int64))
        except OverflowError:  # no id here is as large
            possible = np.array([_INT64_RANGE[0] <= one <= _INT64_RANGE[1] for one in integers])
            rows = np.full(len(ids), UNKNOWN_ROW, dtype=np.int64)
            rows[possible] = self._find_rows(
                np.array([one for one, ok in zip(integers, possible, strict=True) if ok], np.int64)
            )
            return rows

    def _find_rows(self, integers: NDArray[np.int64]) -> Rows:
        if len(self._ids) == 0:
            return np.full(len(integers), UNKNOWN_ROW, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, integers), len(self._ids) - 1)
        return np.where(self._ids[places] == integers, places, UNKNOWN_ROW)

    def to_ids(self, rows: Rows) -> list[int]:  # noqa: D102
        return cast("list[int]", self._ids[rows].tolist())

    def hash_ids(self) -> Hashes:  # noqa: D102
        return mix_bits(self._ids.view(np.uint64))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:  # noqa: D102
        return {"integers": self._ids}


def _to_integers(ids: Sequence[Id]) -> Sequence[int]:
    if set(map(type, ids)) <= {int}:
        return cast("Sequence[int]", ids)
    for one in ids:
        if not isinstance(one, (int, np.integer)) or isinstance(one, bool):
            raise DataError(f"ids here are integers, got {one!r} of type {type(one).__name__}")
    return list(map(int, ids))


class StringIdMap(IdMap):
    """Ids are strings; 20.5 bytes each beyond their own.

    Those are where it begins, its hash, the row of that hash, and a part of where hashes of equal first bits begin.
    """

    id_type: IdType = "string"

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._blob, self._offsets = blob, offsets
        hashes = hash_bytes(blob, offsets)
        self._rows_by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted_hashes = hashes[self._rows_by_hash]
        self._bucket_shift = np.uint64(64 - max(1, (len(hashes) // _MEAN_BUCKET_SIZE).bit_length()))
        firsts = np.arange(2 ** (64 - int(self._bucket_shift)), dtype=np.uint64) << self._bucket_shift
        self._bucket_starts = np.append(np.searchsorted(self._sorted_hashes, firsts), len(hashes)).astype(np.int32)
        self._blob_view = memoryview(blob)  # type: ignore[arg-type]  # slices of it are quicker than of an array

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def to_rows(self, ids: Sequence[Id]) -> Rows:  # noqa: D102
        for one in ids:
            if not isinstance(one, str):
                raise DataError(f"ids here are strings, got {one!r} of type {type(one).__name__}")
        strings = cast("Sequence[str]", ids)
        found = np.full(len(strings), UNKNOWN_ROW, dtype=np.int64)
        if not len(self):
            return found
        encoded = [encode_utf8(one) for one in strings]
        hashes = hash_bytes(*pack_bytes(encoded))
        places = self._search_buckets(hashes)
        rows = self._rows_by_hash[np.minimum(places, len(self) - 1)]
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        for at, (text, start, end) in enumerate(zip(encoded, starts, ends, strict=True)):
            if self._blob_view[start:end].tobytes() == text:
                found[at] = rows[at]
            else:  # unknown, or behind another id of the same hash
                found[at] = self._find_row_by_hash(text, hashes[at], int(places[at]))
        return found

    def _search_buckets(self, hashes: Hashes) -> Rows:
        """[n] where each hash stands among all, or would stand: by its first bits, then by halving what is left."""
        bucket = (hashes >> self._bucket_shift).astype(np.int64)
        low, high = self._bucket_starts[bucket].astype(np.int64), self._bucket_starts[bucket + 1].astype(np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            below = self._sorted_hashes[np.minimum(middle, len(self) - 1)] < hashes
            low, high = np.where(below & (low < high), middle + 1, low), np.where(below, high, middle)
        return low

    def _find_row_by_hash(self, id_bytes: bytes, id_hash: np.uint64, position: int) -> int:
        """The row of `id_bytes` among the rows whose hash is equal; two ids with one hash stand side by side."""
        while position < len(self._sorted_hashes) and self._sorted_hashes[position] == id_hash:
            row = int(self._rows_by_hash[position])
            if self._blob_view[self._offsets[row] : self._offsets[row + 1]].tobytes() == id_bytes:
                return row
            position += 1
        return UNKNOWN_ROW

    def to_ids(self, rows: Rows) -> list[str]:  # noqa: D102
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        blob = self._blob_view
        return [str(blob[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]

    def hash_ids(self) -> Hashes:  # noqa: D102
        return hash_bytes(self._blob, self._offsets)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:  # noqa: D102
        return {"bytes": self._blob, "offsets": self._offsets}


def build_id_map(ids: pl.Series, id_type: IdType) -> IdMap:
    """The distinct, non-null ids of a column, in ascending order."""
    distinct = ids.unique().sort()  # Polars orders strings by their UTF-8 bytes
    if id_type == "integer":
        return IntegerIdMap(distinct.cast(pl.Int64).to_numpy())
    return StringIdMap(*pack_strings(distinct.to_list()))


def build_id_map_from_arrays(arrays: dict[str, NDArray[np.generic]]) -> IdMap:
    """What `IdMap.arrays` gave, as a vocabulary again.

    Raises:
        DataError: the arrays are neither those of integers nor those of strings.
    """
    match sorted(arrays):
        case ["integers"]:
            return IntegerIdMap(cast("NDArray[np.int64]", arrays["integers"]))
        case ["bytes", "offsets"]:
            return StringIdMap(cast("NDArray[np.uint8]", arrays["bytes"]), cast("NDArray[np.int64]", arrays["offsets"]))
    raise DataError(f"a vocabulary is `integers`, or `bytes` and `offsets`; got {sorted(arrays)}")
