"""Items and ids as callers give them, checked against a release and made into operations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.data.request_features import is_number, is_text
from vecall.errors import EncoderMismatchError, QueryError
from vecall.index.base import MAX_STORED_VALUE
from vecall.live.gil import iterate_cooperatively
from vecall.live.item_columns import ColumnBuildError, ItemColumns
from vecall.live.operations import Operation
from vecall.live.partial_upserts import PartialItemMerger
from vecall.release.release import Release

_ITEM_KEYS = ("id", "fields", "vector", "encoder")
_ENCODE_BATCH_SIZE = 4_096  # items


def parse_upserts(items: object, release: Release, merger: PartialItemMerger | None = None) -> list[Operation]:
    """Operations of `{"id", "fields"}` and `{"id", "vector", "encoder", "fields"}`; of equal ids the last one.

    Args:
        items: as they were given.
        release: takes them.
        merger: makes partial items whole; None: they are whole, and a missing column is null.

    Raises:
        QueryError: an item is not as it has to be; `field` is such as `items[3].fields.colour`.
        EncoderMismatch: a vector is of another encoder.
    """
    fields = ItemColumns.from_release(release)
    listed = _parse_list("items", items, Mapping, "{id, fields} or {id, vector, encoder, fields}")
    read = [
        _parse_item(f"items[{place}]", item, release, fields, merger)
        for place, item in enumerate(iterate_cooperatively(listed))
    ]
    last = list({operation.id: operation for operation in read}.values())
    return encode_missing_vectors(last, release, fields)


def to_query_error(
    error: ColumnBuildError, operations: Sequence[Operation], items: Sequence[Mapping[str, Any]]
) -> QueryError:
    """The refusal of a value that its column does not take, at its place in the request."""
    one = operations[error.row].id
    place = max(place for place, item in enumerate(items) if item["id"] == one)
    field = f"items[{place}].fields.{error.column}"
    return QueryError(f"{field}: the column does not take this value: {error.reason}", field=field)


def parse_deletes(ids: object, release: Release) -> tuple[list[Id], list[Operation]]:
    """The distinct ids, and operations of those among them that an item can have.

    Raises:
        QueryError: an id is not of the release's type; `field` is such as `ids[3]`.
    """
    listed = _parse_list("ids", ids, (str, int, np.integer), f"a {release.item_ids.id_type} id")
    plain = [_parse_id(f"ids[{place}]", one, release) for place, one in enumerate(listed)]
    distinct = list(dict.fromkeys(plain))
    return distinct, [
        Operation(0, "delete", one, None, None, None, has_external_vector=False)
        for one in distinct
        if _is_storable_id(one)
    ]


def encode_missing_vectors(
    operations: Sequence[Operation], release: Release, item_columns: ItemColumns
) -> list[Operation]:
    """The same operations, with vectors from the item tower where upserts have none."""
    made, encoder = list(operations), release.encoder
    if encoder is None:
        return made
    bare = [place for place, operation in enumerate(made) if operation.kind == "upsert" and operation.vector is None]
    for start in range(0, len(bare), _ENCODE_BATCH_SIZE):
        places = bare[start : start + _ENCODE_BATCH_SIZE]
        given = item_columns.build_feature_frame([made[place].fields or {} for place in places])
        rows = release.item_ids.to_rows([made[place].id for place in places])  # -1: the unknown item's id vector
        vectors = encoder.encode_items(given, rows)
        if not (np.abs(vectors) <= MAX_STORED_VALUE).all():
            raise QueryError("items: the item tower makes vectors of them that are not finite: look at their numbers")
        for place, vector in zip(places, vectors, strict=True):
            made[place] = replace(made[place], vector=vector, encoder_hash=release.manifest.encoder)
    return made


def _parse_item(
    location: str,
    item: Mapping[str, object],
    release: Release,
    item_columns: ItemColumns,
    merger: PartialItemMerger | None,
) -> Operation:
    """One item as an operation; its vector is still to be made where the item has none."""
    for key in item:
        if key not in _ITEM_KEYS:
            raise QueryError(
                f"{location}: unknown key {key!r}; expected some of {list(_ITEM_KEYS)}", field=f"{location}.{key}"
            )
    one = _parse_id(f"{location}.id", item.get("id"), release)
    if not _is_storable_id(one):
        what = "an integer of 64 bits" if isinstance(one, int) else "valid Unicode that is not empty"
        raise QueryError(f"{location}.id: expected {what}, got {one!r:.80}", field=f"{location}.id")
    columns = _parse_fields(f"{location}.fields", item.get("fields"), item_columns)
    if merger is not None:
        item = merger.merge(location, one, {**item, "fields": columns})
        columns = _parse_fields(f"{location}.fields", item["fields"], item_columns)
    given, encoder = item.get("vector"), item.get("encoder")
    if given is None:
        _check_encodable(location, item, release)
        return Operation(0, "upsert", one, columns, None, None, has_external_vector=False)
    _check_encoder(location, encoder, release)
    vector = _parse_vector(f"{location}.vector", given, release.index.dim)
    return Operation(0, "upsert", one, columns, vector, release.manifest.encoder, has_external_vector=True)


def _check_encodable(location: str, item: Mapping[str, object], release: Release) -> None:
    """An item without a vector has fields, and the release a tower to read them."""
    if release.encoder is None:
        raise QueryError(
            f"{location}: release {release.name!r} has no towers, so an item must bring its `vector`",
            field=f"{location}.vector",
        )
    if item.get("encoder") is not None:
        raise QueryError(f"{location}: an encoder goes with a vector, and there is none", field=f"{location}.vector")
    if item.get("fields") is None:
        raise QueryError(f"{location}: expected fields, or a vector and its encoder", field=f"{location}.fields")


def _parse_fields(location: str, raw_fields: object, item_columns: ItemColumns) -> dict[str, Any]:
    if raw_fields is None:
        return {}
    if not isinstance(raw_fields, Mapping):
        raise QueryError(f"{location}: expected an object of columns, got {raw_fields!r:.80}", field=location)
    for name, value in raw_fields.items():
        if (wrong := item_columns.describe_error(name, value)) is not None:
            raise QueryError(f"{location}.{name}: {wrong}", field=f"{location}.{name}")
    return {name: _unwrap_numpy(value) for name, value in raw_fields.items()}


def _unwrap_numpy(value: Any) -> Any:  # noqa: ANN401 - a checked value
    """As JSON has it: the journal keeps it so."""
    if isinstance(value, (list, tuple)):
        return [_unwrap_numpy(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_encoder(location: str, encoder_hash: object, release: Release) -> None:
    expected = release.manifest.encoder
    if encoder_hash == expected:
        return
    if expected is None:
        message = f"release {release.name!r} has no towers and so no encoder: leave `encoder` out"
    else:
        message = f"release {release.name!r} has the encoder {expected} (in its manifest): encode the item with that"
    raise EncoderMismatchError(
        f"{location}.encoder: got {encoder_hash!r:.80}, but {message}", field=f"{location}.encoder"
    )


def _parse_vector(location: str, value: object, dim: int) -> NDArray[np.float32]:
    """[D] of finite numbers that half precision can hold."""
    array = isinstance(value, np.ndarray)
    if array:
        ok = value.ndim == 1 and value.dtype.kind in "fiu"  # type: ignore[attr-defined]
    else:
        ok = isinstance(value, (list, tuple)) and (
            set(map(type, value)) <= {float, int} or all(is_number(one) for one in value)
        )
    if not ok or len(value) != dim:  # type: ignore[arg-type]
        raise QueryError(f"{location}: expected a list of {dim} numbers, got {value!r:.80}", field=location)
    try:
        vector = np.asarray(value, dtype=np.float64)
    except OverflowError:  # an integer beyond any float
        vector = np.full(dim, np.inf)
    if not (np.abs(vector) <= MAX_STORED_VALUE).all():
        raise QueryError(
            f"{location}: expected finite numbers within ±{MAX_STORED_VALUE:.0f}, got {value!r:.80}", field=location
        )
    return vector.astype(np.float32)


def _parse_id(location: str, value: object, release: Release) -> Id:
    wanted = (int, np.integer) if release.item_ids.id_type == "integer" else str
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise QueryError(
            f"{location}: ids here are of type {release.item_ids.id_type}, got {value!r:.80}", field=location
        )
    return str(value) if isinstance(value, str) else int(value)


def _is_storable_id(item_id: Id) -> bool:
    """Whether an item can have this id: others are nobody's."""
    return bool(item_id) and is_text(item_id) if isinstance(item_id, str) else -(2**63) <= item_id < 2**63


def _parse_list(location: str, value: object, element_type: Any, expected: str) -> list[Any]:  # noqa: ANN401 - a type, or some
    if not isinstance(value, (Sequence, np.ndarray, pl.Series)) or isinstance(value, (str, bytes)):
        raise QueryError(f"{location}: expected a list, got {value!r:.80}", field=location)
    for number, one in enumerate(value):
        if not isinstance(one, element_type):
            raise QueryError(
                f"{location}[{number}]: expected {expected}, got {one!r:.80}", field=f"{location}[{number}]"
            )
    return list(value)
