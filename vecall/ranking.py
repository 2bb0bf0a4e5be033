"""The hand-off to ranking: recalled candidates go in as a table, the final list comes out."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import polars as pl

from vecall.errors import VecallError


class Ranker(Protocol):
    """Scores candidates with whatever it knows beyond the two towers: crossed features, context, business rules."""

    def __call__(self, candidates: pl.DataFrame) -> Sequence[float] | pl.Series:
        """One score per row of `Recaller.candidates`; larger is better."""


def rank(candidates: pl.DataFrame, ranker: Ranker, k: int) -> pl.DataFrame:
    """The final K, best first.

    Args:
        candidates: C rows of `Recaller.candidates`.
        ranker: scores them.
        k: K, at least 1; fewer come back only where there are fewer candidates.

    Returns:
        The candidates' columns with `ranking_score`, by it descending; equal ones keep the order of recall.

    Raises:
        VecallError: the ranker did not give a finite score per candidate.
    """
    scores = np.asarray(ranker(candidates), dtype=np.float64)
    if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
        raise VecallError(f"a ranker gives a finite score per candidate: {len(candidates)}, got {list(scores.shape)}")
    table = candidates.with_columns(pl.Series("ranking_score", scores))
    return table.sort("ranking_score", descending=True, maintain_order=True).head(k)


class WeightedSumRanker:
    """The reference ranker: a weighted sum of numeric columns, each scaled to 0 .. 1 among the candidates."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """From column names to weights, such as `{"score": 1.0, "year": 0.2}`."""
        self._weights = dict(weights)

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:
        """[C] scores; a missing value counts as the least.

        Raises:
            VecallError: a column is not there, or holds no numbers.
        """
        total = pl.Series("", np.zeros(len(candidates)))
        for name, weight in self._weights.items():
            if name not in candidates.columns or not candidates.schema[name].is_numeric():
                raise VecallError(f"{name!r} is no numeric column of the candidates; they have {candidates.columns}")
            column = candidates[name].cast(pl.Float64)
            low, high = column.min(), column.max()
            span = (high - low) if isinstance(low, float) and isinstance(high, float) and high > low else 1.0
            total += weight * ((column - low) / span).fill_null(0.0)
        return total
