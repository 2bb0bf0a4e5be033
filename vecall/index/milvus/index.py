"""Index whose graph is a collection of a Milvus server; the vectors stay on this machine.

The server finds candidates among all rows. Filters, scores and the order of ties are applied here, to the stored
vectors, so a result is what a local index would return.
"""

import logging
import math
import time
import weakref
from pathlib import Path

import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.milvus.searching import MAX_EF, MAX_K, count_short_answers
from vecall.index.milvus.session import CollectionSession
from vecall.index.scan import check_allowed, check_queries, rescore
from vecall.index.stored_vectors import StoredVectors, write_vectors

logger = logging.getLogger(__name__)

_DEFAULT_EF = 64
_BATCH_TIMEOUT_SECONDS = 60.0  # of several queries at once, as for tuning and golden queries
_SHORT_ANSWER_LOG_SECONDS = 60.0
# Candidates beyond those that a random filter lets pass on average: a share of k, and standard deviations.
_EXTRA_SHARE, _EXTRA_DEVIATIONS = 0.25, 3.0
_EXTRA_FACTOR = 1.5  # of the candidates of a second attempt
_SCANNED_ROWS_PER_CANDIDATE = 400  # rows that are scanned in the time that the server needs for a candidate


class MilvusIndex:
    """Search of a collection, with exact scores from stored vectors.

    Args:
        vectors: the stored vectors, in the order of the collection's keys.
        session: the collection; closed with the index.
        timeout: seconds that the search of a single query may take.

    Attributes:
        vectors: as given.
        session: as given.
        short_answer_count: queries that the server answered with fewer rows than it should have.
    """

    def __init__(self, vectors: StoredVectors, session: CollectionSession, *, timeout: float) -> None:
        self.vectors, self.session, self._timeout = vectors, session, timeout
        self.short_answer_count, self._short_answer_logged = 0, -math.inf
        # Requests hold on to a release that is no longer served, so the last of them ends the session.
        self._finalizer = weakref.finalize(self, session.close)

    @property
    def max_width(self) -> int:
        """N, at most 32,768: Milvus's limit."""
        return min(self.vectors.size, MAX_EF)

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,
        allowed: Bitmap | None = None,
        lists: Rows | None = None,  # noqa: ARG002 - a graph has none
    ) -> Hits:
        """Return approximately the k best rows of each query, with exact scores. See `Index.search`.

        Under a filter more candidates are fetched than pass on average, and once again if fewer than k passed all the
        same. If still fewer pass, or more than 16,384 candidates or all rows were needed, the vectors are scanned here.

        Args:
            queries: [B, D], finite.
            k: number of rows per query, at least 1; may exceed N.
            search_params: `width` is ef, raised to the number of candidates if it is lower.
            allowed: bitmap of the rows that may be returned.
            lists: ignored.

        Raises:
            QueryError: the queries, k or `allowed` are invalid.
            EngineUnavailableError: the server does not answer in time.
        """
        check_queries(queries, self.vectors.dim, k)
        check_allowed(allowed, self.vectors.size)
        size = self.vectors.size
        count = compute_candidate_count(k, size if allowed is None else allowed.count, size)
        ef = max(_DEFAULT_EF if search_params is None else search_params.width, count)
        if count > MAX_K or ef >= size or not len(queries):
            return self.vectors.search_exact(queries, k, allowed=allowed)
        hits = self._find(queries, k, count, ef, allowed)
        incomplete = np.flatnonzero(hits.rows[:, min(k, size if allowed is None else allowed.count) - 1] < 0)
        if len(incomplete) and allowed is not None:
            # The filter takes away rows near the query: among how many are there k, if it does so evenly?
            fewest = max(1, int((hits.rows[incomplete] >= 0).sum(axis=1).min()))
            wider = math.ceil(_EXTRA_FACTOR * count * k / fewest)
            if wider <= MAX_K and wider * _SCANNED_ROWS_PER_CANDIDATE < allowed.count:
                again = self._find(queries[incomplete], k, wider, math.ceil(ef * wider / count), allowed)
                hits.rows[incomplete], hits.scores[incomplete] = again.rows, again.scores
        return self.vectors.fill_missing_hits(hits, queries, allowed)

    def _find(self, queries: Vectors, k: int, count: int, ef: int, allowed: Bitmap | None) -> Hits:
        """The k best of `count` candidates of the server that the filter allows; perhaps fewer."""
        timeout = self._timeout if len(queries) == 1 else _BATCH_TIMEOUT_SECONDS
        candidates = self.session.search(queries, count, ef=ef, timeout=timeout)
        self._report_short_answers(candidates)
        rows = candidates.rows
        if allowed is not None:
            rows[~(allowed.contains(rows.ravel()).reshape(rows.shape) & (rows >= 0))] = -1
        hits = rescore(self.vectors.half_vectors, queries, rows)
        return Hits(hits.rows[:, :k], hits.scores[:, :k])

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Return the filter alone. See `Index.profile_filter`."""
        return FilterProfile(allowed)

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch:  # noqa: ARG002
        """Return the search parameters as they are: the search itself finds out whether too few rows pass."""
        return AdaptedSearch(search_params)

    def save(self, path: Path) -> None:
        """Write the stored vectors, unless they are mapped from this very file. See `Index.save`."""
        if not path.exists():
            write_vectors(self.vectors.half_vectors, path)

    def close(self) -> None:
        """End the session; searches are refused afterwards."""
        self._finalizer()

    def _report_short_answers(self, candidates: Hits) -> None:
        short = count_short_answers(candidates, self.vectors.size)
        if not short:
            return
        self.short_answer_count += short
        now = time.monotonic()
        if now - self._short_answer_logged >= _SHORT_ANSWER_LOG_SECONDS:
            self._short_answer_logged = now
            logger.warning(
                "collection %s answered %d queries with fewer rows than it has, %d so far; missing rows are found by a "
                "scan: look at the server's log, for example for segments that are not loaded",
                self.session.name, short, self.short_answer_count,
            )  # fmt: skip


def compute_candidate_count(k: int, allowed_count: int, size: int) -> int:
    """Number of nearest rows among which k allowed ones are expected with near certainty, under a random filter.

    Args:
        k: number of rows wanted.
        allowed_count: n, the number of rows that the filter allows.
        size: N, the number of rows.

    Returns:
        A number of at least k, which may exceed N.
    """
    if not allowed_count:
        return size + k
    rejected_share = 1 - allowed_count / size
    passing = k + _EXTRA_SHARE * k * rejected_share + _EXTRA_DEVIATIONS * math.sqrt(k * rejected_share)
    return math.ceil(passing * size / allowed_count)
