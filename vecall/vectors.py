"""One's own vectors as a release: recall and filters without any training. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.columns import id_dtype
from vecall.data.vocabulary import Id, build_vocabulary
from vecall.errors import DataError
from vecall.index.settings import IndexSettings
from vecall.live.retention import check_declared
from vecall.release.build import Contents, check_attributes, write_contents
from vecall.release.store import Store
from vecall.schema import IdType

_CHECKED_AT_ONCE = 2**16  # vectors


def publish_vectors(
    store: str | Path,
    ids: Sequence[Id] | NDArray[Any] | pl.Series,
    vectors: NDArray[np.floating[Any]],
    *,
    attributes: pl.DataFrame | None = None,
    queries: NDArray[np.floating[Any]] | None = None,
    index: IndexSettings | None = None,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
) -> str:
    """Make a release of vectors that were trained elsewhere; items are compared by inner product.

    Args:
        store: the store's folder; made if there is none.
        ids: N distinct ids, all integers or all strings.
        vectors: [N, D] item vectors in the order of `ids`, kept in half precision. Where the ids ascend, an array of
            float16 is read in pieces and may be mapped from a file: tens of millions do not lie in memory twice.
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
        DataError: ids, vectors, queries and attributes do not go together.
        StoreError: the name is taken, the journal has no operation `journal_seq`, or the store cannot be written.
    """
    column, id_type = _id_column(ids)
    _check_together(column, vectors, queries)
    table = pl.DataFrame(height=len(column)) if attributes is None else attributes
    check_attributes(table, len(column))
    stored = vectors if vectors.dtype == np.float16 else vectors.astype(np.float32, copy=False)
    if not column.is_sorted():  # rows ascend with ids
        order = column.arg_sort().to_numpy()
        stored, table = stored[order], table[order]
    contents = Contents(
        items=build_vocabulary(column, id_type),
        vectors=stored,
        attributes=table,
        journal_seq=journal_seq,
        declared_seq=journal_seq,
    )
    asked = None if queries is None else np.ascontiguousarray(queries, dtype=np.float32)
    opened = Store.create(Path(store))
    check_declared(opened, id_type, journal_seq)
    with opened.draft(name) as draft:
        description = write_contents(draft.folder, contents, index or IndexSettings(), queries=asked)
        return draft.commit(description, activate=activate)


def _check_together(
    ids: pl.Series, vectors: NDArray[np.floating[Any]], queries: NDArray[np.floating[Any]] | None
) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise DataError(f"vectors must be [N, D] for {len(ids)} ids, got shape {list(vectors.shape)}")
    _check_finite(vectors, ids)
    if queries is not None and (queries.ndim != 2 or queries.shape[1] != vectors.shape[1]):
        raise DataError(f"queries must be [Q, {vectors.shape[1]}], got shape {list(queries.shape)}")
    if ids.n_unique() < len(ids):
        twice = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        raise DataError(f"ids must be distinct, but {twice} stand more than once")


def _check_finite(vectors: NDArray[np.floating[Any]], ids: pl.Series) -> None:
    bad = 0
    for start in range(0, len(vectors), _CHECKED_AT_ONCE):
        rows = np.flatnonzero(~np.isfinite(vectors[start : start + _CHECKED_AT_ONCE]).all(axis=1))
        if len(rows) and not bad:
            example = ids[start + int(rows[0])]
        bad += len(rows)
    if bad:
        raise DataError(f"vectors must be finite, but those of {bad} ids are not, such as {example!r}")


def _id_column(ids: Sequence[Id] | NDArray[Any] | pl.Series) -> tuple[pl.Series, IdType]:
    """The ids as a column, and their one type."""
    if isinstance(ids, pl.Series) and len(ids) and not ids.null_count():
        if ids.dtype.is_integer():
            return ids.cast(pl.Int64), "integer"
        if ids.dtype == pl.String:
            return ids, "string"
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not listed:
        raise DataError("there are no ids: a release has at least one item")
    id_type: IdType = "integer" if isinstance(listed[0], (int, np.integer)) else "string"
    wanted = (int, np.integer) if id_type == "integer" else (str,)
    for one in listed:
        if not isinstance(one, wanted) or isinstance(one, bool):
            raise DataError(f"ids must be all integers or all strings, got {listed[0]!r} and {one!r}")
    try:
        return pl.Series("id", listed, dtype=id_dtype(id_type)), id_type
    except (OverflowError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"integer ids must fit 64 bits: {error}") from error
