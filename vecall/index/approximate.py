"""Base class of the approximate indexes: what they delegate to an exact index over the same stored vectors."""

from typing import Any

from vecall.arrays import Rows, Scores, Vectors
from vecall.index.base import Hits
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex


class ApproximateIndex:
    """Approximate index over N stored vectors.

    Args:
        flat_index: `faiss.IndexScalarQuantizer` that holds the vectors; it is owned by the faiss index of the subclass.
    """

    def __init__(self, flat_index: Any) -> None:  # noqa: ANN401 - a faiss object
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
        """Return the k best allowed rows of each query, exactly. See `vecall.index.exact.scan`."""
        return self._exact_index.search_exact(queries, k, allowed=allowed)

    def score(self, query: Vectors, rows: Rows) -> Scores:
        """[n] inner products of one query [D] with the stored vectors of rows [n]. See `Index.score`."""
        return self._exact_index.score(query, rows)

    def get_vectors(self, rows: Rows) -> Vectors:
        """[n, D] stored vectors of rows [n], as float32. See `ExactIndex.get_vectors`."""
        return self._exact_index.get_vectors(rows)
