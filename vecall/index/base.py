"""Interface of every index: a search over stored vectors, and the types of its arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from vecall.arrays import Rows, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.stored_vectors import StoredVectors


class SearchParams(NamedTuple):
    """Parameters that trade the speed of an approximate search for its ANN recall; larger is slower and finds more.

    Attributes:
        width: HNSW: size of the candidate list (ef). IVF: number of inverted lists scanned (nprobe); with `spread`,
            the median number.
        rerank_depth: IVF: number of candidates that are scored exactly. HNSW ignores it: it scores exactly every row
            that it visits.
        spread: IVF: how far rows are expected from the centroids of their lists, as a multiple of their deviation: a
            query scans the lists that may hold results then, see `vecall.index.list_selection`; 0 scans the nearest
            `width` lists. HNSW ignores it.
    """

    width: int
    rerank_depth: int = 0
    spread: float = 0.0

    def to_label(self) -> str:
        """Short text for people, such as `48` or `48 × 150`."""
        return f"{self.width} × {self.rerank_depth}" if self.rerank_depth else str(self.width)

    def to_dict(self) -> dict[str, int]:
        """Width and re-rank depth of one query by their names: its spread has determined the width."""
        return {"width": self.width, "rerank_depth": self.rerank_depth}


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for with one query.

    Attributes:
        query: [D], finite.
        k: number of rows to find, those in `n_skipped` included.
        n_skipped: how many of them, perhaps the best ones, are excluded and dropped afterwards.
        allowed_count: number of rows that may be found.
        profile: where the rows lie that a filter allows; None without a filter.
    """

    query: Vectors
    k: int
    n_skipped: int
    allowed_count: int
    profile: FilterProfile | None


@dataclass(frozen=True)
class AdaptedSearch:
    """How one query is searched.

    Attributes:
        search_params: its search parameters.
        lists: inverted lists to scan, ascending; None of an index without such lists.
    """

    search_params: SearchParams
    lists: Rows | None = None


class Index(Protocol):
    """Nearest-neighbour search by inner product over stored vectors."""

    @property
    def vectors(self) -> StoredVectors:
        """The vectors that are searched, which also score what was found."""

    @property
    def max_width(self) -> int:
        """Largest useful `SearchParams.width`."""

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,
    ) -> Hits:
        """Return the k best rows of each query.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: how much of the index to search; None is the index's default. An exact index ignores it.
            allowed: bitmap of the N rows that may be returned; None allows all. With the same `search_params` ANN
                recall is lower under a bitmap: `vecall.index.planner` raises them accordingly.
            lists: inverted lists to scan, as `adapt` returned them for the query; None leaves the choice to the index.

        Returns:
            Hits [B, k], padded with row -1 where fewer than k rows are allowed or exist, with the scores of
            `StoredVectors.score`.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
            EngineUnavailableError: the index lies on a server that does not answer.
        """

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Return where the rows lie that a filter allows, for `SearchRequest`; computed once per filter."""

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch | None:
        """Return how one query must be searched; None if only a scan finds its results.

        A filter may take away just the rows near the query, or just those far from it.

        Args:
            request: the query, and what it is searched for.
            search_params: what is right for the mean query, if the filter has nothing to do with the vectors.
        """

    def save(self, path: Path) -> None:
        """Write the index's file, for `Engine.open`.

        Raises:
            StoreError: the file cannot be written.
        """
