"""Encoding of feature columns into the arrays that the towers read, in training, publishing and serving alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.data.frames import get_unnamed_column
from vecall.data.text import hash_tokens
from vecall.schema import CategoryFeature, Feature, Features, NumericFeature, TagsFeature, TextFeature, VectorFeature

FeatureArray = NDArray[np.float32] | NDArray[np.int64]
EncodedFeatures = dict[str, FeatureArray]

# Embedding rows of a categorical feature.
MISSING = 0
OOV = 1  # out of vocabulary: a category that training did not see; unseen tags have no row and are dropped
_FIRST_VALUE_ROW = 2
_MAX_ABS_ZSCORE = 10.0  # clips outliers, so that a single absurd number does not dominate the gradient
_MAX_PLAUSIBLE_VALUE = 1e100  # larger numbers are no measurements, and their squares would overflow


@dataclass(frozen=True)
class FeatureSpec:
    """Type and size of an encoded feature.

    Attributes:
        kind: "dense" is float32 [B, size]; "categorical" is int64 [B]; "multi_value" is int64 [B, T], padded with 0.
        size: Width of a dense array; number of rows of the embedding table for the other kinds.
    """

    kind: Literal["dense", "categorical", "multi_value"]
    size: int


class UnseenValueCount(NamedTuple):
    """Number of values that training did not see.

    Attributes:
        unseen: Number of category and tags values that the fitted vocabularies lack.
        total: Number of all category and tags values; nulls are not counted.
    """

    unseen: int
    total: int


class NumericState(BaseModel):
    """Statistics of a numeric feature on the training rows.

    Attributes:
        mean: Mean.
        std: Sample standard deviation; 1 if it is 0 or undefined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float


class CategoryState(BaseModel):
    """Values of a category or tags feature on the training rows.

    Attributes:
        values: Canonical texts, ascending; the i-th has embedding row i + 2.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: tuple[str, ...]


class FeatureEncoderState(BaseModel):
    """Features of items or of users with their fitted states, as stored in `encoders.json`.

    Attributes:
        features: The features as declared in the schema.
        numeric: State of each numeric feature.
        categorical: State of each category and tags feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: Features
    numeric: dict[str, NumericState] = {}
    categorical: dict[str, CategoryState] = {}


class FeatureEncoder:
    """Encoder of frames with a column per feature, of the types that `cast_feature` returns.

    Args:
        state: Features and their fitted states.
    """

    def __init__(self, state: FeatureEncoderState) -> None:
        self.state = state
        self._row_by_value = {
            name: {value: row for row, value in enumerate(category_state.values, _FIRST_VALUE_ROW)}
            for name, category_state in state.categorical.items()
        }

    @classmethod
    def fit(cls, features: Features, training_rows: pl.DataFrame) -> "FeatureEncoder":
        """Fit an encoder.

        Args:
            features: The features.
            training_rows: Frame with a column per feature; must be rows known at training time: no row first seen in
                validation or test.
        """
        numeric: dict[str, NumericState] = {}
        categorical: dict[str, CategoryState] = {}
        for name, feature in features.items():
            match feature:
                case NumericFeature():
                    numeric[name] = _fit_numeric(get_unnamed_column(training_rows, name))
                case CategoryFeature():
                    categorical[name] = _fit_categories(get_unnamed_column(training_rows, name))
                case TagsFeature():
                    categorical[name] = _fit_categories(get_unnamed_column(training_rows, name).explode())
                case VectorFeature() | TextFeature():
                    pass
        return cls(FeatureEncoderState(features=features, numeric=numeric, categorical=categorical))

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """Spec of each encoded feature, by name."""
        return {name: self._build_spec(name, feature) for name, feature in self.state.features.items()}

    def _build_spec(self, name: str, feature: Feature) -> FeatureSpec:
        match feature:
            case NumericFeature():
                return FeatureSpec("dense", 2)
            case VectorFeature():
                return FeatureSpec("dense", feature.size)
            case TextFeature():
                return FeatureSpec("multi_value", feature.buckets + 1)
            case CategoryFeature() | TagsFeature():
                kind: Literal["categorical", "multi_value"] = (
                    "categorical" if isinstance(feature, CategoryFeature) else "multi_value"
                )
                return FeatureSpec(kind, len(self._row_by_value[name]) + _FIRST_VALUE_ROW)

    def encode(self, frame: pl.DataFrame) -> EncodedFeatures:
        """Encode B rows into an array per feature, see `FeatureSpec`."""
        features = self.state.features
        return {
            name: self._encode_feature(name, feature, get_unnamed_column(frame, name))
            for name, feature in features.items()
        }

    def count_unseen_values(self, frame: pl.DataFrame) -> UnseenValueCount:
        """Count the categories and tags that training did not see.

        Args:
            frame: Rows with the columns of some of the features.
        """
        unseen = total = 0
        for name in frame.columns:
            if name not in self._row_by_value:
                continue
            cells = get_unnamed_column(frame, name)
            values = (cells.explode() if cells.dtype == pl.List else cells).drop_nulls().to_list()
            total += len(values)
            unseen += sum(value not in self._row_by_value[name] for value in values)
        return UnseenValueCount(unseen, total)

    def _encode_feature(self, name: str, feature: Feature, cells: pl.Series) -> FeatureArray:
        match feature:
            case NumericFeature():
                return _encode_numeric(cells, self.state.numeric[name])
            case CategoryFeature():
                row_by_value = self._row_by_value[name]
                rows = (MISSING if value is None else row_by_value.get(value, OOV) for value in cells)
                return np.fromiter(rows, dtype=np.int64, count=len(cells))
            case TagsFeature():
                return _encode_tags(cells, self._row_by_value[name].get, feature.max_tags)
            case VectorFeature():
                return _encode_vectors(cells, feature.size)
            case TextFeature():
                return hash_tokens(cells.to_list(), feature.buckets, feature.max_tokens)


def _fit_numeric(cells: pl.Series) -> NumericState:
    """Fit on plausible numbers; the others are clipped when they are encoded."""
    numbers = cells.drop_nulls()
    plausible = numbers.filter(numbers.abs() <= _MAX_PLAUSIBLE_VALUE)
    mean, std = plausible.mean(), plausible.std()
    return NumericState(mean=cast("float", mean or 0.0), std=cast("float", std or 0.0) or 1.0)


def _fit_categories(cells: pl.Series) -> CategoryState:
    return CategoryState(values=tuple(cells.drop_nulls().unique().sort().to_list()))


def _encode_numeric(cells: pl.Series, state: NumericState) -> NDArray[np.float32]:
    """Return [B, 2]: the clipped z-score, 0 where missing, and an indicator that is 1 where there is a number."""
    numbers = cells.cast(pl.Float64).to_numpy().astype(np.float64)
    has_value = np.isfinite(numbers)
    with np.errstate(over="ignore"):  # infinite z-scores are clipped
        zscores = (np.where(has_value, numbers, state.mean) - state.mean) / state.std
    return np.stack([np.clip(zscores, -_MAX_ABS_ZSCORE, _MAX_ABS_ZSCORE), has_value], axis=1).astype(np.float32)


def _encode_tags(cells: pl.Series, get_row: Callable[[str], int | None], max_tags: int) -> NDArray[np.int64]:
    """Return [B, T] embedding rows of the tags, padded with 0; T is the largest number of tags, at least 1.

    Tags that training did not see are dropped: they have no embedding, and counting them would only shrink the sum of
    the others, which is divided by √n.
    """
    tag_lists = [[] if tags is None else list(tags)[:max_tags] for tags in cells.to_list()]
    row_lists = [[row for row in map(get_row, tags) if row is not None] for tags in tag_lists]
    table = np.zeros((len(row_lists), max(1, max(map(len, row_lists), default=0))), dtype=np.int64)
    for index, rows in enumerate(row_lists):
        table[index, : len(rows)] = rows
    return table


def _encode_vectors(cells: pl.Series, size: int) -> NDArray[np.float32]:
    """Return [B, size]; zeros where the vector is missing."""
    table = np.zeros((len(cells), size), dtype=np.float32)
    has_value = cells.is_not_null().to_numpy()
    if has_value.any():
        table[has_value] = cells.drop_nulls().list.to_array(size).to_numpy()
    return table
