"""Mapping between ids (integers or strings) and dense rows; rows ascend with ids.

Integers are ordered by value, strings by their UTF-8 bytes. Row r of an item is its row in the index and in every array
of a release, so equal scores that are ordered by row are ordered by id.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import compress, pairwise
from typing import NewType, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows
from vecall.data.hashing import Hashes, encode_utf8, hash_bytes, mix_bits, pack_bytes, pack_column, unpack_column
from vecall.data.id_numbering import IdNumbering
from vecall.data.ragged import locate_segments, offsets_from_lengths
from vecall.errors import DataError
from vecall.schema import IdType

Id = int | str
Row = NewType("Row", int)

UNKNOWN_ROW = -1
_DECODED_ROWS = 2**14  # string ids decoded at a time; the positions of their bytes take eight times their memory

_MEAN_BUCKET_SIZE = 8  # at most; hashes per bucket
_INT64_RANGE = (-(2**63), 2**63 - 1)


class IdMap(ABC):
    """Bijection between N distinct ids in ascending order and the rows 0 to N - 1."""

    id_type: IdType

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def to_rows(self, ids: Sequence[Id]) -> Rows:
        """Return [len(ids)] rows, -1 where an id is unknown.

        Raises:
            DataError: An id is not of the type of this map.
        """

    @abstractmethod
    def to_ids(self, rows: Rows) -> list[int] | list[str]:
        """Return the ids at `rows` as Python integers or strings."""

    @abstractmethod
    def to_column(self) -> pl.Series:
        """Return the N ids as a column, in the order of their rows."""

    @abstractmethod
    def hash_ids(self) -> Hashes:
        """Return [N] hashes of the ids; an id has the same hash in every map."""

    @abstractmethod
    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays, by name, from which `build_id_map_from_arrays` restores the map."""

    def to_row(self, entity_id: Id) -> Row | None:
        """Return the row of an id; None if it is unknown."""
        row = int(self.to_rows([entity_id])[0])
        return None if row == UNKNOWN_ROW else Row(row)

    def column_to_rows(self, column: pl.Series) -> Rows:
        """Return the rows [n] of a column of ids of this map's type, -1 where an id is unknown.

        Args:
            column: [n] Ids, not null.
        """
        return IdNumbering(self.id_type, self.to_column()).find(column).astype(np.int64)


class IntegerIdMap(IdMap):
    """Map of 64-bit integer ids. Takes 8 bytes per id.

    Args:
        ids: [N] Distinct ids, ascending.
    """

    id_type: IdType = "integer"

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def to_rows(self, ids: Sequence[Id]) -> Rows:  # noqa: D102
        integers = _to_integers(ids)
        try:
            return self._find_rows(np.array(integers, dtype=np.int64))
        except OverflowError:  # integers beyond 64 bits are unknown
            is_int64 = np.array([_INT64_RANGE[0] <= integer <= _INT64_RANGE[1] for integer in integers])
            rows = np.full(len(ids), UNKNOWN_ROW, dtype=np.int64)
            rows[is_int64] = self._find_rows(np.array(list(compress(integers, is_int64)), dtype=np.int64))
            return rows

    def _find_rows(self, integers: NDArray[np.int64]) -> Rows:
        if len(self._ids) == 0:
            return np.full(len(integers), UNKNOWN_ROW, dtype=np.int64)
        rows = np.minimum(np.searchsorted(self._ids, integers), len(self._ids) - 1)
        return np.where(self._ids[rows] == integers, rows, UNKNOWN_ROW)

    def to_ids(self, rows: Rows) -> list[int]:  # noqa: D102
        return cast("list[int]", self._ids[rows].tolist())

    def column_to_rows(self, column: pl.Series) -> Rows:  # noqa: D102
        return self._find_rows(column.to_numpy())  # a binary search, fast in a column that ascends like that of a map

    def to_column(self) -> pl.Series:  # noqa: D102
        return pl.Series(self._ids)

    def hash_ids(self) -> Hashes:  # noqa: D102
        return mix_bits(self._ids.view(np.uint64))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:  # noqa: D102
        return {"integers": self._ids}


def _to_integers(ids: Sequence[Id]) -> Sequence[int]:
    if set(map(type, ids)) <= {int}:
        return cast("Sequence[int]", ids)
    for value in ids:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise DataError(f"ids here are integers, got {value!r} of type {type(value).__name__}")
    return list(map(int, ids))


class StringIdMap(IdMap):
    """Map of string ids. Takes 20.5 to 21 bytes per id beside the string itself.

    Lookup is by hash: the hashes are sorted, and buckets of hashes with the same leading bits narrow the binary search.
    Per id these are 8 bytes of offset, 8 of hash, 4 of row, and 0.5 to 1 of bucket starts.

    Args:
        blob: [bytes] UTF-8 of the distinct ids, end to end, ascending by bytes.
        offsets: [N + 1] Id i is `blob[offsets[i] : offsets[i + 1]]`.
    """

    id_type: IdType = "string"

    def __init__(self, blob: NDArray[np.uint8], offsets: Offsets) -> None:
        self._blob, self._offsets = blob, offsets
        hashes = hash_bytes(blob, offsets)
        self._rows_by_hash = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted_hashes = hashes[self._rows_by_hash]
        self._bucket_shift = np.uint64(64 - max(1, (len(hashes) // _MEAN_BUCKET_SIZE).bit_length()))
        lower_bounds = np.arange(2 ** (64 - int(self._bucket_shift)), dtype=np.uint64) << self._bucket_shift
        starts = np.searchsorted(self._sorted_hashes, lower_bounds)
        self._bucket_starts = np.append(starts, len(hashes)).astype(np.int32)
        self._blob_view = memoryview(blob)  # type: ignore[arg-type]  # faster to slice than an array

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def to_rows(self, ids: Sequence[Id]) -> Rows:  # noqa: D102
        for value in ids:
            if not isinstance(value, str):
                raise DataError(f"ids here are strings, got {value!r} of type {type(value).__name__}")
        rows = np.full(len(ids), UNKNOWN_ROW, dtype=np.int64)
        if not len(self):
            return rows
        encoded_ids = [encode_utf8(text) for text in cast("Sequence[str]", ids)]
        hashes = hash_bytes(*pack_bytes(encoded_ids))
        positions = self._search_buckets(hashes)
        candidates = self._rows_by_hash[np.minimum(positions, len(self) - 1)]
        starts, ends = self._offsets[candidates].tolist(), self._offsets[candidates + 1].tolist()
        for index, (id_bytes, start, end) in enumerate(zip(encoded_ids, starts, ends, strict=True)):
            if self._blob_view[start:end].tobytes() == id_bytes:
                rows[index] = candidates[index]
            else:  # unknown, or preceded by another id of the same hash
                rows[index] = self._find_row_by_hash(id_bytes, hashes[index], int(positions[index]))
        return rows

    def _search_buckets(self, hashes: Hashes) -> Rows:
        """Return the first positions [n] of the hashes in the sorted hashes, as `np.searchsorted` does.

        A binary search within the bucket of each hash, for all hashes at once.
        """
        buckets = (hashes >> self._bucket_shift).astype(np.int64)
        low, high = self._bucket_starts[buckets].astype(np.int64), self._bucket_starts[buckets + 1].astype(np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            is_below = self._sorted_hashes[np.minimum(middle, len(self) - 1)] < hashes
            low, high = np.where(is_below & (low < high), middle + 1, low), np.where(is_below, high, middle)
        return low

    def _find_row_by_hash(self, id_bytes: bytes, id_hash: np.uint64, position: int) -> int:
        """Return the row of an id among the ids with the same hash, which follow each other from `position` on."""
        while position < len(self._sorted_hashes) and self._sorted_hashes[position] == id_hash:
            row = int(self._rows_by_hash[position])
            if self._blob_view[self._offsets[row] : self._offsets[row + 1]].tobytes() == id_bytes:
                return row
            position += 1
        return UNKNOWN_ROW

    def to_ids(self, rows: Rows) -> list[str]:  # noqa: D102
        chunks = (rows[start : start + _DECODED_ROWS] for start in range(0, len(rows), _DECODED_ROWS))
        return [text for chunk in chunks for text in self._decode(chunk)]

    def _decode(self, rows: Rows) -> list[str]:
        starts = self._offsets[rows]
        lengths = self._offsets[rows + 1] - starts
        content = self._blob[locate_segments(starts, lengths)].tobytes()
        text, bounds = content.decode("utf-8"), offsets_from_lengths(lengths).tolist()
        if len(text) == len(content):  # ASCII, where characters are bytes: decoding each id takes three times as long
            return [text[start:end] for start, end in pairwise(bounds)]
        return [content[start:end].decode("utf-8") for start, end in pairwise(bounds)]

    def to_column(self) -> pl.Series:  # noqa: D102
        return unpack_column(self._blob, self._offsets)

    def hash_ids(self) -> Hashes:  # noqa: D102
        return hash_bytes(self._blob, self._offsets)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:  # noqa: D102
        return {"bytes": self._blob, "offsets": self._offsets}


def build_id_map(ids: pl.Series, id_type: IdType) -> IdMap:
    """Build the map of the distinct ids of a column.

    Args:
        ids: [n] Ids of the type, not null, in any order.
        id_type: Type of the ids.
    """
    is_ascending = bool((ids.slice(1) > ids.head(max(0, len(ids) - 1))).all())
    distinct_ids = ids if is_ascending else ids.unique().sort()  # Polars orders strings by their UTF-8 bytes
    if id_type == "integer":
        return IntegerIdMap(distinct_ids.cast(pl.Int64).to_numpy())
    return StringIdMap(*pack_column(distinct_ids))


def build_id_map_from_arrays(arrays: dict[str, NDArray[np.generic]]) -> IdMap:
    """Restore a map from what `IdMap.to_arrays` returned.

    Raises:
        DataError: The arrays are neither those of an integer map nor those of a string map.
    """
    match sorted(arrays):
        case ["integers"]:
            return IntegerIdMap(cast("NDArray[np.int64]", arrays["integers"]))
        case ["bytes", "offsets"]:
            return StringIdMap(cast("NDArray[np.uint8]", arrays["bytes"]), cast("NDArray[np.int64]", arrays["offsets"]))
    raise DataError(f"expected the array `integers`, or the arrays `bytes` and `offsets`; got {sorted(arrays)}")
