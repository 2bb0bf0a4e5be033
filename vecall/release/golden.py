"""Golden queries: stored inputs and the answers they must give; a release proves itself before it is activated."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.ragged import Sequences
from vecall.errors import ReleaseRefused
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Effort, Index
from vecall.release.atomic_io import read_array, read_table, write_array, write_table
from vecall.release.encoder import Encoder

TOLERANCE = 1e-3  # of a component; other processors round otherwise, another model is far beyond it
MOST = 256  # queries kept
DEPTH = 100  # exact rows kept of each

_VECTORS, _ROWS = "golden.vectors.npy", "golden.rows.npy"
_OFFSETS, _HISTORIES, _FIELDS = "golden.history_offsets.npy", "golden.history_rows.npy", "golden.fields.arrow"


@dataclass(frozen=True)
class UserInputs:
    """What the user tower was given.

    Attributes:
        histories: G lists of item rows, oldest first.
        fields: [G] rows with a column per user feature.
    """

    histories: Sequences
    fields: pl.DataFrame

    def encode(
        self, encoder: Encoder, vectors_of: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """[G, D] user vectors; histories are read as `vectors_of` gives their items, [n, D] for n rows."""
        histories, lengths = self.histories.last(encoder.history_length).padded(fill=0)  # [G, L]
        vectors = vectors_of(histories.ravel()).reshape(*histories.shape, encoder.dim)  # [G, L, D]
        return encoder.encode_users(self.fields, vectors, lengths)


@dataclass(frozen=True)
class Golden:
    """G queries and their answers.

    Attributes:
        vectors: [G, D] user vectors.
        rows: [G, up to 100] exact answers, best first.
        inputs: what the vectors were made from; None where a release has no towers.
    """

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64]
    inputs: UserInputs | None

    @classmethod
    def record(cls, index: Index, vectors: NDArray[np.float32], inputs: UserInputs | None) -> "Golden":
        """Answer [G, D] queries exactly."""
        return cls(vectors, index.search_exact(vectors, min(DEPTH, index.size)).rows, inputs)

    def save(self, folder: Path) -> None:
        """Write the files `golden.*`."""
        write_array(folder / _VECTORS, self.vectors)
        write_array(folder / _ROWS, self.rows)
        if self.inputs is not None:
            write_array(folder / _OFFSETS, self.inputs.histories.offsets)
            write_array(folder / _HISTORIES, self.inputs.histories.rows)
            write_table(folder / _FIELDS, self.inputs.fields)

    @classmethod
    def load(cls, folder: Path) -> "Golden | None":
        """Read them, once their sums were checked; None where a release has none."""
        if not (folder / _VECTORS).exists():
            return None
        inputs = None
        if (folder / _HISTORIES).exists():
            histories = Sequences(read_array(folder / _OFFSETS), read_array(folder / _HISTORIES))
            inputs = UserInputs(histories, read_table(folder / _FIELDS))
        return cls(read_array(folder / _VECTORS), read_array(folder / _ROWS), inputs)

    def ann_recall(self, index: Index, effort: Effort | None) -> float:
        """ANN recall of the stored answers."""
        found = index.search(self.vectors, self.rows.shape[1], effort=effort).rows
        return float(recall_per_query(index, self.vectors, found, self.rows).mean())

    def check(self, index: Index, encoder: Encoder | None, *, effort: Effort | None, floor: float) -> None:
        """Give the queries again and compare.

        Raises:
            ReleaseRefused: a vector is another one now, or the ANN recall is below the floor.
        """
        if self.inputs is not None and encoder is not None:
            error = float(np.abs(self.inputs.encode(encoder, index.vectors) - self.vectors).max())
            if not error <= TOLERANCE:
                raise ReleaseRefused(
                    f"golden queries: user vectors differ by {error:.2g} from those stored when the release was made "
                    f"(at most {TOLERANCE} is allowed): towers, encoders or ONNX Runtime are not what they were",
                    file=_VECTORS,
                )
        recall = self.ann_recall(index, effort)
        if recall < floor:
            raise ReleaseRefused(
                f"golden queries: ANN recall is {recall:.4f}, below the floor {floor:.4f} that the release was "
                "published with: the index does not answer as it did",
                file=_ROWS,
            )
