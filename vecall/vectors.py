"""One's own vectors as a release: recall and filters without any training. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.vocabulary import Id, build_vocabulary
from vecall.errors import DataError
from vecall.index.settings import IndexSettings
from vecall.release.build import Contents, check_attributes, write_contents
from vecall.release.store import Store
from vecall.schema import IdType


def publish_vectors(
    store: str | Path,
    ids: Sequence[Id] | NDArray[Any],
    vectors: NDArray[np.floating[Any]],
    *,
    attributes: pl.DataFrame | None = None,
    queries: NDArray[np.floating[Any]] | None = None,
    index: IndexSettings | None = None,
    name: str | None = None,
    activate: bool = True,
) -> str:
    """Make a release of vectors that were trained elsewhere; items are compared by inner product.

    Args:
        store: the store's folder; made if there is none.
        ids: N distinct ids, all integers or all strings.
        vectors: [N, D] item vectors in the order of `ids`.
        attributes: N rows in the same order: what `where` and ranking look at.
        queries: [Q, D] a sample of real user vectors, to find on them how wide to search.
        index: settings; None finds what is left out.
        name: of the release; None takes the time.
        activate: whether it becomes the current one.

    Returns:
        The release's name.

    Raises:
        DataError: ids, vectors, queries and attributes do not go together.
        StoreError: the name is taken, or the store cannot be written.
    """
    column, id_type = _id_column(ids)
    if vectors.ndim != 2 or len(vectors) != len(column):
        raise DataError(f"vectors must be [N, D] for {len(column)} ids, got shape {list(vectors.shape)}")
    if len(bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))):
        raise DataError(f"vectors must be finite, but those of {len(bad)} ids are not, such as {column[int(bad[0])]!r}")
    if queries is not None and (queries.ndim != 2 or queries.shape[1] != vectors.shape[1]):
        raise DataError(f"queries must be [Q, {vectors.shape[1]}], got shape {list(queries.shape)}")
    table = pl.DataFrame(height=len(column)) if attributes is None else attributes
    check_attributes(table, len(column))
    items = build_vocabulary(column, id_type)
    if len(items) < len(column):
        twice = column.filter(column.is_duplicated()).unique().head(3).to_list()
        raise DataError(f"ids must be distinct, but {twice} stand more than once")
    order = np.argsort(items.rows_of(column))  # rows ascend with ids
    contents = Contents(
        items=items,
        vectors=np.ascontiguousarray(vectors[order], dtype=np.float32),
        attributes=table[order],
    )
    asked = None if queries is None else np.ascontiguousarray(queries, dtype=np.float32)
    with Store.create(Path(store)).draft(name) as draft:
        description = write_contents(draft.folder, contents, index or IndexSettings(), queries=asked)
        return draft.commit(description, activate=activate)


def _id_column(ids: Sequence[Id] | NDArray[Any]) -> tuple[pl.Series, IdType]:
    """The ids as a column, and their one type."""
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if not listed:
        raise DataError("there are no ids: a release has at least one item")
    id_type: IdType = "integer" if isinstance(listed[0], (int, np.integer)) else "string"
    wanted = (int, np.integer) if id_type == "integer" else (str,)
    for one in listed:
        if not isinstance(one, wanted) or isinstance(one, bool):
            raise DataError(f"ids must be all integers or all strings, got {listed[0]!r} and {one!r}")
    try:
        return pl.Series("id", listed, dtype=pl.Int64 if id_type == "integer" else pl.String), id_type
    except (OverflowError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"integer ids must fit 64 bits: {error}") from error
