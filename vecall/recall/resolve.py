"""A query read against a view: ids become rows, history and features become one user vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.frames import build_frame, get_unnamed_column, select_columns
from vecall.data.id_map import UNKNOWN_ROW, Id, Row
from vecall.data.request_features import describe_feature_error, to_feature_frame
from vecall.errors import DataError, QueryError
from vecall.index.base import MAX_QUERY_VALUE
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Fallback, Query, UnknownInputs
from vecall.release.release import Release

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class ResolvedQuery:
    """What is to be searched.

    Attributes:
        vector: [1, D]; None asks for what is popular.
        excluded_rows: distinct rows of the view that must not be returned, ascending; deleted items may be among them.
        fallback: what stood in where the user is not known.
        unknown: what of the query is not known.
    """

    vector: NDArray[np.float32] | None
    excluded_rows: Rows
    fallback: Fallback | None
    unknown: UnknownInputs


def resolve_query(query: Query, snapshot: Snapshot) -> ResolvedQuery:
    """Read a query. Items of histories count as they are now; deleted ones speak for the user still.

    Raises:
        QueryError: an id is of the wrong type, a feature does not exist or has a wrong value, or the release has
            nothing to make a vector from.
    """
    release = snapshot.release
    user = _find_user_row(query, release)
    stored = (
        _NO_ROWS if user is None or release.users is None else snapshot.to_latest_rows(release.users.histories[user])
    )
    given, unknown_history = _find_known_rows("history", query.history or (), snapshot)
    recent, unknown_recent = _find_known_rows("recent", query.recent or (), snapshot)
    exclude, unknown_exclude = _find_known_rows("exclude", query.exclude, snapshot)
    before = stored if query.history is None else given
    history = _truncate_history(np.concatenate([before, recent]) if len(recent) else before, release)
    vector = _compute_user_vector(query, snapshot, user, history)
    left_out = [part for part in (exclude, *((stored, given, recent) if query.exclude_seen else ())) if len(part)]
    unknown_user = query.user_id is not None and user is None
    fallback: Fallback | None = None
    if query.vector is None and vector is None:
        fallback = "popular"
    elif query.vector is None and unknown_user and len(history):
        fallback = "history"
    return ResolvedQuery(
        vector=vector,
        excluded_rows=np.unique(np.concatenate(left_out)) if left_out else _NO_ROWS,
        fallback=fallback,
        unknown=UnknownInputs(unknown_user, unknown_history + unknown_recent, unknown_exclude),
    )


def _find_user_row(query: Query, release: Release) -> Row | None:
    if query.user_id is None or release.users is None:
        return None
    try:
        return release.users.ids.to_row(query.user_id)
    except DataError as error:
        raise QueryError(f"user_id: {error}", field="user_id") from error


def _find_known_rows(field: str, ids: Sequence[Id], snapshot: Snapshot) -> tuple[Rows, int]:
    """Rows of the ids that are known, and how many are not."""
    if not len(ids):
        return _NO_ROWS, 0
    try:
        rows = snapshot.to_rows(ids)
    except DataError as error:
        raise QueryError(f"{field}: {error}", field=field) from error
    known = rows[rows != UNKNOWN_ROW]
    return known, len(rows) - len(known)


def _truncate_history(history: Rows, release: Release) -> Rows:
    """The newest of it, as far as the user tower reads; a tower that reads no history knows nobody by one."""
    length = 0 if release.encoder is None else release.encoder.history_length
    return history[max(0, len(history) - length) :]


def _compute_user_vector(
    query: Query, snapshot: Snapshot, user_row: Row | None, history: Rows
) -> NDArray[np.float32] | None:
    """[1, D] the given vector, or the user tower's; None where nothing is known of the user."""
    release = snapshot.release
    if query.vector is not None:
        return _validate_vector(query.vector, release.index.dim)
    encoder = release.encoder
    if encoder is None:
        raise QueryError("this release has no towers, so a query must bring its `vector`", field="vector")
    fields = _merge_user_features(query.user, release, user_row)
    if not len(history) and (fields is None or _is_blank(fields)):
        return None
    if fields is None:
        fields = encoder.empty_user_features
    vectors = snapshot.get_vectors(history)[None]  # [1, L, D]
    return encoder.encode_users(fields, vectors, np.array([len(history)]))


def _is_blank(fields: pl.DataFrame) -> bool:
    """Whether one row of features says nothing at all."""
    return all(value is None or value == [] for value in fields.row(0))


def _validate_vector(vector: object, dim: int) -> NDArray[np.float32]:
    asked = np.asarray(vector, dtype=np.float64)
    if asked.shape != (dim,):
        raise QueryError(f"vector: expected {dim} numbers, got shape {list(asked.shape)}", field="vector")
    if not (np.abs(asked) <= MAX_QUERY_VALUE).all():  # however it is searched, its scores must be finite
        raise QueryError(
            f"vector: expected finite numbers within ±{MAX_QUERY_VALUE:g}, got {asked[~(np.abs(asked) <= MAX_QUERY_VALUE)][0]}",
            field="vector",
        )
    return asked.astype(np.float32)[None]


def _merge_user_features(
    overrides: Mapping[str, object] | None, release: Release, user_row: Row | None
) -> pl.DataFrame | None:
    """One row of user features, given ones over stored ones; None where there are none at all."""
    features = {} if release.encoder is None else release.encoder.state.users.features
    for name, value in (overrides or {}).items():
        if name not in features:
            raise QueryError(f"user.{name}: no such feature; expected some of {list(features)}", field=f"user.{name}")
        if (wrong := describe_feature_error(value, features[name])) is not None:
            raise QueryError(f"user.{name}: {wrong}", field=f"user.{name}")
    stored = None
    if features and user_row is not None and release.users is not None:
        stored = select_columns(release.users.features[int(user_row)], features)
    if not overrides:
        return stored
    if stored is None:
        return to_feature_frame([overrides], features)
    over = to_feature_frame([overrides], {name: features[name] for name in overrides})
    return build_frame({name: get_unnamed_column(over if name in overrides else stored, name) for name in features}, 1)
