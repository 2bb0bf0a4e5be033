"""Data frames whose column names come from users.

Polars interprets some names, such as `*`, `^a$` and the empty one, as patterns in expressions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from vecall.arrays import Mask


def get_unnamed_column(frame: pl.DataFrame, name: str) -> pl.Series:
    """Return a column without its name, so that no expression on it takes the name for a pattern."""
    return frame.get_column(name).alias("")


def null_column(length: int, dtype: Any) -> pl.Series:  # noqa: ANN401 - Polars takes types and instances of them
    """Return a column of nulls."""
    return pl.repeat(None, length, dtype=dtype, eager=True)


def build_frame(columns: Mapping[str, pl.Series], height: int) -> pl.DataFrame:
    """Build a frame from columns of `height` cells each; without columns it still has that height."""
    return pl.DataFrame(dict(columns)) if columns else pl.DataFrame(height=height)


def select_columns(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """Return a frame with some of the columns, in the order of `names`."""
    return build_frame({name: frame.get_column(name) for name in names}, len(frame))


def is_empty_row(frame: pl.DataFrame) -> Mask:
    """Return a mask [n] of the rows in which every cell is null or an empty list."""
    is_empty = np.ones(len(frame), dtype=np.bool_)
    for name in frame.columns:
        cells = get_unnamed_column(frame, name)
        has_value = cells.is_not_null()
        if isinstance(cells.dtype, pl.List):
            has_value = has_value & (cells.list.len() > 0).fill_null(value=False)
        is_empty &= ~has_value.to_numpy()
    return is_empty
