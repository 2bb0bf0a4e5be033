"""Features as they come to the arrays that the towers read; one code for training, publishing and serving."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.data.frames import column
from vecall.data.text import hashed_tokens
from vecall.schema import Category, Feature, Features, Numeric, Tags, Text, Vector

Array = NDArray[np.float32] | NDArray[np.int64]
Encoded = dict[str, Array]

MISSING = 0
NEVER_SEEN = 1
_FIRST_VALUE = 2
_CLIP = 10.0  # in standard deviations: one absurd number must not own the gradient
_MAX_MEASURED = 1e100  # larger ones stand for something else, and their squares would overflow


@dataclass(frozen=True)
class Shape:
    """What a tower must know of an encoded feature.

    Attributes:
        kind: "dense" is float32 [B, size]; "one" is int64 [B]; "bag" is int64 [B, T] padded with 0.
        size: numbers a row for dense; rows of the embedding table for one and bag.
    """

    kind: Literal["dense", "one", "bag"]
    size: int


class NumericState(BaseModel):
    """Fitted on the training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: float
    std: float


class ValuesState(BaseModel):
    """The values seen in training, in the order of their rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    values: tuple[str, ...]


class EncodersState(BaseModel):
    """`encoders.json`: what was declared and what was fitted, for one side's features."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: Features
    numbers: dict[str, NumericState] = {}
    values: dict[str, ValuesState] = {}


class Encoders:
    """Turns a frame with a column per feature, typed as `vecall.data.casting` types it, into arrays."""

    def __init__(self, state: EncodersState) -> None:
        self.state = state
        self._row_of = {
            name: {value: row for row, value in enumerate(fitted.values, _FIRST_VALUE)}
            for name, fitted in state.values.items()
        }

    @classmethod
    def fit(cls, features: Features, training_rows: pl.DataFrame) -> "Encoders":
        """Means, deviations and values of the training rows alone; nothing of validation or test is looked at."""
        numbers: dict[str, NumericState] = {}
        values: dict[str, ValuesState] = {}
        for name, feature in features.items():
            match feature:
                case Numeric():
                    numbers[name] = _fit_number(column(training_rows, name))
                case Category():
                    values[name] = _fit_values(column(training_rows, name))
                case Tags():
                    values[name] = _fit_values(column(training_rows, name).explode())
                case Vector() | Text():
                    pass
        return cls(EncodersState(features=features, numbers=numbers, values=values))

    @property
    def shapes(self) -> dict[str, Shape]:
        """What each feature looks like to a tower."""
        return {name: self._shape(name, feature) for name, feature in self.state.features.items()}

    def _shape(self, name: str, feature: Feature) -> Shape:
        match feature:
            case Numeric():
                return Shape("dense", 2)
            case Vector():
                return Shape("dense", feature.size)
            case Text():
                return Shape("bag", feature.buckets + 1)
            case Category() | Tags():
                kind: Literal["one", "bag"] = "one" if isinstance(feature, Category) else "bag"
                return Shape(kind, len(self._row_of[name]) + _FIRST_VALUE)

    def encode(self, frame: pl.DataFrame) -> Encoded:
        """Arrays by feature, for B rows: see `Shape`."""
        features = self.state.features
        return {name: self._encode(name, feature, column(frame, name)) for name, feature in features.items()}

    def count_unknown(self, frame: pl.DataFrame) -> tuple[int, int]:
        """How many categories and tags in some of the features' columns training never saw, and how many there are."""
        known = [
            value in self._row_of[name]
            for name in frame.columns
            if name in self._row_of
            for value in (
                column(frame, name).explode() if column(frame, name).dtype == pl.List else column(frame, name)
            ).drop_nulls()
        ]
        return len(known) - sum(known), len(known)

    def _encode(self, name: str, feature: Feature, cells: pl.Series) -> Array:
        match feature:
            case Numeric():
                return _encode_numbers(cells, self.state.numbers[name])
            case Category():
                row_of = self._row_of[name]
                rows = (MISSING if value is None else row_of.get(value, NEVER_SEEN) for value in cells)
                return np.fromiter(rows, dtype=np.int64, count=len(cells))
            case Tags():
                return _encode_tags(cells, self._row_of[name].get, feature.max_tags)
            case Vector():
                return _encode_vectors(cells, feature.size)
            case Text():
                return hashed_tokens(cells.to_list(), feature.buckets, feature.max_tokens)


def _fit_number(cells: pl.Series) -> NumericState:
    """Mean and deviation of the numbers that may be measurements; absurd ones are clipped when they are encoded."""
    numbers = cells.drop_nulls()
    usual = numbers.filter(numbers.abs() <= _MAX_MEASURED)
    mean, std = usual.mean(), usual.std()
    return NumericState(mean=cast("float", mean or 0.0), std=cast("float", std or 0.0) or 1.0)


def _fit_values(cells: pl.Series) -> ValuesState:
    return ValuesState(values=tuple(cells.drop_nulls().unique().sort().to_list()))


def _encode_numbers(cells: pl.Series, fitted: NumericState) -> NDArray[np.float32]:
    """[B, 2]: standardised number (0 where missing), and 1 where there is one."""
    numbers = cells.cast(pl.Float64).to_numpy().astype(np.float64)
    given = np.isfinite(numbers)
    with np.errstate(over="ignore"):  # an infinite one is clipped
        standard = (np.where(given, numbers, fitted.mean) - fitted.mean) / fitted.std
    return np.stack([np.clip(standard, -_CLIP, _CLIP), given], axis=1).astype(np.float32)


def _encode_tags(cells: pl.Series, row_of: Callable[[str], int | None], max_tags: int) -> NDArray[np.int64]:
    """[B, T] rows of the values, padded with 0; T is the most values of one row, at least 1.

    Values that training never saw are left out: nothing is known of them, and so the others speak at full strength.
    """
    read = [[] if values is None else list(values)[:max_tags] for values in cells.to_list()]
    lists = [[row for row in map(row_of, values) if row is not None] for values in read]
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
