"""Items and ids as callers give them, checked against a release and made into operations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.data.request_features import is_number, is_text
from vecall.errors import EncoderMismatch, QueryError
from vecall.index.base import MAX_STORED
from vecall.live.gil import in_turns
from vecall.live.item_columns import ItemFields, UnfitValueError
from vecall.live.operations import Operation
from vecall.live.partial_upserts import Completer
from vecall.release.release import Release

_KEYS = ("id", "fields", "vector", "encoder")
_ENCODED_AT_ONCE = 4_096  # items


def upserts(items: object, release: Release, completer: Completer | None = None) -> list[Operation]:
    """Operations of `{"id", "fields"}` and `{"id", "vector", "encoder", "fields"}`; of equal ids the last one.

    Args:
        items: as they were given.
        release: takes them.
        completer: makes partial items whole; None: they are whole, and a missing column is null.

    Raises:
        QueryError: an item is not as it has to be; `field` is such as `items[3].fields.colour`.
        EncoderMismatch: a vector is of another encoder.
    """
    fields = ItemFields.of(release)
    listed = _listed("items", items, Mapping, "{id, fields} or {id, vector, encoder, fields}")
    read = [_read(f"items[{place}]", item, release, fields, completer) for place, item in enumerate(in_turns(listed))]
    last = list({operation.id: operation for operation in read}.values())
    return encoded(last, release, fields)


def unfit_error(
    error: UnfitValueError, operations: Sequence[Operation], items: Sequence[Mapping[str, Any]]
) -> QueryError:
    """The refusal of a value that its column does not take, at its place in the request."""
    one = operations[error.row].id
    place = max(place for place, item in enumerate(items) if item["id"] == one)
    field = f"items[{place}].fields.{error.column}"
    return QueryError(f"{field}: the column does not take this value: {error.reason}", field=field)


def deletions(ids: object, release: Release) -> tuple[list[Id], list[Operation]]:
    """The distinct ids, and operations of those among them that an item can have.

    Raises:
        QueryError: an id is not of the release's type; `field` is such as `ids[3]`.
    """
    listed = _listed("ids", ids, (str, int, np.integer), f"a {release.items.id_type} id")
    plain = [_of_type(f"ids[{place}]", one, release) for place, one in enumerate(listed)]
    distinct = list(dict.fromkeys(plain))
    return distinct, [Operation(0, "delete", one, None, None, None, given=False) for one in distinct if _possible(one)]


def encoded(operations: Sequence[Operation], release: Release, fields: ItemFields) -> list[Operation]:
    """The same operations, with vectors from the item tower where upserts have none."""
    made, encoder = list(operations), release.encoder
    if encoder is None:
        return made
    bare = [place for place, operation in enumerate(made) if operation.kind == "upsert" and operation.vector is None]
    for start in range(0, len(bare), _ENCODED_AT_ONCE):
        places = bare[start : start + _ENCODED_AT_ONCE]
        given = fields.feature_frame([made[place].fields or {} for place in places])
        rows = release.items.rows([made[place].id for place in places])  # -1: the unknown item's id vector
        vectors = encoder.encode_items(given, rows)
        if not (np.abs(vectors) <= MAX_STORED).all():
            raise QueryError("items: the item tower makes vectors of them that are not finite: look at their numbers")
        for place, vector in zip(places, vectors, strict=True):
            made[place] = replace(made[place], vector=vector, encoder=release.manifest.encoder)
    return made


def _read(
    place: str, item: Mapping[str, object], release: Release, fields: ItemFields, completer: Completer | None
) -> Operation:
    """One item as an operation; its vector is still to be made where the item has none."""
    for key in item:
        if key not in _KEYS:
            raise QueryError(f"{place}: unknown key {key!r}; expected some of {list(_KEYS)}", field=f"{place}.{key}")
    one = _of_type(f"{place}.id", item.get("id"), release)
    if not _possible(one):
        what = "an integer of 64 bits" if isinstance(one, int) else "valid Unicode that is not empty"
        raise QueryError(f"{place}.id: expected {what}, got {one!r:.80}", field=f"{place}.id")
    columns = _fields(f"{place}.fields", item.get("fields"), fields)
    if completer is not None:
        item = completer.complete(place, one, {**item, "fields": columns})
        columns = _fields(f"{place}.fields", item["fields"], fields)
    given, encoder = item.get("vector"), item.get("encoder")
    if given is None:
        _check_can_be_made(place, item, release)
        return Operation(0, "upsert", one, columns, None, None, given=False)
    _check_encoder(place, encoder, release)
    vector = _vector(f"{place}.vector", given, release.index.dim)
    return Operation(0, "upsert", one, columns, vector, release.manifest.encoder, given=True)


def _check_can_be_made(place: str, item: Mapping[str, object], release: Release) -> None:
    """An item without a vector has fields, and the release a tower to read them."""
    if release.encoder is None:
        raise QueryError(
            f"{place}: release {release.name!r} has no towers, so an item must bring its `vector`",
            field=f"{place}.vector",
        )
    if item.get("encoder") is not None:
        raise QueryError(f"{place}: an encoder goes with a vector, and there is none", field=f"{place}.vector")
    if item.get("fields") is None:
        raise QueryError(f"{place}: expected fields, or a vector and its encoder", field=f"{place}.fields")


def _fields(place: str, given: object, fields: ItemFields) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise QueryError(f"{place}: expected an object of columns, got {given!r:.80}", field=place)
    for name, value in given.items():
        if (wrong := fields.problem(name, value)) is not None:
            raise QueryError(f"{place}.{name}: {wrong}", field=f"{place}.{name}")
    return {name: _plain(value) for name, value in given.items()}


def _plain(value: Any) -> Any:  # noqa: ANN401 - a checked value
    """As JSON has it: the journal keeps it so."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _check_encoder(place: str, given: object, release: Release) -> None:
    expected = release.manifest.encoder
    if given == expected:
        return
    if expected is None:
        message = f"release {release.name!r} has no towers and so no encoder: leave `encoder` out"
    else:
        message = f"release {release.name!r} has the encoder {expected} (in its manifest): encode the item with that"
    raise EncoderMismatch(f"{place}.encoder: got {given!r:.80}, but {message}", field=f"{place}.encoder")


def _vector(place: str, given: object, dim: int) -> NDArray[np.float32]:
    """[D] of finite numbers that half precision can hold."""
    array = isinstance(given, np.ndarray)
    if array:
        ok = given.ndim == 1 and given.dtype.kind in "fiu"  # type: ignore[attr-defined]
    else:
        ok = isinstance(given, (list, tuple)) and (
            set(map(type, given)) <= {float, int} or all(is_number(one) for one in given)
        )
    if not ok or len(given) != dim:  # type: ignore[arg-type]
        raise QueryError(f"{place}: expected a list of {dim} numbers, got {given!r:.80}", field=place)
    try:
        vector = np.asarray(given, dtype=np.float64)
    except OverflowError:  # an integer beyond any float
        vector = np.full(dim, np.inf)
    if not (np.abs(vector) <= MAX_STORED).all():
        raise QueryError(f"{place}: expected finite numbers within ±{MAX_STORED:.0f}, got {given!r:.80}", field=place)
    return vector.astype(np.float32)


def _of_type(place: str, one: object, release: Release) -> Id:
    wanted = (int, np.integer) if release.items.id_type == "integer" else str
    if not isinstance(one, wanted) or isinstance(one, bool):
        raise QueryError(f"{place}: ids here are of type {release.items.id_type}, got {one!r:.80}", field=place)
    return str(one) if isinstance(one, str) else int(one)


def _possible(one: Id) -> bool:
    """Whether an item can have this id: others are nobody's."""
    return bool(one) and is_text(one) if isinstance(one, str) else -(2**63) <= one < 2**63


def _listed(place: str, given: object, kind: Any, expected: str) -> list[Any]:  # noqa: ANN401 - a type, or some
    if not isinstance(given, (Sequence, np.ndarray, pl.Series)) or isinstance(given, (str, bytes)):
        raise QueryError(f"{place}: expected a list, got {given!r:.80}", field=place)
    for number, one in enumerate(given):
        if not isinstance(one, kind):
            raise QueryError(f"{place}[{number}]: expected {expected}, got {one!r:.80}", field=f"{place}[{number}]")
    return list(given)
