"""Parsing of upserts and deletes: check what a caller gives against a release, and convert it to operations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.data.request_features import is_number, is_text, to_plain_list
from vecall.errors import EncoderMismatchError, QueryError
from vecall.index.scan import MAX_STORED_VALUE
from vecall.live.gil import iterate_cooperatively
from vecall.live.item_columns import ColumnBuildError, ItemColumns
from vecall.live.operations import Operation
from vecall.live.partial_upserts import PartialItemMerger
from vecall.release.release import Release

_ITEM_KEYS = ("id", "fields", "vector", "encoder")
_ENCODE_BATCH_SIZE = 4_096  # items


def parse_upserts(items: object, release: Release, merger: PartialItemMerger | None = None) -> list[Operation]:
    """Convert items `{"id", "fields"}` or `{"id", "vector", "encoder", "fields"}` to upserts.

    Args:
        items: what the caller gave.
        release: the release that the items are checked against.
        merger: completes partial items; None if the items are complete, and a missing column means null.

    Returns:
        One operation per distinct id, of its last item.

    Raises:
        QueryError: an item is invalid; `field` says which part, such as `items[3].fields.colour`.
        EncoderMismatchError: a vector is of another encoder than the release's.
    """
    item_columns = ItemColumns.from_release(release)
    item_list = _parse_list("items", items, Mapping, "{id, fields} or {id, vector, encoder, fields}")
    parsed = [
        _parse_item(f"items[{i}]", item, release, item_columns, merger)
        for i, item in enumerate(iterate_cooperatively(item_list))
    ]
    last_operations = list({operation.id: operation for operation in parsed}.values())
    return encode_missing_vectors(last_operations, release, item_columns)


def to_query_error(
    error: ColumnBuildError, operations: Sequence[Operation], items: Sequence[Mapping[str, Any]]
) -> QueryError:
    """Convert an error of building a column to one with the value's location in the request."""
    item_id = operations[error.row].id
    position = max(i for i, item in enumerate(items) if item["id"] == item_id)
    field = f"items[{position}].fields.{error.column}"
    return QueryError(f"{field}: the column does not take this value: {error.reason}", field=field)


def parse_deletes(ids: object, release: Release) -> tuple[list[Id], list[Operation]]:
    """Convert item ids to deletes.

    Returns:
        The distinct ids, and a delete for each of them that an item can have.

    Raises:
        QueryError: an id is not of the release's id type; `field` says which, such as `ids[3]`.
    """
    id_list = _parse_list("ids", ids, (str, int, np.integer), f"an id of type {release.item_ids.id_type}")
    item_ids = [_parse_id(f"ids[{i}]", value, release) for i, value in enumerate(id_list)]
    distinct = list(dict.fromkeys(item_ids))
    return distinct, [
        Operation(0, "delete", item_id, None, None, None, has_external_vector=False)
        for item_id in distinct
        if _is_storable_id(item_id)
    ]


def encode_missing_vectors(
    operations: Sequence[Operation], release: Release, item_columns: ItemColumns
) -> list[Operation]:
    """Compute the vectors of upserts that have none, with the release's item tower.

    Returns:
        The operations in the same order. Without towers they are unchanged.

    Raises:
        QueryError: a computed vector has values that are not finite or too large to store.
    """
    encoded, encoder = list(operations), release.encoder
    if encoder is None:
        return encoded
    missing = [i for i, operation in enumerate(encoded) if operation.kind == "upsert" and operation.vector is None]
    for start in range(0, len(missing), _ENCODE_BATCH_SIZE):
        positions = missing[start : start + _ENCODE_BATCH_SIZE]
        features = item_columns.build_feature_frame([encoded[i].fields or {} for i in positions])
        rows = release.item_ids.to_rows([encoded[i].id for i in positions])  # -1 selects the unknown item's id vector
        vectors = encoder.encode_items(features, rows)
        if not (np.abs(vectors) <= MAX_STORED_VALUE).all():
            raise QueryError(
                "items: the item tower computed vectors with values that are not finite or too large: check the items' "
                "numeric fields"
            )
        for i, vector in zip(positions, vectors, strict=True):
            encoded[i] = replace(encoded[i], vector=vector, encoder_hash=release.manifest.encoder)
    return encoded


def _parse_item(
    location: str,
    item: Mapping[str, object],
    release: Release,
    item_columns: ItemColumns,
    merger: PartialItemMerger | None,
) -> Operation:
    """Convert an item to an upsert, which has no vector if the item has none."""
    for key in item:
        if key not in _ITEM_KEYS:
            raise QueryError(
                f"{location}: unknown key {key!r}; expected one of {list(_ITEM_KEYS)}", field=f"{location}.{key}"
            )
    item_id = _parse_id(f"{location}.id", item.get("id"), release)
    if not _is_storable_id(item_id):
        expected = "a 64-bit integer" if isinstance(item_id, int) else "valid Unicode that is not empty"
        raise QueryError(f"{location}.id: expected {expected}, got {item_id!r:.80}", field=f"{location}.id")
    fields = _parse_fields(f"{location}.fields", item.get("fields"), item_columns)
    if merger is not None:
        item = merger.merge(location, item_id, {**item, "fields": fields})
        fields = _parse_fields(f"{location}.fields", item["fields"], item_columns)
    if item.get("vector") is None:
        _check_encodable(location, item, release)
        return Operation(0, "upsert", item_id, fields, None, None, has_external_vector=False)
    _check_encoder(location, item.get("encoder"), release)
    vector = _parse_vector(f"{location}.vector", item["vector"], release.vectors.dim)
    return Operation(0, "upsert", item_id, fields, vector, release.manifest.encoder, has_external_vector=True)


def _check_encodable(location: str, item: Mapping[str, object], release: Release) -> None:
    """Check that an item without a vector has fields, and that the release has an item tower to encode them."""
    if release.encoder is None:
        raise QueryError(
            f"{location}: release {release.name!r} has no towers, so each item needs a `vector`",
            field=f"{location}.vector",
        )
    if item.get("encoder") is not None:
        raise QueryError(
            f"{location}: got an `encoder` without a `vector`: give both or neither", field=f"{location}.vector"
        )
    if item.get("fields") is None:
        raise QueryError(f"{location}: expected `fields`, or a `vector` and its `encoder`", field=f"{location}.fields")


def _parse_fields(location: str, raw_fields: object, item_columns: ItemColumns) -> dict[str, Any]:
    if raw_fields is None:
        return {}
    if not isinstance(raw_fields, Mapping):
        raise QueryError(f"{location}: expected an object of columns, got {raw_fields!r:.80}", field=location)
    fields = {name: to_plain_list(value) for name, value in raw_fields.items()}
    for name, value in fields.items():
        if (error := item_columns.describe_error(name, value)) is not None:
            raise QueryError(f"{location}.{name}: {error}", field=f"{location}.{name}")
    return {name: _unwrap_numpy(value) for name, value in fields.items()}


def _unwrap_numpy(value: Any) -> Any:  # noqa: ANN401 - a checked value
    """Convert a checked value to its JSON form, which the journal stores."""
    if isinstance(value, (list, tuple)):
        return [_unwrap_numpy(element) for element in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_encoder(location: str, encoder_hash: object, release: Release) -> None:
    expected = release.manifest.encoder
    if encoder_hash == expected:
        return
    if expected is None:
        message = f"release {release.name!r} has no towers and so no encoder: omit `encoder`"
    else:
        message = f"release {release.name!r} has encoder {expected} (see its manifest): encode the item with that one"
    raise EncoderMismatchError(
        f"{location}.encoder: got {encoder_hash!r:.80}, but {message}", field=f"{location}.encoder"
    )


def _parse_vector(location: str, value: object, dim: int) -> NDArray[np.float32]:
    """Convert a list of numbers to float32 [D], whose values are finite in half precision."""
    value = value if isinstance(value, np.ndarray) else to_plain_list(value)
    if isinstance(value, np.ndarray):
        is_valid = value.ndim == 1 and value.dtype.kind in "fiu"
    else:
        is_valid = isinstance(value, (list, tuple)) and (
            set(map(type, value)) <= {float, int} or all(is_number(number) for number in value)
        )
    if not is_valid or len(value) != dim:  # type: ignore[arg-type]
        raise QueryError(f"{location}: expected a list of {dim} numbers, got {value!r:.80}", field=location)
    try:
        vector = np.asarray(value, dtype=np.float64)
    except OverflowError:  # an integer too large for a float
        vector = np.full(dim, np.inf)
    if not (np.abs(vector) <= MAX_STORED_VALUE).all():
        raise QueryError(
            f"{location}: expected finite numbers within ±{MAX_STORED_VALUE:.0f}, got {value!r:.80}", field=location
        )
    return vector.astype(np.float32)


def _parse_id(location: str, value: object, release: Release) -> Id:
    id_type = release.item_ids.id_type
    expected = (int, np.integer) if id_type == "integer" else str
    if not isinstance(value, expected) or isinstance(value, bool):
        raise QueryError(f"{location}: expected an id of type {id_type}, got {value!r:.80}", field=location)
    return str(value) if isinstance(value, str) else int(value)


def _is_storable_id(item_id: Id) -> bool:
    """Return whether an item can have this id."""
    return bool(item_id) and is_text(item_id) if isinstance(item_id, str) else -(2**63) <= item_id < 2**63


def _parse_list(location: str, value: object, element_type: Any, expected: str) -> list[Any]:  # noqa: ANN401 - a type, or a tuple of types
    is_scalar = isinstance(value, (str, bytes)) or (isinstance(value, np.ndarray) and not value.ndim)
    if is_scalar or not isinstance(value, (Sequence, np.ndarray, pl.Series)):
        raise QueryError(f"{location}: expected a list, got {value!r:.80}", field=location)
    for i, element in enumerate(value):
        if not isinstance(element, element_type):
            raise QueryError(f"{location}[{i}]: expected {expected}, got {element!r:.80}", field=f"{location}[{i}]")
    return list(value)
