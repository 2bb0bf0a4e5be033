"""Columns of the table of candidates that compare each candidate with the newest items of the user's history."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from itertools import repeat
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Scores, Vectors
from vecall.ranking.cosines import compute_cosines
from vecall.ranking.numeric_columns import is_numeric, to_numbers
from vecall.ranking.tag_comparison import TagComparison

MAX_HISTORY_ITEMS = 50  # the newest, which attributes are compared with
_MAX_CLOSE_ITEMS = 10  # the newest, which vectors and tags are compared with one by one

_Numbers = NDArray[np.float64] | NDArray[np.float32]


class ItemDescriptions(Protocol):
    """What a release knows of n items, read when it is needed."""

    def __len__(self) -> int:
        """Return n."""

    @property
    def vectors(self) -> Vectors:
        """Vectors [n, D]."""

    def get_values(self, name: str) -> pl.Series:
        """Return the n values of an attribute, without its name."""


def list_history_columns(
    attributes: Mapping[str, pl.DataType], candidates: ItemDescriptions, newest: ItemDescriptions, history_length: int
) -> dict[str, Callable[[], Scores]]:
    """Return for each column what computes its C values; NaN where an item has no value, or there is no history.

    Args:
        attributes: Types of the attributes.
        candidates: C items.
        newest: The newest items of the history, at most `MAX_HISTORY_ITEMS`, the oldest first.
        history_length: Length of the whole history.

    Returns:
        The columns
          - `history.length`: `history_length`;
          - `history.cosine_last`, `history.cosine_max`, `history.cosine_mean`: cosine of the candidate's vector to that
            of the newest item, and the largest and the mean cosine to the newest 10;
          - `history.share.ATTRIBUTE` of text, booleans, integers: share of the newest items with the candidate's value,
            of those that have a value; of tags the mean of this over the candidate's tags;
          - `history.overlap_last.ATTRIBUTE`, `history.overlap_max.ATTRIBUTE`, `history.overlap_mean.ATTRIBUTE` of tags:
            Jaccard index of the candidate's tags and those of the newest item, and the largest and the mean index of
            the newest 10, of those that have any tag;
          - `history.difference.ATTRIBUTE` of numbers, dates and datetimes: the candidate's value minus the mean of the
            newest items, in days for dates and datetimes.
    """
    cosines = _Cosines(candidates, newest)
    columns: dict[str, Callable[[], Scores]] = {
        "history.length": lambda: np.full(len(candidates), history_length, dtype=np.float32),
        "history.cosine_last": lambda: cosines.summaries[0],
        "history.cosine_max": lambda: cosines.summaries[1],
        "history.cosine_mean": lambda: cosines.summaries[2],
    }
    for name, dtype in attributes.items():
        if _has_tags(dtype):
            columns |= _list_tag_columns(name, candidates, newest)
        elif _is_discrete(dtype):
            columns[f"history.share.{name}"] = partial(_compare, _compute_shares, name, candidates, newest)
        if is_numeric(dtype) and dtype != pl.Boolean:
            columns[f"history.difference.{name}"] = partial(_compare, _compute_differences, name, candidates, newest)
    return columns


def _list_tag_columns(
    name: str, candidates: ItemDescriptions, newest: ItemDescriptions
) -> dict[str, Callable[[], Scores]]:
    @cache
    def compare() -> TagComparison:
        return TagComparison(candidates.get_values(name), newest.get_values(name), _MAX_CLOSE_ITEMS)

    return {
        f"history.share.{name}": lambda: compare().compute_shares(),
        f"history.overlap_last.{name}": lambda: compare().overlaps[0],
        f"history.overlap_max.{name}": lambda: compare().overlaps[1],
        f"history.overlap_mean.{name}": lambda: compare().overlaps[2],
    }


def _compare(
    compute: Callable[[pl.Series, pl.Series], _Numbers],
    name: str,
    candidates: ItemDescriptions,
    newest: ItemDescriptions,
) -> Scores:
    return compute(candidates.get_values(name), newest.get_values(name)).astype(np.float32, copy=False)


def _is_discrete(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum, pl.Boolean))


def _has_tags(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.DataType) and _is_discrete(dtype.inner)


class _Cosines:
    """Cosines of candidates to the newest items of the history, computed once for all of their summaries."""

    def __init__(self, candidates: ItemDescriptions, newest: ItemDescriptions) -> None:
        self._candidates, self._newest = candidates, newest

    @cached_property
    def summaries(self) -> tuple[Scores, Scores, Scores]:
        """Cosine [C] to the newest item, the largest and the mean; NaN without a history."""
        if not len(self._newest):
            nothing = np.full(len(self._candidates), np.nan, dtype=np.float32)
            return nothing, nothing, nothing
        newest = self._newest.vectors[-_MAX_CLOSE_ITEMS:]
        cosines = compute_cosines(self._candidates.vectors, newest)  # [C, at most 10]
        return cosines[:, -1], cosines.max(axis=1), cosines.mean(axis=1)


def _compute_shares(values: pl.Series, history_values: pl.Series) -> _Numbers:
    # In Python: an expression of Polars starts its thread pool, which takes longer than all of this.
    known = [value for value in history_values.to_list() if value is not None]
    return _look_up({**Counter(known), None: np.nan}, len(known), values.to_list())


def _look_up(counts: Mapping[object, float], total: int, values: Sequence[object]) -> NDArray[np.float64]:
    """Return the count of each value divided by the total; NaN if the total is 0."""
    found = np.fromiter(map(counts.get, values, repeat(0)), dtype=np.float64, count=len(values))
    return found / total if total else np.full(len(found), np.nan)


def _compute_differences(values: pl.Series, history_values: pl.Series) -> _Numbers:
    known = to_numbers(history_values)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.full(len(values), np.nan)
    differences: _Numbers = to_numbers(values) - known.mean()
    return differences
