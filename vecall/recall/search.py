"""One query's search: through the index while that is exact enough and cheaper, else over all stored rows."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall.errors import QueryError
from vecall.index.base import Hits
from vecall.index.order import top_k
from vecall.recall.understand import Ask
from vecall.release.bundle import Release

How = Literal["index", "scan", "all", "popular"]

# With more than this share of the pool to be fetched, scoring all of it is no slower than the graph.
_SCANNED_FROM = 0.25


@dataclass(frozen=True)
class Found:
    """Rows by score descending, then row ascending, and how they were found.

    Attributes:
        rows: at most k.
        scores: as many.
        path: as in `Plan`.
        matches: items that pass `where`.
        available: matches that are not excluded.
        effort: how wide the index searched.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    path: How
    matches: int
    available: int
    effort: int | None


def find(release: Release, ask: Ask, allowed: NDArray[np.bool_] | None, k: int) -> Found:
    """Exactly min(k, available) rows, by the index or by an exact scan.

    The index is asked for as many rows more as are excluded, so that k remain; where that is a large share of the
    pool, where `where` leaves some items only, or where too few remain after all, the stored rows are scanned.

    Raises:
        QueryError: popular items are asked for, and the release does not know which they are.
    """
    n = release.index.size
    matches = n if allowed is None else int(allowed.sum())
    excluded = ask.excluded if allowed is None else ask.excluded[allowed[ask.excluded]]
    available = matches - len(excluded)
    if ask.vector is None:
        live = _less(allowed, ask.excluded, n)
        return Found(*_most_popular(release.popularity, live, min(k, available)), "popular", matches, available, None)
    wanted = k + len(excluded)
    if allowed is None and wanted < _SCANNED_FROM * n:
        effort = None if release.effort is None else release.effort.at(wanted)
        rows, scores = _first(release.index.search(ask.vector, wanted, effort=effort), excluded, k)
        if len(rows) == k:
            return Found(rows, scores, "index", matches, available, effort)
    live = _less(allowed, ask.excluded, n)
    path: How = "all" if available <= k else "scan"
    if available == 0:
        return Found(np.empty(0, np.int64), np.empty(0, np.float32), path, matches, 0, None)
    hits = release.index.search_exact(ask.vector, min(k, available), allowed=live)
    return Found(hits.rows[0], hits.scores[0], path, matches, available, None)


def _most_popular(
    popularity: NDArray[np.float32] | None, live: NDArray[np.bool_] | None, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if popularity is None:
        raise QueryError("nothing is known of this user, and this release has no popularity to fall back on")
    if k == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    scores = popularity if live is None else np.where(live, popularity, -np.inf).astype(np.float32)
    hits = top_k(scores[None], k)
    return hits.rows[0], hits.scores[0]


def _less(allowed: NDArray[np.bool_] | None, excluded: NDArray[np.int64], n: int) -> NDArray[np.bool_] | None:
    """What is allowed and not excluded; None where that is everything."""
    if not len(excluded):
        return allowed
    live = np.ones(n, dtype=np.bool_) if allowed is None else allowed.copy()
    live[excluded] = False
    return live


def _first(hits: Hits, excluded: NDArray[np.int64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first k rows of one answer that are not excluded."""
    rows, scores = hits.rows[0], hits.scores[0]
    kept = (rows >= 0) & ~np.isin(rows, excluded)
    return rows[kept][:k], scores[kept][:k]
