"""Features of the reference ranker: one function from columns of candidates to a matrix, in training and serving."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import repeat
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.data.frames import get_unnamed_column
from vecall.ranking.candidate_columns import USER_PREFIX, CandidateColumns, FrameColumns, Numbers
from vecall.ranking.numeric_columns import is_numeric

FeatureMatrix = NDArray[np.float32]
Transform = Literal["number", "log", "gap", "position", "length", "category"]

_COUNTS = ("item.popularity", "item.recent_popularity")
_MIN_VALUE_COUNT, _MAX_VALUES = 5, 200  # of a category: rarer values, and those beyond, count as one


class RankerFeature(BaseModel):
    """A column of the candidates and how it becomes a number; NaN where it is null.

    Attributes:
        column: Of the table of candidates.
        transform: "number": the value, days since 1970 of dates; "log": log(1 + value); "gap": the value minus the
            largest of the list; "position": number of larger values in the list; "length": of a list; "category": 0 for
            a value that is not in `values`, i + 1 for the i-th of them.
        values: The known values of a category.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    column: str
    transform: Transform
    values: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The column, and the transform unless it is "number"."""
        return self.column if self.transform == "number" else f"{self.column}:{self.transform}"

    def compute(self, candidates: CandidateColumns) -> Numbers | None:
        """Return [C] numbers for C candidates, or [1] if all have the same; None if there is no such column."""
        if self.transform == "length":
            return candidates.get_lengths(self.column)
        if self.transform == "category":
            texts = candidates.get_texts(self.column)
            return (
                None if texts is None else np.fromiter(map(self._codes.get, texts, repeat(0.0)), np.float64, len(texts))
            )
        numbers = candidates.get_numbers(self.column)
        if numbers is None or self.transform == "number":
            return numbers
        numbers = numbers.astype(np.float64)
        if self.transform == "log":
            return np.log1p(np.maximum(numbers, 0))
        return _subtract_maximum(numbers) if self.transform == "gap" else _count_larger(numbers)

    @cached_property
    def _codes(self) -> Mapping[str | None, float]:
        return {None: np.nan} | {value: float(code) for code, value in enumerate(self.values, start=1)}


def _subtract_maximum(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return numbers if np.isnan(numbers).all() else numbers - np.nanmax(numbers)


def _count_larger(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(-numbers)  # NaN comes last
    descending = numbers[order]
    starts = np.arange(len(numbers))  # of the equal numbers that each one is among
    starts[1:][descending[1:] == descending[:-1]] = 0
    counts = np.empty(len(numbers))
    counts[order] = np.maximum.accumulate(starts)
    counts[np.isnan(numbers)] = np.nan
    return counts


class RankerFeatures(BaseModel):
    """The features of a ranker, in the order of the columns of its matrix.

    Attributes:
        features: The F features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: tuple[RankerFeature, ...]

    @property
    def names(self) -> list[str]:
        """Name of each feature."""
        return [feature.name for feature in self.features]

    @property
    def category_positions(self) -> list[int]:
        """Positions of the features that are codes of categories."""
        return [i for i, feature in enumerate(self.features) if feature.transform == "category"]

    def build_matrix(
        self, candidates: CandidateColumns | pl.DataFrame, positions: Iterable[int] | None = None
    ) -> FeatureMatrix:
        """Return the features of C candidates of one query, [C, F]; NaN where a column is missing.

        Args:
            candidates: C candidates.
            positions: Of the features to compute; the others are NaN. None for all.

        Returns:
            The transpose of a contiguous array: what a feature is computed of is read once for all candidates.
        """
        columns = FrameColumns(candidates) if isinstance(candidates, pl.DataFrame) else candidates
        matrix = np.full((len(self.features), len(columns)), np.nan, dtype=np.float32)
        with np.errstate(over="ignore"):  # infinity is a number to the trees
            for position in range(len(self.features)) if positions is None else positions:
                # A channel that the request did not name has no column.
                if (numbers := self.features[position].compute(columns)) is not None:
                    matrix[position] = numbers
        return matrix.T


def select_features(
    candidates: pl.DataFrame,
    channels: Iterable[str],
    attributes: pl.DataFrame,
    user_features: pl.DataFrame,
    context: pl.DataFrame | None = None,
) -> RankerFeatures:
    """Select the features that the data have.

    Args:
        candidates: A table of candidates, whose columns are read, not its rows.
        channels: Those that recall asks.
        attributes: Attributes of all items, whose frequent values categories know.
        user_features: Features of all users, likewise.
        context: Context features of interactions, likewise; users have none of them. None without such.
    """
    features = _list_recall_features(channels)
    for name, dtype in candidates.schema.items():
        if name in _COUNTS:
            features += [RankerFeature(column=name, transform=transform) for transform in ("log", "position")]
        elif name.startswith(("item.", "history.")):
            features.append(RankerFeature(column=name, transform="number"))
        elif name.startswith(USER_PREFIX):
            column = name.removeprefix(USER_PREFIX)
            frame = user_features if context is None or column not in context.columns else context
            features += _list_value_features(name, dtype, get_unnamed_column(frame, column))
        elif name in attributes.columns:
            features += _list_value_features(name, dtype, get_unnamed_column(attributes, name))
    return RankerFeatures(features=tuple(features))


def _list_recall_features(channels: Iterable[str]) -> list[RankerFeature]:
    names = tuple(channels)
    features = [RankerFeature(column="rank", transform="number")]
    if len(names) > 1:  # else `score` is that of the channel, or of the popular items that replace its
        features += [RankerFeature(column="score", transform=transform) for transform in ("number", "gap")]
        features.append(RankerFeature(column="channels", transform="length"))
        features += [RankerFeature(column=f"{name}.rank", transform="number") for name in names]
    for name in names:
        features += [RankerFeature(column=f"{name}.score", transform=transform) for transform in ("number", "gap")]
    return features


def _list_value_features(name: str, dtype: pl.DataType, values: pl.Series) -> list[RankerFeature]:
    """Return the features of an attribute or a feature of users; none for a column that no feature is made of."""
    if is_numeric(dtype):
        return [RankerFeature(column=name, transform="number")]
    if isinstance(dtype, pl.List) and not dtype.inner.is_float():
        return [RankerFeature(column=name, transform="length")]
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)) and (known := _list_frequent_values(values)):
        return [RankerFeature(column=name, transform="category", values=known)]
    return []


def _list_frequent_values(values: pl.Series) -> tuple[str, ...]:
    """Return the most frequent values of at least 5 rows, ascending; none where all but a few rows have rarer ones."""
    counts = values.cast(pl.String).alias("value").drop_nulls().value_counts()
    frequent = counts.filter(pl.col("count") >= _MIN_VALUE_COUNT).sort(["count", "value"], descending=[True, False])
    return tuple(frequent["value"].head(_MAX_VALUES).sort().to_list())
