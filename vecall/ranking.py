"""Ranking of recalled candidates into the final list: the interface of a ranker, and a reference ranker."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import polars as pl

from vecall.errors import VecallError


class Ranker(Protocol):
    """Scores candidates with more than the two towers know: crossed features, context, business rules."""

    def __call__(self, candidates: pl.DataFrame) -> Sequence[float] | pl.Series:
        """Return one finite score for each row of `Recaller.candidates`; larger is better."""


def rank(candidates: pl.DataFrame, ranker: Ranker, k: int) -> pl.DataFrame:
    """Return the k candidates that a ranker scores best.

    Args:
        candidates: C rows of `Recaller.candidates`.
        ranker: Scores the candidates.
        k: Number of rows to return, at least 1; fewer are returned only if C is smaller.

    Returns:
        The candidates' columns and `ranking_score`, by which the rows descend; ties keep the order of recall.

    Raises:
        VecallError: The ranker did not return a finite score for each candidate.
    """
    scores = np.asarray(ranker(candidates), dtype=np.float64)
    if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
        problem = "some not finite" if scores.shape == (len(candidates),) else f"shape {list(scores.shape)}"
        raise VecallError(f"ranker: expected a finite score for each of {len(candidates)} candidates, got {problem}")
    scored = candidates.with_columns(pl.Series("ranking_score", scores))
    return scored.sort("ranking_score", descending=True, maintain_order=True).head(k)


class WeightedSumRanker:
    """Reference ranker: a weighted sum of numeric columns, each min-max scaled to [0, 1] over the candidates.

    Args:
        weights: Weight of each column, such as `{"score": 1.0, "year": 0.2}`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:
        """Return [C] scores; a missing value counts as the column's minimum.

        Raises:
            VecallError: A column does not exist or is not numeric.
        """
        total = pl.Series("", np.zeros(len(candidates)))
        for name, weight in self._weights.items():
            if name not in candidates.columns or not candidates.schema[name].is_numeric():
                raise VecallError(f"{name!r} is not a numeric column of the candidates; they have {candidates.columns}")
            column = candidates[name].cast(pl.Float64)
            low, high = column.min(), column.max()
            span = (high - low) if isinstance(low, float) and isinstance(high, float) and high > low else 1.0
            total += weight * ((column - low) / span).fill_null(0.0)
        return total
