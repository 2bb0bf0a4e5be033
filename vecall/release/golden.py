"""Golden queries: stored inputs and the answers they must give; a release proves itself before it is activated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.release.atomic_io import read_array, read_table, write_array, write_table
from vecall.release.encoder import OnnxEncoder

MAX_VECTOR_DIFFERENCE = 1e-3  # of a component; other processors round otherwise, another model is far beyond it
MAX_GOLDEN_QUERIES = 256  # queries kept
GOLDEN_TOP_K = 100  # exact rows kept of each

_VECTORS_FILE, _EXACT_ROWS_FILE = "golden.vectors.npy", "golden.rows.npy"
_HISTORY_OFFSETS_FILE, _HISTORY_ROWS_FILE, _FEATURES_FILE = (
    "golden.history_offsets.npy",
    "golden.history_rows.npy",
    "golden.fields.arrow",
)


@dataclass(frozen=True)
class UserTowerInputs:
    """What the user tower was given.

    Attributes:
        histories: G lists of item rows, oldest first.
        features: [G] rows with a column per user feature.
    """

    histories: RaggedArray
    features: pl.DataFrame

    def encode(
        self, encoder: OnnxEncoder, gather_vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """[G, D] user vectors; histories are read as `gather_vectors` gives their items, [n, D] for n rows."""
        histories, lengths = self.histories.take_last(encoder.history_length).to_padded(fill_value=0)  # [G, L]
        vectors = gather_vectors(histories.ravel()).reshape(*histories.shape, encoder.dim)  # [G, L, D]
        return encoder.encode_users(self.features, vectors, lengths)


@dataclass(frozen=True)
class GoldenQueries:
    """G queries and their answers.

    Attributes:
        vectors: [G, D] user vectors.
        exact_rows: [G, up to 100] exact answers, best first.
        inputs: what the vectors were made from; None where a release has no towers.
    """

    vectors: NDArray[np.float32]
    exact_rows: NDArray[np.int64]
    inputs: UserTowerInputs | None

    @classmethod
    def record(cls, index: Index, vectors: NDArray[np.float32], inputs: UserTowerInputs | None) -> "GoldenQueries":
        """Answer [G, D] queries exactly."""
        return cls(vectors, index.search_exact(vectors, min(GOLDEN_TOP_K, index.size)).rows, inputs)

    def save(self, directory: Path) -> None:
        """Write the files `golden.*`."""
        write_array(directory / _VECTORS_FILE, self.vectors)
        write_array(directory / _EXACT_ROWS_FILE, self.exact_rows)
        if self.inputs is not None:
            write_array(directory / _HISTORY_OFFSETS_FILE, self.inputs.histories.offsets)
            write_array(directory / _HISTORY_ROWS_FILE, self.inputs.histories.values)
            write_table(directory / _FEATURES_FILE, self.inputs.features)

    @classmethod
    def load(cls, directory: Path) -> "GoldenQueries | None":
        """Read them, once their sums were checked; None where a release has none."""
        if not (directory / _VECTORS_FILE).exists():
            return None
        inputs = None
        if (directory / _HISTORY_ROWS_FILE).exists():
            histories = RaggedArray(
                read_array(directory / _HISTORY_OFFSETS_FILE), read_array(directory / _HISTORY_ROWS_FILE)
            )
            inputs = UserTowerInputs(histories, read_table(directory / _FEATURES_FILE))
        return cls(read_array(directory / _VECTORS_FILE), read_array(directory / _EXACT_ROWS_FILE), inputs)

    def measure_ann_recall(self, index: Index, search_params: SearchParams | None) -> float:
        """ANN recall of the stored answers."""
        found = index.search(self.vectors, self.exact_rows.shape[1], search_params=search_params).rows
        return float(recall_per_query(index, self.vectors, found, self.exact_rows).mean())

    def check(
        self, index: Index, encoder: OnnxEncoder | None, *, search_params: SearchParams | None, min_recall: float
    ) -> None:
        """Give the queries again and compare.

        Raises:
            ReleaseRefused: a vector is another one now, or the ANN recall is below the floor.
        """
        if self.inputs is not None and encoder is not None:
            error = float(np.abs(self.inputs.encode(encoder, index.get_vectors) - self.vectors).max())
            if not error <= MAX_VECTOR_DIFFERENCE:
                raise InvalidReleaseError(
                    f"golden queries: user vectors differ by {error:.2g} from those stored when the release was made "
                    f"(at most {MAX_VECTOR_DIFFERENCE} is allowed): towers, encoders or ONNX Runtime are not what they were",
                    file=_VECTORS_FILE,
                )
        recall = self.measure_ann_recall(index, search_params)
        if recall < min_recall:
            raise InvalidReleaseError(
                f"golden queries: ANN recall is {recall:.4f}, below the floor {min_recall:.4f} that the release was "
                "published with: the index does not answer as it did",
                file=_EXACT_ROWS_FILE,
            )
