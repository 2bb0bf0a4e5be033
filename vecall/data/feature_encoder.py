"""Features as they come to the arrays that the towers read; one code for training, publishing and serving."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.data.frames import get_unnamed_column
from vecall.data.text import hash_tokens
from vecall.schema import CategoryFeature, Feature, Features, NumericFeature, TagsFeature, TextFeature, VectorFeature

FeatureArray = NDArray[np.float32] | NDArray[np.int64]
EncodedFeatures = dict[str, FeatureArray]

MISSING = 0
OOV = 1
_FIRST_VALUE_ROW = 2
_MAX_ABS_ZSCORE = 10.0  # in standard deviations: one absurd number must not own the gradient
_MAX_PLAUSIBLE_VALUE = 1e100  # larger ones stand for something else, and their squares would overflow


@dataclass(frozen=True)
class FeatureSpec:
    """What a tower must know of an encoded feature.

    Attributes:
        kind: "dense" is float32 [B, size]; "categorical" is int64 [B]; "multi_value" is int64 [B, T] padded with 0.
        size: numbers a row for dense; rows of the embedding table for one and bag.
    """

    kind: Literal["dense", "categorical", "multi_value"]
    size: int


class NumericState(BaseModel):
    """Fitted on the training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float


class CategoryState(BaseModel):
    """The values seen in training, in the order of their rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: tuple[str, ...]


class FeatureEncoderState(BaseModel):
    """`encoders.json`: what was declared and what was fitted, for one side's features."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: Features
    numeric: dict[str, NumericState] = {}
    categorical: dict[str, CategoryState] = {}


class FeatureEncoder:
    """Turns a frame with a column per feature, typed as `vecall.data.casting` types it, into arrays."""

    def __init__(self, state: FeatureEncoderState) -> None:
        self.state = state
        self._row_by_value = {
            name: {value: row for row, value in enumerate(fitted.values, _FIRST_VALUE_ROW)}
            for name, fitted in state.categorical.items()
        }

    @classmethod
    def fit(cls, features: Features, training_rows: pl.DataFrame) -> "FeatureEncoder":
        """Means, deviations and values of the training rows alone; nothing of validation or test is looked at."""
        numbers: dict[str, NumericState] = {}
        values: dict[str, CategoryState] = {}
        for name, feature in features.items():
            match feature:
                case NumericFeature():
                    numbers[name] = _fit_numeric(get_unnamed_column(training_rows, name))
                case CategoryFeature():
                    values[name] = _fit_categories(get_unnamed_column(training_rows, name))
                case TagsFeature():
                    values[name] = _fit_categories(get_unnamed_column(training_rows, name).explode())
                case VectorFeature() | TextFeature():
                    pass
        return cls(FeatureEncoderState(features=features, numeric=numbers, categorical=values))

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """What each feature looks like to a tower."""
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
        """Arrays by feature, for B rows: see `Shape`."""
        features = self.state.features
        return {
            name: self._encode_feature(name, feature, get_unnamed_column(frame, name))
            for name, feature in features.items()
        }

    def count_oov(self, frame: pl.DataFrame) -> tuple[int, int]:
        """How many categories and tags in some of the features' columns training never saw, and how many there are."""
        known = [
            value in self._row_by_value[name]
            for name in frame.columns
            if name in self._row_by_value
            for value in (
                get_unnamed_column(frame, name).explode()
                if get_unnamed_column(frame, name).dtype == pl.List
                else get_unnamed_column(frame, name)
            ).drop_nulls()
        ]
        return len(known) - sum(known), len(known)

    def _encode_feature(self, name: str, feature: Feature, cells: pl.Series) -> FeatureArray:
        match feature:
            case NumericFeature():
                return _encode_numeric(cells, self.state.numeric[name])
            case CategoryFeature():
                row_of = self._row_by_value[name]
                rows = (MISSING if value is None else row_of.get(value, OOV) for value in cells)
                return np.fromiter(rows, dtype=np.int64, count=len(cells))
            case TagsFeature():
                return _encode_tags(cells, self._row_by_value[name].get, feature.max_tags)
            case VectorFeature():
                return _encode_vectors(cells, feature.size)
            case TextFeature():
                return hash_tokens(cells.to_list(), feature.buckets, feature.max_tokens)


def _fit_numeric(cells: pl.Series) -> NumericState:
    """Mean and deviation of the numbers that may be measurements; absurd ones are clipped when they are encoded."""
    numbers = cells.drop_nulls()
    usual = numbers.filter(numbers.abs() <= _MAX_PLAUSIBLE_VALUE)
    mean, std = usual.mean(), usual.std()
    return NumericState(mean=cast("float", mean or 0.0), std=cast("float", std or 0.0) or 1.0)


def _fit_categories(cells: pl.Series) -> CategoryState:
    return CategoryState(values=tuple(cells.drop_nulls().unique().sort().to_list()))


def _encode_numeric(cells: pl.Series, state: NumericState) -> NDArray[np.float32]:
    """[B, 2]: standardised number (0 where missing), and 1 where there is one."""
    numbers = cells.cast(pl.Float64).to_numpy().astype(np.float64)
    given = np.isfinite(numbers)
    with np.errstate(over="ignore"):  # an infinite one is clipped
        standard = (np.where(given, numbers, state.mean) - state.mean) / state.std
    return np.stack([np.clip(standard, -_MAX_ABS_ZSCORE, _MAX_ABS_ZSCORE), given], axis=1).astype(np.float32)


def _encode_tags(cells: pl.Series, get_row: Callable[[str], int | None], max_tags: int) -> NDArray[np.int64]:
    """[B, T] rows of the values, padded with 0; T is the most values of one row, at least 1.

    Values that training never saw are left out: nothing is known of them, and so the others speak at full strength.
    """
    read = [[] if values is None else list(values)[:max_tags] for values in cells.to_list()]
    lists = [[row for row in map(get_row, values) if row is not None] for values in read]
    table = np.zeros((len(lists), max(1, max(map(len, lists), default=0))), dtype=np.int64)
    for place, rows in enumerate(lists):
        table[place, : len(rows)] = rows
    return table


def _encode_vectors(cells: pl.Series, size: int) -> NDArray[np.float32]:
    """[B, size]; zeros where a row has none."""
    table = np.zeros((len(cells), size), dtype=np.float32)
    given = cells.is_not_null().to_numpy()
    if given.any():
        table[given] = cells.drop_nulls().list.to_array(size).to_numpy()
    return table
