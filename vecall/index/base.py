"""What every index over item vectors offers, and the order that answers come in."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from vecall.arrays import Rows, Scores, Vectors
from vecall.index.bitmap import Bitmap

MAX_STORED_VALUE = 65504.0  # float16's largest number
MAX_QUERY_VALUE = 1e29  # times the largest stored number, summed over D <= 16,384, this is still a float32


@dataclass(frozen=True)
class Hits:
    """The answer to a batch of queries, best first: score descending, then row ascending.

    Attributes:
        rows: [B, k] rows of the index. A place without an answer holds -1.
        scores: [B, k] inner products with the stored vectors; -inf where the row is -1.
    """

    rows: Rows
    scores: Scores


class SearchParams(NamedTuple):
    """How hard a search tries; an approximate index answers better and slower with more.

    Attributes:
        width: how far from the query it looks: places of the graph kept in sight (ef), or cells scanned (probes).
        rerank_depth: rows that cells score exactly; the graph scores all that it sees.
    """

    width: int
    rerank_depth: int = 0

    def to_label(self) -> str:
        """As short as it can be said."""
        return f"{self.width} × {self.rerank_depth}" if self.rerank_depth else str(self.width)


class Index(Protocol):
    """Nearest neighbours by inner product over N item vectors of D dimensions, stored in half precision."""

    @property
    def size(self) -> int:
        """N, the number of vectors."""

    @property
    def dim(self) -> int:
        """D, the dimension of a vector."""

    def search(
        self, queries: Vectors, k: int, *, search_params: SearchParams | None = None, allowed: Bitmap | None = None
    ) -> Hits:
        """The k best rows for each query.

        Args:
            queries: [B, D], finite.
            k: 1 <= k; more than N gives N answers and places with row -1.
            search_params: how hard to try. None is the index's own default. An exact index ignores it.
            allowed: of the N rows, those that may be answers; None is all. The same effort finds less of the
                truth under it: `vecall.index.planner` says what is needed.

        Returns:
            Hits with row -1 where too few were found: fewer are allowed, or the search did not reach them.
        """

    def search_exact(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None) -> Hits:
        """As `search`, but exact over the stored vectors."""

    def score(self, query: Vectors, rows: Rows) -> Scores:
        """[n] inner products of one query [D] with the stored vectors of rows in 0 .. N - 1, as searches give them."""

    def get_vectors(self, rows: Rows) -> Vectors:
        """[len(rows), D] stored vectors, as float32."""

    def save(self, path: Path) -> None:
        """Write the index to one file, for `vecall.index.index_io.load`."""
