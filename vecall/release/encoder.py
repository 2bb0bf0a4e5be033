"""Both towers of a release on ONNX Runtime; publishing and serving encode with the same code."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.arrays import Rows, Vectors
from vecall.data.feature_encoder import (
    EncodedFeatures,
    FeatureEncoder,
    FeatureEncoderState,
    UnseenValueCount,
    to_tower_inputs,
)
from vecall.data.ragged import RaggedArray
from vecall.data.request_features import to_feature_frame
from vecall.errors import InvalidReleaseError
from vecall.release.file_io import map_array
from vecall.schema import CategoryFeature, Features, TagsFeature

QUERY_TOWER_FILE = "query_tower.onnx"
ITEM_TOWER_FILE = "item_tower.onnx"
ITEM_ID_VECTORS_FILE = "item_ids.npy"
ENCODERS_FILE = "encoders.json"

# Inputs and output of the ONNX graphs. The input of a feature is FEATURE_INPUT_PREFIX and the feature's name.
HISTORY_INPUT, LENGTHS_INPUT, ID_VECTORS_INPUT, VECTORS_OUTPUT = "history", "lengths", "id_vectors", "vectors"
FEATURE_INPUT_PREFIX = "feature."


class EncoderState(BaseModel):
    """Content of `encoders.json`: how raw fields become inputs of the towers.

    Attributes:
        dim: D, the dimension of item and user vectors.
        history_length: L, the number of newest items that the user tower reads; 0 if it reads no history.
        distinct_history: whether it reads an item once that is in a history several times.
        items: feature encoder of items.
        users: feature encoder of users.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dim: int
    history_length: int
    distinct_history: bool = False
    items: FeatureEncoderState
    users: FeatureEncoderState


class OnnxEncoder:
    """Encodes item and user features, and histories, to vectors. Thread-safe.

    Attributes:
        state: how raw fields become inputs of the towers.
        empty_user_features: one row with every user feature missing.
    """

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        """Load the towers of a release whose files have been verified.

        Args:
            directory: the release.
            threads: of ONNX Runtime per call; 1 when serving, where requests run in parallel.

        Raises:
            InvalidReleaseError: a file is missing or cannot be read.
        """
        self.state = _read_state(directory / ENCODERS_FILE)
        self._item_feature_encoder = FeatureEncoder(self.state.items)
        self._user_feature_encoder = FeatureEncoder(self.state.users)
        self._item_tower = _open_session(directory / ITEM_TOWER_FILE, threads)
        self._query_tower = _open_session(directory / QUERY_TOWER_FILE, threads)
        self._query_input_names = {graph_input.name for graph_input in self._query_tower.get_inputs()}
        self.empty_user_features = to_feature_frame([{}], self.state.users.features)
        id_vectors_path = directory / ITEM_ID_VECTORS_FILE
        self._item_id_vectors: Vectors | None = map_array(id_vectors_path) if id_vectors_path.exists() else None

    @property
    def dim(self) -> int:
        """D, the dimension of item and user vectors."""
        return self.state.dim

    @property
    def history_length(self) -> int:
        """L, the number of newest items that the user tower reads; 0 if it reads no history."""
        return self.state.history_length

    def select_history(self, histories: RaggedArray) -> RaggedArray:
        """Return the rows of histories, oldest first, that the user tower reads."""
        distinct = histories.drop_repeats() if self.state.distinct_history else histories
        return distinct.truncate_to_last(self.history_length)

    def count_unseen_values(self, user_features: Mapping[str, object]) -> UnseenValueCount:
        """Count the categories and tags of a user that training did not see.

        Args:
            user_features: raw values by column; values of other kinds of features are not counted.
        """
        features: Features = {
            name: feature
            for name, feature in self.state.users.features.items()
            if name in user_features and isinstance(feature, CategoryFeature | TagsFeature)
        }
        return self._user_feature_encoder.count_unseen_values(to_feature_frame([user_features], features))

    def encode_items(self, features: pl.DataFrame, rows: Rows) -> Vectors:
        """Encode items.

        Args:
            features: B rows with a column per item feature, typed as `vecall.data.casting` types tables.
            rows: [B] rows of the items in the release; -1 for a new item, which gets the unknown item's id vector.

        Returns:
            [B, D] float32.
        """
        inputs = _to_onnx_inputs(self._item_feature_encoder.encode(features))
        if self._item_id_vectors is not None:
            # [N + 1, D] -> [B, D]; row -1 is the last one, which belongs to the unknown item
            inputs[ID_VECTORS_INPUT] = np.ascontiguousarray(self._item_id_vectors[rows])
        return _run_session(self._item_tower, inputs)

    def encode_users(self, features: pl.DataFrame, histories: Vectors, lengths: Rows) -> Vectors:
        """Encode users.

        Args:
            features: B rows with a column per user feature.
            histories: [B, L, D] item vectors, oldest first, padded at the end.
            lengths: [B] number of items in each history; the rest is padding.

        Returns:
            [B, D] float32.
        """
        inputs = _to_onnx_inputs(self._user_feature_encoder.encode(features))
        if HISTORY_INPUT in self._query_input_names:
            inputs |= {HISTORY_INPUT: histories, LENGTHS_INPUT: lengths}
        return _run_session(self._query_tower, inputs)


def _read_state(path: Path) -> EncoderState:
    try:
        return EncoderState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidReleaseError(f"{path.name} is not a feature encoder state: {error}", file=path.name) from error


def _open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise InvalidReleaseError(f"{path.name} cannot be opened by ONNX Runtime: {error}", file=path.name) from error


def _to_onnx_inputs(encoded: EncodedFeatures) -> dict[str, NDArray[np.generic]]:
    return {FEATURE_INPUT_PREFIX + name: array for name, array in to_tower_inputs(encoded).items()}


def _run_session(session: ort.InferenceSession, inputs: Mapping[str, NDArray[np.generic]]) -> Vectors:
    vectors: Vectors = session.run([VECTORS_OUTPUT], dict(inputs))[0]
    return vectors
