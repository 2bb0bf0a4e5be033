"""What approximate indexes have of the exact one: the vectors that lie beside their structure."""

from typing import Any

from vecall.arrays import Rows, Scores, Vectors
from vecall.index.base import Hits
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex


class ApproximateIndex:
    """An approximate index over N stored vectors.

    Args:
        flat_index: where they are: a `faiss.IndexScalarQuantizer` that the index owns.
    """

    def __init__(self, flat_index: Any) -> None:  # noqa: ANN401 - an object of faiss
        self._exact_index = ExactIndex(flat_index)

    @property
    def size(self) -> int:
        """N, the number of vectors."""
        return self._exact_index.size

    @property
    def dim(self) -> int:
        """D, the dimension of a vector."""
        return self._exact_index.dim

    def search_exact(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None) -> Hits:
        """The k best rows among those `allowed`, exactly. See `vecall.index.exact.scan`."""
        return self._exact_index.search_exact(queries, k, allowed=allowed)

    def score(self, query: Vectors, rows: Rows) -> Scores:
        """[n] inner products of one query [D] with the stored vectors of some rows. See `Index.scores`."""
        return self._exact_index.score(query, rows)

    def get_vectors(self, rows: Rows) -> Vectors:
        """[len(rows), D] stored vectors, as float32. See `ExactIndex.vectors`."""
        return self._exact_index.get_vectors(rows)
