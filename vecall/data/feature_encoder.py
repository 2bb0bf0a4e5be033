"""Encoding of feature columns into the arrays that the towers read, in training, publishing and serving alike."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.data.frames import get_unnamed_column
from vecall.data.padding import pad_lists
from vecall.data.ragged import RaggedArray, offsets_from_lengths
from vecall.data.text import hash_tokens
from vecall.data.vocabulary import OOV, Vocabulary
from vecall.schema import CategoryFeature, Feature, Features, NumericFeature, TagsFeature, TextFeature, VectorFeature

FeatureArray = NDArray[np.float32] | NDArray[np.int32]
EncodedFeatures = dict[str, FeatureArray]
TowerInputs = dict[str, NDArray[np.float32] | NDArray[np.int64]]
_Number = TypeVar("_Number", np.float32, np.int32)

_CHUNK_ROWS = 2**16  # rows encoded at a time, to bound memory
_MIN_COLUMN_LISTS = 128  # fewer are encoded faster one by one
_MAX_ABS_ZSCORE = 10.0  # clips outliers, so that a single absurd number does not dominate the gradient
_MAX_PLAUSIBLE_VALUE = 1e100  # larger numbers are no measurements, and their squares would overflow


@dataclass(frozen=True)
class FeatureSpec:
    """Type and size of an encoded feature.

    Attributes:
        kind: "dense" is float32 [B, size]; "categorical" is int32 [B]; "multi_value" is int32 [B, T], padded with 0.
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
        self._vocabularies = {
            name: Vocabulary(category_state.values) for name, category_state in state.categorical.items()
        }

    @classmethod
    def fit(cls, features: Features, training_rows: pl.DataFrame) -> "FeatureEncoder":
        """Fit an encoder.

        Args:
            features: The features.
            training_rows: Frame with a column per feature; must be rows known at training time: no row first seen in
                validation or test. Columns of features that nothing is fitted for may be missing, see `is_fitted`.
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

    def combine(self, other: "FeatureEncoder") -> "FeatureEncoder":
        """Return the encoder of the features of both, which must have different names."""
        first, second = self.state, other.state
        return FeatureEncoder(
            FeatureEncoderState(
                features=first.features | second.features,
                numeric=first.numeric | second.numeric,
                categorical=first.categorical | second.categorical,
            )
        )

    def select(self, names: Iterable[str]) -> "FeatureEncoder":
        """Return the encoder of some of the features."""
        features = {name: self.state.features[name] for name in names}
        return FeatureEncoder(
            FeatureEncoderState(
                features=features,
                numeric={name: state for name, state in self.state.numeric.items() if name in features},
                categorical={name: state for name, state in self.state.categorical.items() if name in features},
            )
        )

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
                return FeatureSpec(kind, self._vocabularies[name].n_rows)

    def encode(self, frame: pl.DataFrame) -> EncodedFeatures:
        """Encode B rows, chunk by chunk, into an array per feature, see `FeatureSpec`."""
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
            if name not in self._vocabularies:
                continue
            cells = get_unnamed_column(frame, name)
            values = (cells.explode() if cells.dtype == pl.List else cells).drop_nulls()
            total += len(values)
            unseen += int((self._vocabularies[name].to_rows(values) == OOV).sum())
        return UnseenValueCount(unseen, total)

    def _encode_feature(self, name: str, feature: Feature, cells: pl.Series) -> FeatureArray:
        match feature:
            case NumericFeature():
                state = self.state.numeric[name]
                return _encode_chunks(cells, lambda chunk: _encode_numeric(chunk, state))
            case CategoryFeature():
                return _encode_chunks(cells, self._vocabularies[name].to_rows)
            case TagsFeature():
                vocabulary, max_tags = self._vocabularies[name], feature.max_tags
                return pad_lists(cells, lambda chunk: _encode_tags(chunk, vocabulary, max_tags))
            case VectorFeature():
                size = feature.size
                return _encode_chunks(cells, lambda chunk: _encode_vectors(chunk, size))
            case TextFeature():
                buckets, max_tokens = feature.buckets, feature.max_tokens
                return pad_lists(cells, lambda chunk: hash_tokens(chunk, buckets, max_tokens))


def to_tower_inputs(encoded: EncodedFeatures) -> TowerInputs:
    """Convert encoded features of a batch to the types that towers read, in training of one's own and in ONNX: int64.

    In memory, features of all rows are int32, which is half as large.
    """
    return {
        name: array if array.dtype == np.float32 else array.astype(np.int64)  # type: ignore[misc]  # float32 stays
        for name, array in encoded.items()
    }


def is_fitted(feature: Feature) -> bool:
    """Return whether `FeatureEncoder.fit` reads the column of a feature."""
    return isinstance(feature, NumericFeature | CategoryFeature | TagsFeature)


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


def _encode_tags(cells: pl.Series, vocabulary: Vocabulary, max_tags: int) -> RaggedArray:
    """Return B lists of embedding rows of the first `max_tags` tags.

    Tags that training did not see are dropped: they have no embedding, and counting them would only shrink the sum of
    the others, which is divided by √n.
    """
    if len(cells) < _MIN_COLUMN_LISTS:
        tag_lists = [tags[:max_tags] if tags else () for tags in cells.to_list()]
        row_lists = [[row for tag in tags if (row := vocabulary.to_row(tag)) != OOV] for tags in tag_lists]
        return RaggedArray.from_lists(row_lists)
    lists = cells.list.head(max_tags).list.drop_nulls()
    rows = vocabulary.to_rows(lists.explode().drop_nulls())  # an empty list becomes a null
    is_known = rows != OOV
    ends = offsets_from_lengths(lists.list.len().fill_null(0).to_numpy())
    return RaggedArray(offsets_from_lengths(is_known)[ends], rows[is_known])


def _encode_vectors(cells: pl.Series, size: int) -> NDArray[np.float32]:
    """Return [B, size]; zeros where the vector is missing."""
    table = np.zeros((len(cells), size), dtype=np.float32)
    has_value = cells.is_not_null().to_numpy()
    if has_value.any():
        table[has_value] = cells.drop_nulls().list.to_array(size).to_numpy()
    return table


def _encode_chunks(cells: pl.Series, encode: Callable[[pl.Series], NDArray[_Number]]) -> NDArray[_Number]:
    """Encode B cells, chunk by chunk, to [B, ...]; `encode` takes n cells to [n, ...]."""
    first: NDArray[_Number] = encode(cells.head(_CHUNK_ROWS))
    if len(cells) <= _CHUNK_ROWS:
        return first
    encoded = np.empty((len(cells), *first.shape[1:]), dtype=first.dtype)
    encoded[:_CHUNK_ROWS] = first
    for start in range(_CHUNK_ROWS, len(cells), _CHUNK_ROWS):
        encoded[start : start + _CHUNK_ROWS] = encode(cells.slice(start, _CHUNK_ROWS))
    return encoded
