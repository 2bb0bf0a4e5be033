"""An operation, which is one change to one item, and the journal row that holds it."""

import json
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from vecall.errors import QueryError
from vecall.schema import IdType

OperationKind = Literal["upsert", "delete"]

# kind, id, 1 for an external vector, fields as JSON, encoder hash, vector as little-endian float32.
RowBody = tuple[str, int | str | None, int, str | None, str | None, bytes | None]
# seq, the columns of a body, CRC-32 of all these. In a corrupted row the columns may have any type.
SqlRow = tuple[Any, ...]

# The body that is left of an operation once a later operation on the same item replaces it.
SUPERSEDED_BODY: RowBody = ("superseded", None, 0, None, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A change to one item. Compared by identity, because it holds an array.

    Attributes:
        seq: sequence number in the journal, from 1; 0 until the journal assigns it.
        kind: "upsert" or "delete".
        id: id of the item.
        fields: the item's columns as the caller gave them; None for a delete, and where there are none.
        vector: float32 [D], given by the caller or computed by the item tower from `fields`; None for a delete.
        encoder_hash: hash of the encoder that computed `vector`; None where the release has no towers.
        has_external_vector: the caller gave the vector, so no tower can compute it again. If False, `vector` is a
            cache of what the item tower computes from `fields`.
    """

    seq: int
    kind: OperationKind
    id: int | str
    fields: dict[str, JsonValue] | None
    vector: NDArray[np.float32] | None
    encoder_hash: str | None
    has_external_vector: bool


def encode_body(operation: Operation, id_type: IdType) -> RowBody:
    """Encode an operation as the columns of its row, except `seq` and the checksum.

    Raises:
        QueryError: the id is not of `id_type`, the fields are not JSON, or the vector is not [D] float32.
    """
    item_id, fields, vector = operation.id, operation.fields, operation.vector
    if not (type(item_id) is int and -(2**63) <= item_id < 2**63 if id_type == "integer" else type(item_id) is str):
        expected = "a 64-bit integer" if id_type == "integer" else "a string"
        raise QueryError(f"item id {item_id!r}: expected {expected}", field="id")
    if vector is not None and (vector.ndim != 1 or vector.dtype != np.float32):
        raise QueryError(f"item {item_id!r}: expected a vector [D] of float32, got {vector.dtype} {vector.shape}")
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        f"{item_id}{text}".encode()  # raises for an unpaired surrogate, which SQLite cannot store
    except (TypeError, ValueError, RecursionError) as error:
        raise QueryError(
            f"item {item_id!r}: its fields cannot be written as JSON, or a text is not valid Unicode: {error}"
        ) from error
    return (
        operation.kind,
        item_id,
        int(operation.has_external_vector),
        None if fields is None else text,
        operation.encoder_hash,
        None if vector is None else vector.astype("<f4", copy=False).tobytes(),
    )


def encode_row(seq: int, body: RowBody) -> SqlRow:
    """Return the journal row of a body: its sequence number, its columns and their checksum."""
    return (seq, *body, _compute_checksum(seq, *body))


def has_valid_checksum(row: SqlRow) -> bool:
    """Return whether a row matches its checksum."""
    try:
        return bool(_compute_checksum(*row[:-1]) == row[-1])
    except TypeError:  # corruption has turned text into bytes or bytes into text
        return False


def _compute_checksum(*values: Any) -> int:  # noqa: ANN401 - a corrupted row has values of any type
    *columns, vector = values
    # JSON separates the columns unambiguously and is the same in every Python version.
    text = json.dumps([*columns, None if vector is None else len(vector)])
    return crc32(vector or b"", crc32(text.encode()))


def decode_row(row: SqlRow) -> Operation | None:
    """Decode a row whose checksum is valid; None for a superseded one."""
    seq, kind, item_id, has_external_vector, fields_json, encoder_hash, vector_bytes, _ = row
    if kind == SUPERSEDED_BODY[0]:
        return None
    return Operation(
        seq,
        kind,
        item_id,
        None if fields_json is None else json.loads(fields_json),
        None if vector_bytes is None else np.frombuffer(vector_bytes, "<f4"),
        encoder_hash,
        bool(has_external_vector),
    )
