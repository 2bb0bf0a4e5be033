"""One's own vectors as a release: recall and filters without any training. Loads no torch."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.casting import cast_id
from vecall.data.id_map import Id, build_id_map
from vecall.errors import ConfigError, DataError
from vecall.index.base import MAX_QUERY_VALUE
from vecall.index.settings import IndexSettings
from vecall.live.pruning import check_tables_seq
from vecall.release.store import Store
from vecall.release.writer import ReleaseContents, check_attributes, write_release
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import IdType

_CHUNK_ROWS = 2**16  # vectors


def publish_vectors(
    store: str | Path,
    ids: Sequence[Id] | NDArray[Any] | pl.Series,
    vectors: NDArray[np.floating[Any]] | Sequence[Sequence[float]],
    *,
    attributes: pl.DataFrame | None = None,
    queries: NDArray[np.floating[Any]] | Sequence[Sequence[float]] | None = None,
    index: IndexSettings | None = None,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
) -> str:
    """Make a release of vectors that were trained elsewhere; items are compared by inner product.

    Args:
        store: the store's folder; made if there is none.
        ids: N distinct ids, all integers or all strings; none is empty.
        vectors: [N, D] item vectors in the order of `ids`, an array or what becomes one; kept in half precision. Where
            the ids ascend, an array of float16 is read in pieces and may be mapped from a file: tens of millions do not
            lie in memory twice.
        attributes: N rows in the same order: what `where` and ranking look at.
        queries: [Q, D] a sample of real user vectors, to find on them how wide to search.
        index: settings; None finds what is left out.
        name: of the release; None takes the time.
        activate: whether it becomes the current one.
        journal_seq: operations of the store's journal up to this one are in `ids` and `vectors` already; those above
            it are brought onto the release whenever it is opened.

    Returns:
        The release's name.

    Raises:
        DataError: ids, vectors, queries or attributes are not as said, or do not go together.
        ConfigError: `index` are no settings.
        StoreError: the name is taken, the journal has no operation `journal_seq`, or the store cannot be written.
    """
    check_not_forked()
    if index is not None and not isinstance(index, IndexSettings):
        raise ConfigError(f"index: expected IndexSettings, got {index!r:.80}; IndexSettings(**given) makes them")
    column, id_type = _to_id_column(ids)
    numbers = _to_array("vectors", vectors)
    asked = None if queries is None else _to_array("queries", queries)
    _check_compatible(column, numbers, asked)
    table = pl.DataFrame(height=len(column)) if attributes is None else _require_frame(attributes)
    check_attributes(table, len(column))
    contents = _build_contents(column, id_type, numbers, table, journal_seq)
    tuned_on = None if asked is None else np.ascontiguousarray(asked, dtype=np.float32)
    opened = Store.create(Path(store))
    check_tables_seq(opened, id_type, journal_seq)
    with opened.create_draft(name) as draft:
        description = write_release(draft.directory, contents, index or IndexSettings(), queries=tuned_on)
        return draft.commit(description, activate=activate)


def _build_contents(
    id_column: pl.Series, id_type: IdType, vectors: NDArray[Any], attributes: pl.DataFrame, journal_seq: int
) -> ReleaseContents:
    """All of it in the order of the ids."""
    stored = vectors if vectors.dtype == np.float16 else vectors.astype(np.float32, copy=False)
    if not id_column.is_sorted():
        order = id_column.arg_sort().to_numpy()
        stored, attributes = stored[order], attributes[order]
    return ReleaseContents(
        item_ids=build_id_map(id_column, id_type),
        vectors=stored,
        attributes=attributes,
        journal_seq=journal_seq,
        tables_seq=journal_seq,
    )


def _to_array(name: str, values: Any) -> NDArray[Any]:  # noqa: ANN401 - whatever callers have
    """Real numbers as an array, not copied if they are one.

    Raises:
        DataError: they are none.
    """
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name}: expected an array of numbers, got {type(values).__name__}: {error}") from error
    if np.ma.is_masked(values) or array.dtype.kind not in "fiu":
        held = "masked ones" if np.ma.is_masked(values) else f"{array.dtype}"
        raise DataError(f"{name}: expected an array of real numbers, got {held}")
    return array


def _require_frame(attributes: Any) -> pl.DataFrame:  # noqa: ANN401 - as above
    if isinstance(attributes, pl.DataFrame):
        return attributes
    raise DataError(
        f"attributes: expected a polars.DataFrame with a row per id, got {type(attributes).__name__}: make one of it, "
        "such as by polars.from_pandas(frame) or polars.DataFrame(rows)"
    )


def _check_compatible(ids: pl.Series, vectors: NDArray[Any], queries: NDArray[Any] | None) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(f"vectors must be [N, D] for {len(ids)} ids, got shape {list(vectors.shape)}")
    _check_finite(vectors, ids)
    if queries is not None and (queries.ndim != 2 or queries.shape[1] != vectors.shape[1]):
        raise DataError(f"queries must be [Q, {vectors.shape[1]}], got shape {list(queries.shape)}")
    if queries is not None and not (np.abs(queries) <= MAX_QUERY_VALUE).all():
        raise DataError(f"queries must be finite numbers within ±{MAX_QUERY_VALUE:g}, and some are not")
    if ids.n_unique() < len(ids):
        twice = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        raise DataError(f"ids must be distinct, but {twice} stand more than once")


def _check_finite(vectors: NDArray[Any], ids: pl.Series) -> None:
    bad = 0
    for start in range(0, len(vectors), _CHUNK_ROWS):
        rows = np.flatnonzero(~np.isfinite(vectors[start : start + _CHUNK_ROWS]).all(axis=1))
        if len(rows) and not bad:
            example = ids[start + int(rows[0])]
        bad += len(rows)
    if bad:
        raise DataError(f"vectors must be finite, but those of {bad} ids are not, such as {example!r}")


def _to_id_column(ids: Any) -> tuple[pl.Series, IdType]:  # noqa: ANN401 - as above
    """The ids as a column, and their one type."""
    column = ids if isinstance(ids, pl.Series) else _sequence_to_id_column(ids)
    if not len(column):
        raise DataError("there are no ids: a release has at least one item")
    if not column.dtype.is_integer() and not isinstance(column.dtype, (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"ids must be all integers or all strings, got {column.dtype}")
    id_type: IdType = "integer" if column.dtype.is_integer() else "string"
    cast = cast_id(column.alias(""), id_type)
    if not cast.is_valid.all():
        place = int((~cast.is_valid).arg_max() or 0)
        raise DataError(f"ids: expected {cast.expected} of at most 64 bits, got {column[place]!r} at {place}")
    return cast.values, id_type


def _sequence_to_id_column(ids: Any) -> pl.Series:  # noqa: ANN401 - as above
    if isinstance(
        ids, (str, bytes, Set, Mapping)
    ):  # whose parts are no ids, or have no order that vectors could follow
        raise DataError(f"ids: expected a sequence of ids in the order of the vectors, got {ids!r:.80}")
    try:
        listed = np.asarray(ids).tolist() if hasattr(ids, "__array__") else list(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"ids: expected a sequence of ids, got {type(ids).__name__}: {error}") from error
    kinds = (int, np.integer) if listed and isinstance(listed[0], (int, np.integer)) else (str,)
    for one in listed:
        if not isinstance(one, kinds) or isinstance(one, bool):
            raise DataError(f"ids must be all integers or all strings, got {listed[0]!r:.80} and {one!r:.80}")
    try:
        return pl.Series(listed, dtype=pl.Int64 if kinds != (str,) else pl.String)
    except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"ids: integers must fit 64 bits, and text must be valid Unicode: {error}") from error
