"""Resolution of a query against a snapshot: ids become rows, history and features become one user vector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from vecall.arrays import Rows, Vectors
from vecall.data.frames import build_frame, get_unnamed_column, select_columns
from vecall.data.id_map import UNKNOWN_ROW, Id, Row
from vecall.data.ragged import RaggedArray
from vecall.data.request_features import describe_feature_error, to_feature_frame, to_plain_list
from vecall.errors import DataError, QueryError
from vecall.index.scan import MAX_QUERY_VALUE
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Fallback, Query, UnknownInputs
from vecall.release.encoder import OnnxEncoder
from vecall.release.release import Release

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class ResolvedQuery:
    """What to search for.

    Attributes:
        query_matrix: [1, D] user vector, the form that an index takes; None if popular items are to be returned.
        excluded_rows: Distinct rows of the snapshot that must not be returned, ascending; may include deleted items.
        fallback: What stands in for the stored user, as in `Recalled`: "popular" if there is no vector, "history" if
            the user is unknown and the vector comes from the history in the request; else None.
        unknown: Ids of the query that the release does not have.
        history: [L] rows of the snapshot that the user took, oldest first, all that are known; may include deleted
            items.
        user_features: Frame of one row with the user's features; None where nothing is known of them.
    """

    query_matrix: Vectors | None
    excluded_rows: Rows
    fallback: Fallback | None
    unknown: UnknownInputs
    history: Rows = field(default_factory=lambda: _NO_ROWS)
    user_features: pl.DataFrame | None = None


def resolve_query(query: Query, snapshot: Snapshot, *, needs_vector: bool = True) -> ResolvedQuery:
    """Resolve the ids of a query and compute the user's vector.

    Items of histories count with their current vectors; deleted ones still contribute to the user's vector.

    Args:
        query: The request.
        snapshot: What is searched.
        needs_vector: Whether a channel reads the user's vector; otherwise it is not computed.

    Raises:
        QueryError: An id is of the wrong type, a feature does not exist or has an invalid value, or the release has
            no towers and the query no vector.
    """
    release = snapshot.release
    user_row = _find_user_row(query, release)
    stored = (
        _NO_ROWS
        if user_row is None or release.users is None
        else snapshot.to_latest_rows(release.users.histories[user_row])
    )
    sent, unknown_history = _find_known_rows("history", query.history or (), snapshot)
    recent, unknown_recent = _find_known_rows("recent", query.recent or (), snapshot)
    exclude, unknown_exclude = _find_known_rows("exclude", query.exclude, snapshot)
    history = stored if query.history is None else sent
    history = np.concatenate([history, recent]) if len(recent) else history
    vector, features = _compute_user_vector(query, snapshot, user_row, history, needs_vector=needs_vector)
    excluded = [rows for rows in (exclude, *((stored, sent, recent) if query.exclude_seen else ())) if len(rows)]
    is_user_unknown = query.user_id is not None and user_row is None
    fallback: Fallback | None = None
    if needs_vector and vector is None:
        fallback = "popular"
    elif query.vector is None and is_user_unknown and len(history) and _reads_history(release, needs_vector):
        fallback = "history"
    return ResolvedQuery(
        query_matrix=vector,
        excluded_rows=np.unique(np.concatenate(excluded)) if excluded else _NO_ROWS,
        fallback=fallback,
        unknown=UnknownInputs(is_user_unknown, unknown_history + unknown_recent, unknown_exclude),
        history=history,
        user_features=features,
    )


def _find_user_row(query: Query, release: Release) -> Row | None:
    if query.user_id is None or release.users is None:
        return None
    try:
        return release.users.ids.to_row(query.user_id)
    except DataError as error:
        raise QueryError(f"user_id: {error}", field="user_id") from error


def _find_known_rows(field: str, ids: Sequence[Id], snapshot: Snapshot) -> tuple[Rows, int]:
    """Return the rows of the known ids, and the number of unknown ids."""
    if not len(ids):
        return _NO_ROWS, 0
    try:
        rows = snapshot.to_rows(ids)
    except DataError as error:
        raise QueryError(f"{field}: {error}", field=field) from error
    known_rows = rows[rows != UNKNOWN_ROW]
    return known_rows, len(rows) - len(known_rows)


def _select_history(history: Rows, encoder: OnnxEncoder) -> Rows:
    """Return the rows that the user tower reads, oldest first; none if it reads no history."""
    if encoder.state.distinct_history:
        history = RaggedArray(np.array([0, len(history)]), history).drop_repeats().values
    return history[max(0, len(history) - encoder.history_length) :]


def _reads_history(release: Release, needs_vector: bool) -> bool:
    """Return whether the history decides about the answer: for channels without vectors it does in any case."""
    return not needs_vector or (release.encoder is not None and release.encoder.history_length > 0)


def _compute_user_vector(
    query: Query, snapshot: Snapshot, user_row: Row | None, history: Rows, *, needs_vector: bool
) -> tuple[Vectors | None, pl.DataFrame | None]:
    """Return the user's vector and the user's features in a frame of one row, each None where there is none.

    The vector [1, D] is the query's or the user tower's; the tower needs a history or a feature to read.

    Args:
        query: The request.
        snapshot: What is searched.
        user_row: Row of the stored user; None if it is unknown.
        history: [L] rows that the user took, oldest first.
        needs_vector: Whether to compute the vector.
    """
    release, encoder = snapshot.release, snapshot.release.encoder
    if query.vector is None and encoder is None and needs_vector:
        raise QueryError("this release has no towers: give the user's `vector`", field="vector")
    features = _merge_user_features(query.user, release, user_row)
    if query.vector is not None:  # the features are still those that a ranker reads
        return _to_query_matrix(query.vector, release.vectors.dim), features
    if encoder is None or not needs_vector:
        return None, features
    history = _select_history(history, encoder)
    if not len(history) and (features is None or _is_blank(features)):
        return None, features
    vectors = snapshot.get_vectors(history)[None]  # [1, L, D]
    row = encoder.empty_user_features if features is None else features
    vector = encoder.encode_users(row, vectors, np.array([len(history)]))
    if not (np.abs(vector) <= MAX_QUERY_VALUE).all():
        raise QueryError(
            "the user tower has no finite vector for this user: give features in the range of those in training",
            field="user",
        )
    return vector, features


def _is_blank(features: pl.DataFrame) -> bool:
    """Return whether every feature of a one-row frame is null or an empty list."""
    return all(value is None or value == [] for value in features.row(0))


def _to_query_matrix(vector: object, dim: int) -> Vectors:
    """Check the query's vector and convert it to float32 [1, D]."""
    values = np.asarray(vector, dtype=np.float64)
    if values.shape != (dim,):
        raise QueryError(f"vector: expected {dim} numbers, got shape {list(values.shape)}", field="vector")
    is_in_range = np.abs(values) <= MAX_QUERY_VALUE  # beyond it a score could overflow
    if not is_in_range.all():
        raise QueryError(
            f"vector: expected finite numbers within ±{MAX_QUERY_VALUE:g}, got {values[~is_in_range][0]}",
            field="vector",
        )
    return values.astype(np.float32)[None]


def _merge_user_features(
    overrides: Mapping[str, object] | None, release: Release, user_row: Row | None
) -> pl.DataFrame | None:
    """Return the stored user's features, overridden by the query's, as a frame of one row; None if both are missing."""
    features = {} if release.encoder is None else release.encoder.state.users.features
    overrides = {name: to_plain_list(value) for name, value in (overrides or {}).items()}
    for name, value in overrides.items():
        if name not in features:
            raise QueryError(f"user.{name}: unknown feature; this release has {list(features)}", field=f"user.{name}")
        if (problem := describe_feature_error(value, features[name])) is not None:
            raise QueryError(f"user.{name}: {problem}", field=f"user.{name}")
    stored = None
    if features and user_row is not None and release.users is not None:
        stored = select_columns(release.users.features[int(user_row)], features)
    if not overrides:
        return stored
    if stored is None:
        return to_feature_frame([overrides], features)
    overriding = to_feature_frame([overrides], {name: features[name] for name in overrides})
    columns = {name: get_unnamed_column(overriding if name in overrides else stored, name) for name in features}
    return build_frame(columns, 1)
