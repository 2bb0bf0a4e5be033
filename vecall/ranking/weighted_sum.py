"""A ranker without training: a weighted sum of columns of the candidates."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from vecall.errors import VecallError


class WeightedSumRanker:
    """Reference ranker: a weighted sum of numeric columns, each min-max scaled to [0, 1] over the candidates.

    Args:
        weights: Weight of each column, such as `{"score": 1.0, "year": 0.2}`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:
        """Return [C] scores; a missing or infinite value counts as the column's minimum.

        Raises:
            VecallError: A column does not exist or is not numeric.
        """
        total = pl.Series("", np.zeros(len(candidates)))
        for name, weight in self._weights.items():
            if name not in candidates.columns or not candidates.schema[name].is_numeric():
                raise VecallError(f"{name!r} is not a numeric column of the candidates; they have {candidates.columns}")
            column = candidates[name].cast(pl.Float64)
            column = pl.select(pl.when(column.is_finite()).then(column)).to_series()
            low, high = column.min(), column.max()
            span = (high - low) if isinstance(low, float) and isinstance(high, float) and high > low else 1.0
            total += weight * ((column - low) / span).fill_null(0.0)
        return total
