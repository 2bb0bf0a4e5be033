"""Columns of the table of candidates that compare each candidate with the newest items of the user's history."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Vectors
from vecall.data.frames import get_unnamed_column
from vecall.ranking.numeric_columns import is_numeric, to_numbers

MAX_HISTORY_ITEMS = 50  # the newest, which attributes are compared with
_MAX_COSINE_ITEMS = 10  # the newest, which vectors are compared with

_Numbers = NDArray[np.float64] | NDArray[np.float32]


@dataclass(frozen=True)
class ItemDescriptions:
    """What a release knows of n items.

    Attributes:
        attributes: n rows.
        vectors: [n, D].
    """

    attributes: pl.DataFrame
    vectors: Vectors


def build_history_columns(
    candidates: ItemDescriptions, newest: ItemDescriptions, history_length: int
) -> dict[str, pl.Series]:
    """Return float32 columns of C values each; null where an item has no value, or there is no history.

    Args:
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
          - `history.difference.ATTRIBUTE` of numbers, dates and datetimes: the candidate's value minus the mean of the
            newest items, in days for dates and datetimes.
    """
    n_candidates = len(candidates.attributes)
    columns: dict[str, _Numbers] = {"history.length": np.full(n_candidates, history_length, dtype=np.float32)}
    columns |= _compare_vectors(candidates.vectors, newest.vectors)
    for name in candidates.attributes.columns:
        values, history_values = (
            get_unnamed_column(frame, name) for frame in (candidates.attributes, newest.attributes)
        )
        if _has_tags(values.dtype):
            columns[f"history.share.{name}"] = _compute_tag_shares(values, history_values)
        elif _is_discrete(values.dtype):
            columns[f"history.share.{name}"] = _compute_shares(values, history_values)
        if is_numeric(values.dtype) and values.dtype != pl.Boolean:
            columns[f"history.difference.{name}"] = _compute_differences(values, history_values)
    return {
        name: pl.Series(numbers.astype(np.float32, copy=False), nan_to_null=True) for name, numbers in columns.items()
    }


def _is_discrete(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or isinstance(dtype, (pl.String, pl.Categorical, pl.Enum, pl.Boolean))


def _has_tags(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.DataType) and _is_discrete(dtype.inner)


def _compare_vectors(candidates: Vectors, newest: Vectors) -> dict[str, _Numbers]:
    names = ("history.cosine_last", "history.cosine_max", "history.cosine_mean")
    if not len(newest):
        return {name: np.full(len(candidates), np.nan, dtype=np.float32) for name in names}
    cosines = _normalize(candidates) @ _normalize(newest[-_MAX_COSINE_ITEMS:]).T  # [C, at most 10]
    return dict(zip(names, (cosines[:, -1], cosines.max(axis=1), cosines.mean(axis=1)), strict=True))


def _normalize(vectors: Vectors) -> Vectors:
    """Return [n, D] vectors of length 1; zeros stay zeros."""
    lengths = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    lengths[lengths == 0] = 1
    normalized: Vectors = vectors / lengths
    return normalized


def _compute_shares(values: pl.Series, history_values: pl.Series) -> _Numbers:
    # In Python: an expression of Polars starts its thread pool, which takes longer than all of this.
    known, candidate_values = [value for value in history_values.to_list() if value is not None], values.to_list()
    shares = _look_up(Counter(known), len(known), candidate_values)
    shares[[value is None for value in candidate_values]] = np.nan
    return shares


def _compute_tag_shares(values: pl.Series, history_values: pl.Series) -> _Numbers:
    """Return [C] means over a candidate's tags of the share of items with the tag, of those that have any tag."""
    tag_lists = [tags for tags in history_values.to_list() if tags]
    counts = Counter(tag for tags in tag_lists for tag in set(tags))
    candidate_lists = [tags or () for tags in values.to_list()]
    lengths = np.array([len(tags) for tags in candidate_lists], dtype=np.int64)
    shares = _look_up(counts, len(tag_lists), (tag for tags in candidate_lists for tag in tags))
    owners = np.repeat(np.arange(len(values)), lengths)
    means = np.bincount(owners, shares, minlength=len(values)) / np.maximum(lengths, 1)
    return np.where(lengths > 0, means, np.nan)


def _look_up(counts: Mapping[object, int], total: int, values: Iterable[object]) -> NDArray[np.float64]:
    """Return the count of each value divided by the total; NaN if the total is 0."""
    found = np.array([counts.get(value, 0) for value in values], dtype=np.float64)
    return found / total if total else np.full(len(found), np.nan)


def _compute_differences(values: pl.Series, history_values: pl.Series) -> _Numbers:
    known = to_numbers(history_values)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.full(len(values), np.nan)
    differences: _Numbers = to_numbers(values) - known.mean()
    return differences
