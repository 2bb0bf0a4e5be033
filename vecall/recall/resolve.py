"""A query read against a view: ids become rows, history and features become one user vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.frames import column, frame_from, select
from vecall.data.id_map import UNKNOWN, Id, Row
from vecall.data.request_features import frame_of, problem
from vecall.errors import DataError, QueryError
from vecall.index.base import MAX_QUERY
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Fallback, Query, Unknown
from vecall.release.release import Release

Rows = NDArray[np.int64]

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Ask:
    """What is to be searched.

    Attributes:
        vector: [1, D]; None asks for what is popular.
        excluded: distinct rows of the view that must not be returned, ascending; deleted items may be among them.
        fallback: what stood in where the user is not known.
        unknown: what of the query is not known.
    """

    vector: NDArray[np.float32] | None
    excluded: Rows
    fallback: Fallback | None
    unknown: Unknown


def understand(query: Query, view: Snapshot) -> Ask:
    """Read a query. Items of histories count as they are now; deleted ones speak for the user still.

    Raises:
        QueryError: an id is of the wrong type, a feature does not exist or has a wrong value, or the release has
            nothing to make a vector from.
    """
    release = view.release
    user = _user_row(query, release)
    stored = _NO_ROWS if user is None or release.users is None else view.current(release.users.histories[user])
    given, unknown_history = _known_rows("history", query.history or (), view)
    recent, unknown_recent = _known_rows("recent", query.recent or (), view)
    exclude, unknown_exclude = _known_rows("exclude", query.exclude, view)
    before = stored if query.history is None else given
    history = _as_read(np.concatenate([before, recent]) if len(recent) else before, release)
    vector = _vector(query, view, user, history)
    left_out = [part for part in (exclude, *((stored, given, recent) if query.exclude_seen else ())) if len(part)]
    unknown_user = query.user_id is not None and user is None
    fallback: Fallback | None = None
    if query.vector is None and vector is None:
        fallback = "popular"
    elif query.vector is None and unknown_user and len(history):
        fallback = "history"
    return Ask(
        vector=vector,
        excluded=np.unique(np.concatenate(left_out)) if left_out else _NO_ROWS,
        fallback=fallback,
        unknown=Unknown(unknown_user, unknown_history + unknown_recent, unknown_exclude),
    )


def _user_row(query: Query, release: Release) -> Row | None:
    if query.user_id is None or release.users is None:
        return None
    try:
        return release.users.ids.row(query.user_id)
    except DataError as error:
        raise QueryError(f"user_id: {error}", field="user_id") from error


def _known_rows(field: str, ids: Sequence[Id], view: Snapshot) -> tuple[Rows, int]:
    """Rows of the ids that are known, and how many are not."""
    if not len(ids):
        return _NO_ROWS, 0
    try:
        rows = view.rows(ids)
    except DataError as error:
        raise QueryError(f"{field}: {error}", field=field) from error
    known = rows[rows != UNKNOWN]
    return known, len(rows) - len(known)


def _as_read(history: Rows, release: Release) -> Rows:
    """The newest of it, as far as the user tower reads; a tower that reads no history knows nobody by one."""
    length = 0 if release.encoder is None else release.encoder.history_length
    return history[max(0, len(history) - length) :]


def _vector(query: Query, view: Snapshot, user: Row | None, history: Rows) -> NDArray[np.float32] | None:
    """[1, D] the given vector, or the user tower's; None where nothing is known of the user."""
    release = view.release
    if query.vector is not None:
        return _given_vector(query.vector, release.index.dim)
    encoder = release.encoder
    if encoder is None:
        raise QueryError("this release has no towers, so a query must bring its `vector`", field="vector")
    fields = _user_fields(query.user, release, user)
    if not len(history) and (fields is None or _is_blank(fields)):
        return None
    if fields is None:
        fields = encoder.no_user_fields
    vectors = view.vectors(history)[None]  # [1, L, D]
    return encoder.encode_users(fields, vectors, np.array([len(history)]))


def _is_blank(fields: pl.DataFrame) -> bool:
    """Whether one row of features says nothing at all."""
    return all(value is None or value == [] for value in fields.row(0))


def _given_vector(vector: object, dim: int) -> NDArray[np.float32]:
    asked = np.asarray(vector, dtype=np.float64)
    if asked.shape != (dim,):
        raise QueryError(f"vector: expected {dim} numbers, got shape {list(asked.shape)}", field="vector")
    if not (np.abs(asked) <= MAX_QUERY).all():  # however it is searched, its scores must be finite
        raise QueryError(
            f"vector: expected finite numbers within ±{MAX_QUERY:g}, got {asked[~(np.abs(asked) <= MAX_QUERY)][0]}",
            field="vector",
        )
    return asked.astype(np.float32)[None]


def _user_fields(given: Mapping[str, object] | None, release: Release, user: Row | None) -> pl.DataFrame | None:
    """One row of user features, given ones over stored ones; None where there are none at all."""
    features = {} if release.encoder is None else release.encoder.state.users.features
    for name, value in (given or {}).items():
        if name not in features:
            raise QueryError(f"user.{name}: no such feature; expected some of {list(features)}", field=f"user.{name}")
        if (wrong := problem(value, features[name])) is not None:
            raise QueryError(f"user.{name}: {wrong}", field=f"user.{name}")
    stored = None
    if features and user is not None and release.users is not None:
        stored = select(release.users.fields[int(user)], features)
    if not given:
        return stored
    if stored is None:
        return frame_of([given], features)
    over = frame_of([given], {name: features[name] for name in given})
    return frame_from({name: column(over if name in given else stored, name) for name in features}, 1)
