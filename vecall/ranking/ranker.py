"""Ranking of recalled candidates into the final list: the interface of a ranker."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.errors import VecallError
from vecall.ranking.candidate_columns import CandidateColumns, FrameColumns

_DECLARATION = "candidate_columns"  # attribute of a ranker of one's own: names of the columns that it reads


class Ranker(Protocol):
    """Scores candidates with more than the two towers know: crossed features, context, business rules.

    A ranker may have an attribute `candidate_columns`, a sequence of names: its table has no other columns, and those
    of them that a request does not have are missing. The others need not be made, which takes most of the time.
    """

    def __call__(self, candidates: pl.DataFrame) -> Sequence[float] | pl.Series:
        """Return one finite score for each row of `Recaller.candidates`; larger is better."""


@runtime_checkable
class ColumnRanker(Protocol):
    """A ranker that reads columns as they are, without a table of them."""

    def score_columns(self, candidates: CandidateColumns) -> NDArray[np.float64]:
        """Return one finite score for each candidate; larger is better."""


@dataclass(frozen=True)
class NamedRanker:
    """A ranker, and the name by which answers tell that it ordered them.

    Attributes:
        name: Such as "lightgbm".
        ranker: The ranker.
    """

    name: str
    ranker: Ranker


def name_ranker(ranker: Ranker | NamedRanker) -> NamedRanker:
    """Return a ranker with a name: its attribute `name`, else that of the function or the class."""
    if isinstance(ranker, NamedRanker):
        return ranker
    name = getattr(ranker, "name", None) or getattr(ranker, "__name__", None) or type(ranker).__name__
    return NamedRanker(str(name), ranker)


def score_candidates(candidates: pl.DataFrame | CandidateColumns, ranker: Ranker) -> NDArray[np.float64]:
    """Return [C] the scores that a ranker gives to C candidates.

    Raises:
        VecallError: The ranker did not return a finite score for each candidate, or declares its columns by anything
            but names.
    """
    columns = FrameColumns(candidates) if isinstance(candidates, pl.DataFrame) else candidates
    if isinstance(ranker, ColumnRanker):
        scores = ranker.score_columns(columns)
    else:
        scores = np.asarray(ranker(columns.to_frame(_get_declared_columns(ranker))), dtype=np.float64)
    if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
        problem = "some not finite" if scores.shape == (len(candidates),) else f"shape {list(scores.shape)}"
        raise VecallError(f"ranker: expected a finite score for each of {len(candidates)} candidates, got {problem}")
    return scores


def _get_declared_columns(ranker: Ranker) -> list[str] | None:
    declared = getattr(ranker, _DECLARATION, None)
    if declared is None:
        return None
    is_list = isinstance(declared, Sequence) and not isinstance(declared, str)
    if not is_list or not all(isinstance(name, str) for name in declared):
        raise VecallError(
            f"ranker.{_DECLARATION}: expected a list of the names of columns, such as ['score', 'price'], got "
            f"{declared!r:.80}"
        )
    return list(declared)


def rank(candidates: pl.DataFrame, ranker: Ranker, k: int) -> pl.DataFrame:
    """Return the k candidates that a ranker scores best.

    Args:
        candidates: C rows of `Recaller.candidates`.
        ranker: Scores the candidates.
        k: Number of rows to return, at least 1; fewer are returned only if C is smaller.

    Returns:
        The candidates' columns and `ranking_score`, by which the rows descend; ties keep the order of recall.

    Raises:
        VecallError: As for `score_candidates`.
    """
    scores = score_candidates(candidates, ranker)
    scored = candidates.with_columns(pl.Series("ranking_score", scores))
    return scored.sort("ranking_score", descending=True, maintain_order=True).head(k)
