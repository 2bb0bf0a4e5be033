"""Frames whose columns users have named: Polars reads names such as `*`, `^a$` and the empty one as something else."""

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray


def get_unnamed_column(frame: pl.DataFrame, name: str) -> pl.Series:
    """A column of a frame, under no name: what is done to it cannot mistake its own name for a pattern."""
    return frame.get_column(name).alias("")


def build_frame(columns: Mapping[str, pl.Series], height: int) -> pl.DataFrame:
    """The frame of some columns by name, each of `height` cells; without any it has that many rows all the same."""
    return pl.DataFrame(dict(columns)) if columns else pl.DataFrame(height=height)


def select_columns(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """Some columns of a frame, in this order."""
    return build_frame({name: frame.get_column(name) for name in names}, len(frame))


def is_empty_row(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """[n] rows that say nothing at all: every cell is null or an empty list."""
    blank = np.ones(len(frame), dtype=np.bool_)
    for name in frame.columns:
        cells = get_unnamed_column(frame, name)
        says = cells.is_not_null()
        if isinstance(cells.dtype, pl.List):
            says = says & (cells.list.len() > 0).fill_null(value=False)
        blank &= ~says.to_numpy()
    return blank
