"""Search on a server: it finds rows, and knows neither filters nor scores; the rest is done here, on stored vectors.

Filters, deletions and exclusions stay bitmaps of this process, so that matches and counts are exact and a change is
seen at once. The server is asked for so many rows that enough of them pass the filter; those are scored by the stored
vectors, so a server's own rounding and order of ties are of no account.
"""

import math
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.scan import check_allowed, check_queries, rescore
from vecall.index.stored_vectors import StoredVectors, write_vectors

WhenDown = Literal["refuse", "popular"]

_SURPLUS_DEVIATIONS = 3  # of the number of rows that pass a random filter: fewer than k then seldom do


class RowFinder(Protocol):
    """What a server does for `RemoteIndex`. Thread-safe."""

    @property
    def max_k(self) -> int:
        """Largest number of rows that can be asked for."""

    @property
    def max_width(self) -> int:
        """Largest width of a search, at least `max_k`."""

    def find_rows(self, queries: Vectors, k: int, width: int) -> Rows:
        """Return about the k best rows of each query, in any order.

        Args:
            queries: [B, D] float32, finite, B >= 1.
            k: 1 .. `max_k`, below N.
            width: k .. `max_width`: size of the search's candidate list.

        Returns:
            [B, at most k] rows; of those outside of 0 .. N - 1, such as padding, and of repeated ones no notice is
            taken. Fewer rows than asked for are no error.

        Raises:
            EngineUnavailableError: the server does not answer, or not in time: within the finder's own limit, and
                within `vecall.index.search_deadline.get_remaining_seconds`.
        """


class RemoteIndex:
    """Index on a server over N vectors that are stored here.

    `Engine.open` of a remote engine returns one. If the server does not answer, it is opened nevertheless, its searches
    raise `EngineUnavailableError`, and it recovers by itself once the server answers.

    Args:
        vectors: the stored vectors; row i of the server is row i of these.
        finder: asks the server.

    Attributes:
        vectors: As given.
        when_down: What happens to a request while the server does not answer: it is refused, or popular items answer.
    """

    when_down: WhenDown = "refuse"

    def __init__(self, vectors: StoredVectors, finder: RowFinder) -> None:
        self.vectors, self._finder = vectors, finder

    @property
    def unavailable_reason(self) -> str | None:
        """Why searches are refused at present without asking the server; None while they are tried."""
        return None

    def load(self) -> None:
        """Have the server load the index into its memory, and wait until it can be searched; quick if it can already.

        Called before a release is served. It undoes `unload` and `close`.

        Raises:
            EngineUnavailableError: the server does not answer, has no such index, or does not get ready in time.
        """

    def mark_current(self) -> None:
        """Tell the server that the release is the store's current one by now; a failure is only logged."""

    def unload(self) -> None:
        """Let the server take the index out of its memory. Called a while after another release was switched to.

        Other processes may still search it: their searches fail until their own index has loaded it again by itself.

        Raises:
            EngineUnavailableError: the server does not answer.
        """

    def close(self) -> None:
        """End threads and connections of this process, and nothing on the server. Searches raise from now on."""

    @property
    def max_width(self) -> int:
        """Largest width that the server searches with."""
        return self._finder.max_width

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,  # noqa: ARG002 - a server has none
    ) -> Hits:
        """Return approximately the k best rows of each query, with exact scores. See `Index.search`.

        The stored vectors are scanned where the server would have to be asked for more rows than it returns, and for
        each query of which fewer than k rows come through.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: `width` of the search, raised to the number of rows that is asked for if it is lower.
            allowed: bitmap of the rows that may be returned.
            lists: ignored.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
            EngineUnavailableError: the server does not answer, or not in time.
        """
        check_queries(queries, self.vectors.dim, k)
        check_allowed(allowed, self.vectors.size)
        fetch_k = self._compute_fetch_k(k, self.vectors.size if allowed is None else allowed.count)
        if fetch_k is None or not len(queries):
            return self.vectors.search_exact(queries, k, allowed=allowed)
        width = self._clip_width(0 if search_params is None else search_params.width, fetch_k)
        found = self._finder.find_rows(queries, fetch_k, width)
        rows = np.full((len(queries), max(k, found.shape[1])), -1, dtype=np.int64)
        for b, query_rows in enumerate(found):
            passing = self._select_passing(query_rows, allowed)
            rows[b, : len(passing)] = passing
        hits = rescore(self.vectors.half_vectors, queries, rows)
        return self.vectors.fill_missing_hits(Hits(hits.rows[:, :k], hits.scores[:, :k]), queries, allowed)

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Return the filter alone. See `Index.profile_filter`."""
        return FilterProfile(allowed)

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch | None:
        """Raise the width to the number of rows that will be asked for; None if the server returns no so many."""
        fetch_k = self._compute_fetch_k(request.k, request.allowed_count)
        if fetch_k is None:
            return None
        return AdaptedSearch(search_params._replace(width=self._clip_width(search_params.width, fetch_k)))

    def save(self, path: Path) -> None:
        """Write the stored vectors, unless the build has done so before it sent them to the server.

        Raises:
            StoreError: the file cannot be written.
        """
        if not path.exists():
            write_vectors(self.vectors.half_vectors, path)

    def _compute_fetch_k(self, k: int, allowed_count: int) -> int | None:
        """Number of rows to ask for, so that k of them pass a random filter; None if the rows must be scanned.

        Of n random rows with pass rate p, the n for k passing ones has the mean k / p and the standard deviation
        sqrt(k (1 - p)) / p (negative binomial distribution).
        """
        if k >= allowed_count:
            return None
        pass_rate = allowed_count / self.vectors.size
        fetch_k = math.ceil((k + _SURPLUS_DEVIATIONS * math.sqrt(k * (1 - pass_rate))) / pass_rate)
        return fetch_k if fetch_k <= min(self._finder.max_k, self.vectors.size - 1) else None

    def _clip_width(self, width: int, fetch_k: int) -> int:
        return min(max(width, fetch_k), self._finder.max_width)

    def _select_passing(self, rows: Rows, allowed: Bitmap | None) -> Rows:
        """Distinct rows of the index among what a server returned, without those that a filter does not allow."""
        distinct = np.unique(rows[(rows >= 0) & (rows < self.vectors.size)])
        return distinct if allowed is None else distinct[allowed.contains(distinct)]
