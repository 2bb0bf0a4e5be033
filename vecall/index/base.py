"""What every index over item vectors offers, and the order that answers come in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Hits:
    """The answer to a batch of queries, best first: score descending, then row ascending.

    Attributes:
        rows: [B, k] rows of the index. A place without an answer holds -1.
        scores: [B, k] inner products with the stored vectors; -inf where the row is -1.
    """

    rows: Rows
    scores: Scores


class Index(Protocol):
    """Nearest neighbours by inner product over N item vectors of D dimensions, stored in half precision."""

    @property
    def size(self) -> int:
        """N, the number of vectors."""

    @property
    def dim(self) -> int:
        """D, the dimension of a vector."""

    def search(self, queries: Vectors, k: int, *, effort: int | None = None) -> Hits:
        """The k best rows for each query.

        Args:
            queries: [B, D], finite.
            k: 1 <= k; more than N gives N answers and places with row -1.
            effort: how wide to search; an approximate index answers better and slower with more.
                None is the index's own default. An exact index ignores it.
        """

    def search_exact(self, queries: Vectors, k: int, *, allowed: Mask | None = None) -> Hits:
        """As `search`, but exact over the stored vectors, and over the rows that `allowed` [N] marks."""

    def vectors(self, rows: Rows) -> Vectors:
        """[len(rows), D] stored vectors, as float32."""

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.files.load`."""
