"""Golden queries: stored queries with expected results, checked before a release is activated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vecall.arrays import Rows, Vectors
from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams
from vecall.index.stored_vectors import StoredVectors
from vecall.release.encoder import OnnxEncoder
from vecall.release.file_io import map_array, read_table, write_array, write_table
from vecall.release.history_io import load_histories, save_histories

# Largest difference of a vector's component, relative to the length of the longest vector: CPUs round differently,
# another model differs by far more.
MAX_VECTOR_DIFFERENCE = 1e-3
GOLDEN_TOP_K = 100  # exact rows stored per query
_MAX_GATHERED_NUMBERS = 2**24  # of item vectors of histories, encoded at a time

_FILE_PREFIX = "golden."
_VECTORS_FILE, _EXACT_ROWS_FILE = "golden.vectors.npy", "golden.exact_rows.npy"
_FEATURES_FILE = "golden.features.arrow"


@dataclass(frozen=True)
class UserTowerInputs:
    """Inputs of the user tower for G users.

    Attributes:
        histories: G lists of item rows, oldest first.
        features: [G] rows with a column per user feature.
    """

    histories: RaggedArray
    features: pl.DataFrame

    def encode(self, encoder: OnnxEncoder, gather_vectors: Callable[[Rows], Vectors]) -> Vectors:
        """Encode the users, in blocks: long histories would fill the memory.

        Args:
            encoder: the towers; only the newest items that the user tower reads are used.
            gather_vectors: [n] item rows -> [n, D] item vectors.

        Returns:
            [G, D] user vectors.
        """
        histories = encoder.select_history(self.histories)
        numbers_per_user = encoder.dim * max(1, int(histories.lengths.max(initial=0)))
        block = max(1, _MAX_GATHERED_NUMBERS // numbers_per_user)
        blocks = []
        for start in range(0, max(1, len(histories)), block):
            users = np.arange(start, min(start + block, len(histories)))
            rows, lengths = histories.take(users).to_padded(fill_value=0)  # [B, L]
            vectors = gather_vectors(rows.ravel()).reshape(*rows.shape, encoder.dim)  # [B, L, D]
            blocks.append(encoder.encode_users(self.features.slice(start, block), vectors, lengths))
        return np.concatenate(blocks)


@dataclass(frozen=True)
class GoldenQueries:
    """G queries and their exact results.

    Attributes:
        vectors: [G, D] user vectors.
        exact_rows: [G, min(100, N)] rows of the exact search, best first.
        inputs: what `vectors` were encoded from; None where the release has no towers.
    """

    vectors: Vectors
    exact_rows: Rows
    inputs: UserTowerInputs | None

    @classmethod
    def record(cls, item_vectors: StoredVectors, vectors: Vectors, inputs: UserTowerInputs | None) -> "GoldenQueries":
        """Search the items exactly for [G, D] query vectors and keep the results."""
        return cls(vectors, item_vectors.search_exact(vectors, min(GOLDEN_TOP_K, item_vectors.size)).rows, inputs)

    def save(self, directory: Path) -> None:
        """Write the files `golden.*`."""
        write_array(directory / _VECTORS_FILE, self.vectors)
        write_array(directory / _EXACT_ROWS_FILE, self.exact_rows)
        if self.inputs is not None:
            save_histories(self.inputs.histories, directory, _FILE_PREFIX)
            write_table(directory / _FEATURES_FILE, self.inputs.features)

    @classmethod
    def load(cls, directory: Path) -> "GoldenQueries | None":
        """Read the files `golden.*` of a verified release; None where it has no golden queries.

        Raises:
            InvalidReleaseError: a file is missing or cannot be read.
        """
        if not (directory / _VECTORS_FILE).exists():
            return None
        histories = load_histories(directory, _FILE_PREFIX)
        inputs = None if histories is None else UserTowerInputs(histories, read_table(directory / _FEATURES_FILE))
        return cls(map_array(directory / _VECTORS_FILE), map_array(directory / _EXACT_ROWS_FILE), inputs)

    def measure_ann_recall(self, index: Index, search_params: SearchParams | None) -> float:
        """Compute the mean ANN recall of the index against `exact_rows`, in 0 .. 1."""
        found = index.search(self.vectors, self.exact_rows.shape[1], search_params=search_params).rows
        return float(recall_per_query(index.vectors, self.vectors, found, self.exact_rows).mean())

    def check_user_vectors(self, vectors: StoredVectors, encoder: OnnxEncoder | None) -> None:
        """Encode the queries again and compare them with what was stored.

        Args:
            vectors: of the release's items.
            encoder: the release's towers; None where it has none, then nothing is checked.

        Raises:
            InvalidReleaseError: a user vector differs from the stored one.
        """
        if self.inputs is None or encoder is None:
            return
        scale = float(np.linalg.norm(self.vectors, axis=1).max()) or 1.0
        error = float(np.abs(self.inputs.encode(encoder, vectors.get_vectors) - self.vectors).max()) / scale
        if not error <= MAX_VECTOR_DIFFERENCE:  # NaN is an error too
            raise InvalidReleaseError(
                f"golden queries: user vectors differ by {error:.2g} from those stored at publishing (allowed: "
                f"{MAX_VECTOR_DIFFERENCE:g}): the towers, the encoders, the item vectors or ONNX Runtime have "
                "changed; publish the release again",
                file=_VECTORS_FILE,
            )

    def check_ann_recall(self, index: Index, search_params: SearchParams | None, min_recall: float) -> None:
        """Search the queries again and compare with what was stored.

        Args:
            index: over the release's items.
            search_params: of an approximate index; None for an exact one.
            min_recall: the ANN recall that must be reached, in 0 .. 1.

        Raises:
            InvalidReleaseError: the ANN recall is below `min_recall`.
            EngineUnavailableError: the index lies on a server that does not answer.
        """
        recall = self.measure_ann_recall(index, search_params)
        if recall < min_recall:
            raise InvalidReleaseError(
                f"golden queries: ANN recall is {recall:.4f}, below the floor {min_recall:.4f} set at publishing: the "
                "index does not return the rows that it returned then; publish the release again",
                file=_EXACT_ROWS_FILE,
            )
