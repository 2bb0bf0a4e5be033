"""Publish externally trained vectors as a release: recall and filters without training. Loads no torch."""

from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Vectors
from vecall.data.casting import cast_id
from vecall.data.id_map import Id, build_id_map
from vecall.errors import DataError
from vecall.index.scan import MAX_STORED_VALUE
from vecall.index.settings import IndexSettings
from vecall.live.pruning import check_operations_remain, check_tables_seq
from vecall.pipeline.arguments import check_queries, require_index_settings, to_array
from vecall.pipeline.catalogue_encoding import find_unstorable_rows
from vecall.release.regression import refuse_lost_items
from vecall.release.store import Store
from vecall.release.writer import ReleaseContents, check_attributes, write_release
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import IdType

_CHUNK_ROWS = 2**16  # vectors sorted at a time, to bound memory


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
    allow_worse: bool = False,
) -> str:
    """Publish externally trained vectors as a release; items are scored by inner product.

    Args:
        store: Directory of the store; created if necessary.
        ids: N distinct ids, all integers or all non-empty strings.
        vectors: [N, D] item vectors in the order of `ids`, as an array or a sequence; stored in half precision. If the
            ids ascend, a float16 array is read in chunks and may be memory-mapped: tens of millions of vectors are then
            not held in memory twice.
        attributes: N rows in the same order, for `where` and for ranking.
        queries: [Q, D] sample of real user vectors, on which the index is tuned.
        index: Index settings; None for the defaults. Parameters that are left out are tuned.
        name: Name of the release; None for a UTC timestamp.
        activate: Whether the release becomes the current one.
        journal_seq: Sequence number of the last operation of the store's journal that `ids` and `vectors` include.
            Later operations are replayed onto the release whenever it is opened.
        allow_worse: Whether the release may have less than half of the current release's items. With `activate` false,
            it may in any case, with a warning.

    Returns:
        The release's name.

    Raises:
        DataError: Ids, vectors, queries or attributes are invalid or do not match each other.
        ConfigError: `index` is not an `IndexSettings`.
        StoreError: The name is in use, the journal has no operation `journal_seq`, most of the current release's items
            are lost and `allow_worse` is false, or the store cannot be written.
    """
    check_not_forked()
    index_settings = require_index_settings(index)
    id_column, id_type = _to_id_column(ids)
    vector_array = to_array("vectors", vectors)
    query_array = None if queries is None else to_array("queries", queries)
    _check_compatible(id_column, vector_array, query_array)
    attribute_frame = pl.DataFrame(height=len(id_column)) if attributes is None else _require_frame(attributes)
    check_attributes(attribute_frame, len(id_column))
    contents = _build_contents(id_column, id_type, vector_array, attribute_frame, journal_seq)
    tuning_queries = None if query_array is None else np.ascontiguousarray(query_array, dtype=np.float32)
    target = Store.open_or_create(Path(store))
    check_tables_seq(target, id_type, journal_seq)
    refuse_lost_items(target, len(id_column), activate=activate, allow_worse=allow_worse)
    with target.create_draft(name) as draft:
        description = write_release(draft.directory, contents, index_settings, queries=tuning_queries, name=draft.name)
        check = partial(check_operations_remain, target, id_type, journal_seq)
        return draft.commit(description, activate=activate, check=check)


def _build_contents(
    id_column: pl.Series, id_type: IdType, vectors: NDArray[Any], attributes: pl.DataFrame, journal_seq: int
) -> ReleaseContents:
    """Sort ids, vectors and attributes by id: rows of a release ascend with the ids."""
    if id_column.is_sorted():
        stored = vectors if vectors.dtype == np.float16 else vectors.astype(np.float32, copy=False)
    else:
        order = id_column.arg_sort().to_numpy()
        stored, attributes = _take_stored(vectors, order), attributes[order]
    return ReleaseContents(
        item_ids=build_id_map(id_column, id_type),
        vectors=stored,
        attributes=attributes,
        journal_seq=journal_seq,
        tables_seq=journal_seq,
    )


def _take_stored(vectors: NDArray[Any], order: NDArray[np.integer[Any]]) -> Vectors | HalfVectors:
    """Return the vectors of rows `order` [N], float16 as they are and others as float32, with no second copy."""
    stored = np.empty(vectors.shape, dtype=np.float16 if vectors.dtype == np.float16 else np.float32)
    for start in range(0, len(order), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        stored[chunk] = vectors[order[chunk]]
    return stored


def _require_frame(attributes: Any) -> pl.DataFrame:  # noqa: ANN401 - input of any type, to be validated
    if isinstance(attributes, pl.DataFrame):
        return attributes
    raise DataError(
        f"attributes: expected a polars.DataFrame with a row per id, got {type(attributes).__name__}; convert it, "
        "for example with polars.from_pandas(frame) or polars.DataFrame(rows)"
    )


def _check_compatible(ids: pl.Series, vectors: NDArray[Any], queries: NDArray[Any] | None) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(f"vectors must be [N, D] with N = {len(ids)} ids, got shape {list(vectors.shape)}")
    _check_storable(vectors, ids)
    if queries is not None:
        check_queries(queries, vectors.shape[1])
    if ids.n_unique() < len(ids):
        duplicates = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        raise DataError(f"ids must be distinct, but some occur more than once, such as {duplicates}")


def _check_storable(vectors: NDArray[Any], ids: pl.Series) -> None:
    if len(rows := find_unstorable_rows(vectors)):
        raise DataError(
            f"vectors must be finite numbers within ±{MAX_STORED_VALUE:g}, the range of half precision, but those of "
            f"{len(rows)} ids are not, such as {ids[int(rows[0])]!r}: normalise the vectors or drop these items"
        )


def _to_id_column(ids: Any) -> tuple[pl.Series, IdType]:  # noqa: ANN401 - input of any type, to be validated
    """Convert ids to a column and determine their type.

    Raises:
        DataError: There are no ids, or they are not all integers or all non-empty strings.
    """
    column = ids if isinstance(ids, pl.Series) else _sequence_to_id_column(ids)
    if not len(column):
        raise DataError("ids are empty; a release needs at least one item")
    if not column.dtype.is_integer() and not isinstance(column.dtype, (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"ids must be all integers or all strings, got {column.dtype}")
    id_type: IdType = "integer" if column.dtype.is_integer() else "string"
    result = cast_id(column.alias(""), id_type)
    if not result.is_valid.all():
        index = int((~result.is_valid).arg_max() or 0)
        raise DataError(f"ids: expected {result.expected} of at most 64 bits, got {column[index]!r} at index {index}")
    return result.values, id_type


def _sequence_to_id_column(ids: Any) -> pl.Series:  # noqa: ANN401 - input of any type, to be validated
    # The elements of text are not ids, and sets and mappings have no order that the vectors could follow.
    if isinstance(ids, (str, bytes, Set, Mapping)):
        raise DataError(f"ids: expected a sequence of ids in the order of the vectors, got {ids!r:.80}")
    if np.ma.is_masked(ids):
        raise DataError("ids: some are masked; leave these items out of ids and vectors")
    try:
        id_list = np.asarray(ids).tolist() if hasattr(ids, "__array__") else list(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"ids: expected a sequence of ids, got {type(ids).__name__}: {error}") from error
    python_types = (int, np.integer) if id_list and isinstance(id_list[0], (int, np.integer)) else (str,)
    for item_id in id_list:
        if not isinstance(item_id, python_types) or isinstance(item_id, bool):
            raise DataError(f"ids must be all integers or all strings, got {id_list[0]!r:.80} and {item_id!r:.80}")
    try:
        return pl.Series(id_list, dtype=pl.Int64 if python_types != (str,) else pl.String)
    except (OverflowError, TypeError, UnicodeError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"ids: integers must fit in 64 bits, and strings must be valid Unicode: {reason}") from error
