"""What can take items out of an answer: histories that are excluded, and attributes that filters read."""

import numpy as np
import polars as pl

from vecall.data.frames import get_unnamed_column
from vecall.data.ragged import RaggedArray
from vecall.doctor.context import AnswerFacts
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.settings import IndexSettings

_MAX_USERS = 20_000
_MAX_VALUES = 10_000  # distinct texts of an attribute that are compared; with more it is a title or an id


def describe_answers(
    histories: RaggedArray, attributes: pl.DataFrame, n_items: int, settings: IndexSettings
) -> AnswerFacts:
    """Describe the answers to users with these histories.

    Args:
        histories: A list of seen rows per user.
        attributes: [N] rows with a column per attribute.
        n_items: N.
        settings: Of the index, for the number of items that is asked for.
    """
    with_history = np.flatnonzero(histories.lengths)
    sample = histories.take(with_history[evenly_spaced_rows(len(with_history), _MAX_USERS)])
    pairs = np.unique(sample.segment_ids * n_items + sample.values)
    seen_counts = np.bincount(pairs // n_items, minlength=len(sample)) if n_items else np.empty(0, dtype=np.int64)
    columns = {name: get_unnamed_column(attributes, name) for name in attributes.columns}
    return AnswerFacts(
        n_items=n_items,
        k=min(max(settings.ks), n_items),
        seen_counts=seen_counts,
        null_shares={name: cells.null_count() / max(len(cells), 1) for name, cells in columns.items()},
        blank_attributes=tuple(name for name, cells in columns.items() if _has_blank_variants(cells)),
    )


def _has_blank_variants(cells: pl.Series) -> bool:
    """Return whether a text column has values that differ in case or outer blanks alone."""
    if cells.dtype != pl.String:
        return False
    values = cells.drop_nulls().unique()
    return len(values) <= _MAX_VALUES and values.str.strip_chars().str.to_lowercase().n_unique() < len(values)
