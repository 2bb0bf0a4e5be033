"""Both towers of a release on ONNX Runtime: the one way from fields and histories to vectors, offline and online."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.arrays import Rows, Vectors
from vecall.data.feature_encoder import EncodedFeatures, FeatureEncoder, FeatureEncoderState
from vecall.data.request_features import to_feature_frame
from vecall.errors import InvalidReleaseError
from vecall.release.atomic_io import read_array
from vecall.schema import CategoryFeature, Features, TagsFeature

QUERY_TOWER_FILE = "query_tower.onnx"
ITEM_TOWER_FILE = "item_tower.onnx"
ITEM_ID_VECTORS_FILE = "item_ids.npy"
ENCODERS_FILE = "encoders.json"

# Names of the towers' inputs beside the features, which are called `feature.NAME`.
HISTORY_INPUT, LENGTHS_INPUT, ID_VECTORS_INPUT, VECTORS_OUTPUT = "history", "lengths", "id_vectors", "vectors"
FEATURE_INPUT_PREFIX = "feature."


class EncoderState(BaseModel):
    """`encoders.json`: how fields become the towers' inputs.

    Attributes:
        dim: D.
        history_length: L, how many of the newest items are read; 0 where the user tower reads none.
        items: encoders of item features.
        users: encoders of user features.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dim: int
    history_length: int
    items: FeatureEncoderState
    users: FeatureEncoderState


class OnnxEncoder:
    """Fields and histories to vectors of length 1. Safe to call from several threads.

    Attributes:
        state: how fields become inputs.
        empty_user_features: one row, of a user of whom no field is known.
    """

    def __init__(self, directory: Path, *, threads: int = 1) -> None:
        """Open the towers in `folder`, whose checksums have been verified.

        Args:
            folder: a release.
            threads: of ONNX Runtime, for one call; 1 online, where requests run side by side.

        Raises:
            ReleaseRefused: a file is missing, or is not what its name says.
        """
        self.state = _read_state(directory / ENCODERS_FILE)
        self._item_feature_encoder, self._user_feature_encoder = (
            FeatureEncoder(self.state.items),
            FeatureEncoder(self.state.users),
        )
        self._item_tower = _open_session(directory / ITEM_TOWER_FILE, threads)
        self._query_tower = _open_session(directory / QUERY_TOWER_FILE, threads)
        self._query_input_names = {one.name for one in self._query_tower.get_inputs()}
        self.empty_user_features = to_feature_frame([{}], self.state.users.features)
        ids = directory / ITEM_ID_VECTORS_FILE
        self._item_id_vectors: Vectors | None = read_array(ids) if ids.exists() else None

    @property
    def dim(self) -> int:
        """D."""
        return self.state.dim

    @property
    def history_length(self) -> int:
        """L: how many of the newest items of a history are read."""
        return self.state.history_length

    def count_oov(self, user_features: Mapping[str, object]) -> tuple[int, int]:
        """Of categories and tags in user features by column: how many training never saw, and how many there are."""
        features: Features = {
            name: feature
            for name, feature in self.state.users.features.items()
            if name in user_features and isinstance(feature, CategoryFeature | TagsFeature)
        }
        return self._user_feature_encoder.count_oov(to_feature_frame([user_features], features))

    def encode_items(self, features: pl.DataFrame, rows: Rows) -> Vectors:
        """Item vectors.

        Args:
            features: B rows with a column per item feature, typed as tables are.
            rows: [B] rows of the items' own id vectors; -1 for an item that training did not know.

        Returns:
            [B, D] float32.
        """
        inputs = _to_onnx_inputs(self._item_feature_encoder.encode(features))
        if self._item_id_vectors is not None:
            inputs[ID_VECTORS_INPUT] = np.ascontiguousarray(
                self._item_id_vectors[rows]
            )  # -1 is the last row: the unknown item
        return _run_session(self._item_tower, inputs)

    def encode_users(self, features: pl.DataFrame, histories: Vectors, lengths: Rows) -> Vectors:
        """User vectors.

        Args:
            features: B rows with a column per user feature.
            histories: [B, L, D] vectors of the items taken, oldest first, padded at the end.
            lengths: [B] how many places of each history count.

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
        raise InvalidReleaseError(
            f"{path.name}: does not say how fields are encoded: {error}", file=path.name
        ) from error


def _open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        raise InvalidReleaseError(f"{path.name}: ONNX Runtime cannot open it: {error}", file=path.name) from error


def _to_onnx_inputs(encoded: EncodedFeatures) -> dict[str, NDArray[np.generic]]:
    return {FEATURE_INPUT_PREFIX + name: array for name, array in encoded.items()}


def _run_session(session: ort.InferenceSession, inputs: Mapping[str, NDArray[np.generic]]) -> Vectors:
    vectors: Vectors = session.run([VECTORS_OUTPUT], dict(inputs))[0]
    return vectors
