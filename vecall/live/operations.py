"""One change to one item, and the row of the journal that holds it."""

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

# kind, id, given, fields as JSON, encoder, vector as little-endian float32.
RowBody = tuple[str, int | str | None, int, str | None, str | None, bytes | None]
# seq, the parts of a body, CRC-32 of all these; or whatever damage has made of them.
SqlRow = tuple[Any, ...]

# What remains of an operation once a later one has the last word on its item.
SUPERSEDED_BODY: RowBody = ("superseded", None, 0, None, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """What happened to an item. Compared by identity, for it holds an array.

    Attributes:
        seq: place in the journal, from 1; given by the journal, 0 before.
        kind: what happened.
        id: the item's id.
        fields: the item's columns as the user gave them; None for a delete, and where there are none.
        vector: [D] given by the user, or the item tower's answer to `fields`; None for a delete.
        encoder_hash: hash of the encoder that made `vector`; None where releases have no towers.
        has_external_vector: the user gave the vector, so no tower can make it again. False: it is a cache of what `fields` gives.
    """

    seq: int
    kind: OperationKind
    id: int | str
    fields: dict[str, JsonValue] | None
    vector: NDArray[np.float32] | None
    encoder_hash: str | None
    has_external_vector: bool


def encode_body(operation: Operation, id_type: IdType) -> RowBody:
    """Encode all but `seq`.

    Raises:
        QueryError: the id is not of `id_type`, the fields are not JSON, or the vector is not [D] float32.
    """
    one, fields, vector = operation.id, operation.fields, operation.vector
    if not (type(one) is int and -(2**63) <= one < 2**63 if id_type == "integer" else type(one) is str):
        raise QueryError(f"item id {one!r}: expected one of type {id_type} (an integer within 64 bits)", field="id")
    if vector is not None and (vector.ndim != 1 or vector.dtype != np.float32):
        raise QueryError(f"item {one!r}: expected a vector [D] of float32, got {vector.dtype} {vector.shape}")
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        f"{one}{text}".encode()  # SQLite takes no half surrogate pair
    except (TypeError, ValueError, RecursionError) as error:
        raise QueryError(f"item {one!r}: its fields are no JSON, or some text is no Unicode: {error}") from error
    return (
        operation.kind,
        one,
        int(operation.has_external_vector),
        None if fields is None else text,
        operation.encoder_hash,
        None if vector is None else vector.astype("<f4", copy=False).tobytes(),
    )


def encode_row(seq: int, body: RowBody) -> SqlRow:
    """The row that says `body` at `seq`."""
    return (seq, *body, _compute_checksum(seq, *body))


def has_valid_checksum(row: SqlRow) -> bool:
    """Whether a row says what was written."""
    try:
        return bool(_compute_checksum(*row[:-1]) == row[-1])
    except TypeError:  # damage has made bytes of text, or text of bytes
        return False


def _compute_checksum(*values: Any) -> int:  # noqa: ANN401 - `has_valid_checksum` asks of anything
    *head, vector = values  # JSON keeps the parts apart, and is the same under every Python
    text = json.dumps([*head, None if vector is None else len(vector)])
    return crc32(vector or b"", crc32(text.encode()))


def decode_row(row: SqlRow) -> Operation | None:
    """Decode a whole row; None where it is superseded."""
    seq, kind, one, given, fields, encoder, vector, _ = row
    if kind == SUPERSEDED_BODY[0]:
        return None
    decoded = None if fields is None else json.loads(fields)
    return Operation(
        seq, kind, one, decoded, None if vector is None else np.frombuffer(vector, "<f4"), encoder, bool(given)
    )
