"""One query's search: the base as the planner says, the delta by a scan, and both in one order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall.errors import QueryError
from vecall.index.base import Effort
from vecall.index.bitmap import Bitmap
from vecall.index.kernels import near_best, scores_of
from vecall.index.planner import decide
from vecall.index.topk import best_first, top_k
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import Passing
from vecall.recall.resolve import Ask
from vecall.recall.scan_limiter import NO_LIMIT, ScanLimit
from vecall.release.release import Release

How = Literal["index", "scan", "all", "popular"]
Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Scored = tuple[Rows, Scores]

_SCANNED_AT_ONCE = 32_768  # rows: about two milliseconds

_NONE: Scored = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class Found:
    """Rows by score descending, then id ascending, and how they were found.

    Attributes:
        rows: of the view, at most k.
        scores: as many.
        path: how the base was searched, as in `Plan`.
        matches: items that pass `where`.
        available: matches that are not excluded.
        delta: those of them that were searched beside the base.
        effort: of the index; None where it was not asked.
    """

    rows: Rows
    scores: Scores
    path: How
    matches: int
    available: int
    delta: int
    effort: Effort | None


@dataclass(frozen=True)
class _Pool:
    """What may be answers: rows of the base and slots of the delta, and what of the base is excluded."""

    base: Bitmap | None
    size: int
    excluded: Rows
    slots: Rows
    matches: int

    @property
    def of_base(self) -> int:
        """Rows of the base that may be answers and are not excluded."""
        return (self.size if self.base is None else self.base.count) - len(self.excluded)

    @property
    def available(self) -> int:
        """All that may be answers and are not excluded."""
        return self.of_base + len(self.slots)

    def left(self) -> Bitmap | None:
        """The rows of the base without those that are excluded; None: all."""
        if not len(self.excluded):
            return self.base
        return (Bitmap.all_of(self.size) if self.base is None else self.base).without(self.excluded)


def find(view: Snapshot, ask: Ask, passing: Passing | None, k: int, *, scans: ScanLimit = NO_LIMIT) -> Found:
    """Exactly min(k, available) items.

    Args:
        view: what is searched.
        ask: the user's vector, and what is excluded.
        passing: what passes `where`; None is everything.
        k: at least 1.
        scans: how many large ones may run.

    Raises:
        QueryError: popular items are asked for, and the release does not know which they are.
        TooManyScans: it takes a large scan, and `scans` run.
    """
    pool = _pool(view, ask.excluded, passing)
    if ask.vector is None:
        rows, scores = _most_popular(view, pool, min(k, pool.available))
        return Found(rows, scores, "popular", pool.matches, pool.available, len(pool.slots), None)
    path, effort, base = _search_base(view, ask.vector, pool, k, scans)
    rows, scores = _with_delta(view, ask.vector, pool, base, k)
    return Found(rows, scores, path, pool.matches, pool.available, len(pool.slots), effort)


def find_exactly(
    view: Snapshot,
    vector: NDArray[np.float32],
    excluded: Rows,
    passing: Passing | None,
    k: int,
    *,
    rest: Callable[[], object] = lambda: None,
) -> Rows:
    """The rows that `find` would give if it scanned every item, which is what its answer is judged by.

    Args:
        view: what was searched.
        vector: [1, D] the user's.
        excluded: rows that must not be returned.
        passing: what passes `where`; None is everything.
        k: at least 1.
        rest: called after each some thousand rows, for who must not keep a core from others for long.
    """
    pool = _pool(view, excluded, passing)
    left, best = pool.left() or Bitmap.all_of(pool.size), _NONE
    for start in range(0, pool.size, _SCANNED_AT_ONCE):
        part = left.between(start, start + _SCANNED_AT_ONCE)
        if part.count:
            hits = view.release.index.search_exact(vector, min(k, part.count), allowed=part)
            rows, scores = np.concatenate([best[0], hits.rows[0]]), np.concatenate([best[1], hits.scores[0]])
            merged = best_first(rows[None], scores[None], min(k, len(rows)))
            best = merged.rows[0], merged.scores[0]
        rest()
    return _with_delta(view, vector, pool, best, k)[0]


def _pool(view: Snapshot, excluded: Rows, passing: Passing | None) -> _Pool:
    n, delta = view.release.index.size, view.delta
    base = view.live if passing is None else passing.base if view.live is None else view.live & passing.base
    out = excluded
    if len(out):
        out = excluded[excluded < n]
        out = out if base is None else out[base.has(out)]
    matches = n if base is None else base.count
    if not len(delta):
        return _Pool(base, n, out, _NONE[0], matches)
    live = delta.live if passing is None else delta.live & passing.delta
    left = live.copy()
    left[excluded[excluded >= n] - n] = False
    return _Pool(base, n, out, np.flatnonzero(left), matches + int(np.count_nonzero(live)))


def _search_base(
    view: Snapshot, vector: NDArray[np.float32], pool: _Pool, k: int, scans: ScanLimit
) -> tuple[How, Effort | None, Scored]:
    release = view.release
    wanted = min(k, pool.of_base)
    if not wanted:
        return "all", None, _NONE
    allowed = pool.of_base + len(pool.excluded)
    plan = decide(
        wanted, size=pool.size, allowed=allowed, excluded=len(pool.excluded), curve=release.effort, costs=release.costs
    )
    if plan.path == "index":
        bitmap = None if allowed == pool.size else pool.base
        hits = release.index.search(vector, plan.fetch, effort=plan.effort, allowed=bitmap)
        rows, scores = hits.rows[0], hits.scores[0]
        if len(pool.excluded):
            kept = np.flatnonzero(~_among(rows, pool.excluded))[:wanted]
            rows, scores = rows[kept], scores[kept]
        return "index", plan.effort, (rows, scores)
    with scans.slot(pool.of_base):
        hits = release.index.search_exact(vector, wanted, allowed=pool.left())
    return plan.path, None, (hits.rows[0], hits.scores[0])


def _among(rows: Rows, ascending: Rows) -> NDArray[np.bool_]:
    """[len(rows)] whether each row stands in a list that ascends and is not empty."""
    places = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    found: NDArray[np.bool_] = ascending[places] == rows
    return found


def _scan_delta(view: Snapshot, vector: NDArray[np.float32], pool: _Pool, k: int) -> Scored:
    """All rows of the delta that may be among the k best, every one that ties with them too."""
    scores = scores_of(view.delta.codes, vector[0], pool.slots)
    near = near_best(scores, k)
    return pool.slots[near] + pool.size, scores[near]


def _with_delta(view: Snapshot, vector: NDArray[np.float32], pool: _Pool, base: Scored, k: int) -> Scored:
    """The k best of the base's and the delta's."""
    return base if not len(pool.slots) else _merged(view, base, _scan_delta(view, vector, pool, k), k)


def _merged(view: Snapshot, base: Scored, delta: Scored, k: int) -> Scored:
    """Rows of the base stand in the order of ids; those of the delta do not."""
    hits = best_first(
        np.concatenate([base[0], delta[0]])[None],
        np.concatenate([base[1], delta[1]])[None],
        len(base[0]) + len(delta[0]),
    )
    rows, scores = hits.rows[0], hits.scores[0]
    tied = np.flatnonzero(np.diff(scores) == 0)
    for start in tied[np.isin(tied - 1, tied, invert=True)].tolist():  # the first of each run of equal scores
        end = start + int(np.searchsorted(-scores[start:], -scores[start], side="right"))
        ids = view.ids(rows[start:end])
        rows[start:end] = rows[start:end][sorted(range(end - start), key=ids.__getitem__)]
    return rows[:k], scores[:k]


def _most_popular(view: Snapshot, pool: _Pool, k: int) -> Scored:
    """By how often items were taken, changed ones too; new ones never were."""
    popularity = view.release.popularity
    if popularity is None:
        raise QueryError("nothing is known of this user, and this release has no popularity to fall back on")
    wanted = min(k, pool.of_base)
    base = _most_popular_of_base(view.release, popularity, pool.left(), wanted) if wanted else _NONE
    if not len(pool.slots) or not k:
        return base
    origins = view.delta.origins[pool.slots]
    taken = np.where(origins >= 0, popularity[origins], 0).astype(np.float32)
    return _merged(view, base, (pool.slots + pool.size, taken), k)


def _most_popular_of_base(release: Release, popularity: Scores, left: Bitmap | None, k: int) -> Scored:
    """Nearly always among the first that are kept in order; else by looking at all."""
    first = release.most_popular if left is None else release.most_popular[left.has(release.most_popular)]
    if len(first) >= k:
        return first[:k], popularity[first[:k]]
    scores = popularity if left is None else np.where(left.mask(), popularity, -np.inf).astype(np.float32)
    hits = top_k(scores[None], k)
    return hits.rows[0], hits.scores[0]
