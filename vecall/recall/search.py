"""One query's search: the base as the planner says, the delta by a scan, and both in one order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.errors import QueryError
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.kernels import compute_inner_products, select_top_k_superset
from vecall.index.planner import plan_search
from vecall.index.topk import select_top_k_batch, sort_hits
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterMask
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.release.release import Release

RecallRoute = Literal["index", "scan", "all", "popular"]
ScoredRows = tuple[Rows, Scores]

_SCAN_CHUNK_ROWS = 32_768  # rows: about two milliseconds

_NO_HITS: ScoredRows = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class SearchResult:
    """Rows by score descending, then id ascending, and how they were found.

    Attributes:
        rows: of the view, at most k.
        scores: as many.
        route: how the base was searched, as in `ExecutionPlan`.
        match_count: items that pass `where`.
        eligible_count: matches that are not excluded.
        delta_count: those of them that were searched beside the base.
        search_params: of the index; None where it was not asked.
    """

    rows: Rows
    scores: Scores
    route: RecallRoute
    match_count: int
    eligible_count: int
    delta_count: int
    search_params: SearchParams | None


@dataclass(frozen=True)
class _CandidateSet:
    """What may be answers: rows of the base and slots of the delta, and what of the base is excluded."""

    base_bitmap: Bitmap | None
    base_size: int
    excluded_base_rows: Rows
    delta_slots: Rows
    match_count: int

    @property
    def eligible_base_count(self) -> int:
        """Rows of the base that may be answers and are not excluded."""
        return (self.base_size if self.base_bitmap is None else self.base_bitmap.count) - len(self.excluded_base_rows)

    @property
    def eligible_count(self) -> int:
        """All that may be answers and are not excluded."""
        return self.eligible_base_count + len(self.delta_slots)

    def build_eligible_bitmap(self) -> Bitmap | None:
        """The rows of the base without those that are excluded; None: all."""
        if not len(self.excluded_base_rows):
            return self.base_bitmap
        return (Bitmap.full(self.base_size) if self.base_bitmap is None else self.base_bitmap).exclude(
            self.excluded_base_rows
        )


def search_snapshot(
    snapshot: Snapshot,
    query: ResolvedQuery,
    filter_mask: FilterMask | None,
    k: int,
    *,
    scan_limiter: ScanLimiter = UNLIMITED_SCANS,
) -> SearchResult:
    """Exactly min(k, available) items.

    Args:
        snapshot: what is searched.
        query: the user's vector, and what is excluded.
        filter_mask: what passes `where`; None is everything.
        k: at least 1.
        scan_limiter: how many large ones may run.

    Raises:
        QueryError: popular items are asked for, and the release does not know which they are.
        TooManyScans: it takes a large scan, and `scan_limiter` run.
    """
    pool = _build_candidate_set(snapshot, query.excluded_rows, filter_mask)
    if query.vector is None:
        rows, scores = _rank_by_popularity(snapshot, pool, min(k, pool.eligible_count))
        return SearchResult(rows, scores, "popular", pool.match_count, pool.eligible_count, len(pool.delta_slots), None)
    path, effort, base = _search_base(snapshot, query.vector, pool, k, scan_limiter)
    rows, scores = _scan_and_merge_delta(snapshot, query.vector, pool, base, k)
    return SearchResult(rows, scores, path, pool.match_count, pool.eligible_count, len(pool.delta_slots), effort)


def search_snapshot_exact(
    snapshot: Snapshot,
    vector: NDArray[np.float32],
    excluded_rows: Rows,
    filter_mask: FilterMask | None,
    k: int,
    *,
    throttle: Callable[[], object] = lambda: None,
) -> Rows:
    """The rows that `find` would give if it scanned every item, which is what its answer is judged by.

    Args:
        snapshot: what was searched.
        vector: [1, D] the user's.
        excluded_rows: rows that must not be returned.
        filter_mask: what passes `where`; None is everything.
        k: at least 1.
        throttle: called after each some thousand rows, for who must not keep a core from others for long.
    """
    pool = _build_candidate_set(snapshot, excluded_rows, filter_mask)
    left, best = pool.build_eligible_bitmap() or Bitmap.full(pool.base_size), _NO_HITS
    for start in range(0, pool.base_size, _SCAN_CHUNK_ROWS):
        part = left.restrict_to_range(start, start + _SCAN_CHUNK_ROWS)
        if part.count:
            hits = snapshot.release.index.search_exact(vector, min(k, part.count), allowed=part)
            rows, scores = np.concatenate([best[0], hits.rows[0]]), np.concatenate([best[1], hits.scores[0]])
            merged = sort_hits(rows[None], scores[None], min(k, len(rows)))
            best = merged.rows[0], merged.scores[0]
        throttle()
    return _scan_and_merge_delta(snapshot, vector, pool, best, k)[0]


def _build_candidate_set(snapshot: Snapshot, excluded_rows: Rows, filter_mask: FilterMask | None) -> _CandidateSet:
    n, delta = snapshot.release.index.size, snapshot.delta
    base = (
        snapshot.live_base_rows
        if filter_mask is None
        else filter_mask.base
        if snapshot.live_base_rows is None
        else snapshot.live_base_rows & filter_mask.base
    )
    out = excluded_rows
    if len(out):
        out = excluded_rows[excluded_rows < n]
        out = out if base is None else out[base.contains(out)]
    matches = n if base is None else base.count
    if not len(delta):
        return _CandidateSet(base, n, out, _NO_HITS[0], matches)
    live = delta.live_mask if filter_mask is None else delta.live_mask & filter_mask.delta
    left = live.copy()
    left[excluded_rows[excluded_rows >= n] - n] = False
    return _CandidateSet(base, n, out, np.flatnonzero(left), matches + int(np.count_nonzero(live)))


def _search_base(
    snapshot: Snapshot, vector: NDArray[np.float32], candidates: _CandidateSet, k: int, scan_limiter: ScanLimiter
) -> tuple[RecallRoute, SearchParams | None, ScoredRows]:
    release = snapshot.release
    wanted = min(k, candidates.eligible_base_count)
    if not wanted:
        return "all", None, _NO_HITS
    allowed = candidates.eligible_base_count + len(candidates.excluded_base_rows)
    plan = plan_search(
        wanted,
        size=candidates.base_size,
        allowed_count=allowed,
        excluded_count=len(candidates.excluded_base_rows),
        curve=release.search_param_curve,
        costs=release.cost_model,
    )
    if plan.route == "index":
        bitmap = None if allowed == candidates.base_size else candidates.base_bitmap
        hits = release.index.search(vector, plan.fetch_k, search_params=plan.search_params, allowed=bitmap)
        rows, scores = hits.rows[0], hits.scores[0]
        if len(candidates.excluded_base_rows):
            kept = np.flatnonzero(~_is_in_sorted(rows, candidates.excluded_base_rows))[:wanted]
            rows, scores = rows[kept], scores[kept]
        return "index", plan.search_params, (rows, scores)
    with scan_limiter.acquire(candidates.eligible_base_count):
        hits = release.index.search_exact(vector, wanted, allowed=candidates.build_eligible_bitmap())
    return plan.route, None, (hits.rows[0], hits.scores[0])


def _is_in_sorted(rows: Rows, sorted_rows: Rows) -> NDArray[np.bool_]:
    """[len(rows)] whether each row stands in a list that ascends and is not empty."""
    places = np.minimum(np.searchsorted(sorted_rows, rows), len(sorted_rows) - 1)
    found: NDArray[np.bool_] = sorted_rows[places] == rows
    return found


def _scan_delta(snapshot: Snapshot, vector: NDArray[np.float32], candidates: _CandidateSet, k: int) -> ScoredRows:
    """All rows of the delta that may be among the k best, every one that ties with them too."""
    scores = compute_inner_products(snapshot.delta.half_vectors, vector[0], candidates.delta_slots)
    near = select_top_k_superset(scores, k)
    return candidates.delta_slots[near] + candidates.base_size, scores[near]


def _scan_and_merge_delta(
    snapshot: Snapshot, vector: NDArray[np.float32], candidates: _CandidateSet, base_hits: ScoredRows, k: int
) -> ScoredRows:
    """The k best of the base's and the delta's."""
    return (
        base_hits
        if not len(candidates.delta_slots)
        else _merge_hits(snapshot, base_hits, _scan_delta(snapshot, vector, candidates, k), k)
    )


def _merge_hits(snapshot: Snapshot, base_hits: ScoredRows, delta_hits: ScoredRows, k: int) -> ScoredRows:
    """Rows of the base stand in the order of ids; those of the delta do not."""
    hits = sort_hits(
        np.concatenate([base_hits[0], delta_hits[0]])[None],
        np.concatenate([base_hits[1], delta_hits[1]])[None],
        len(base_hits[0]) + len(delta_hits[0]),
    )
    rows, scores = hits.rows[0], hits.scores[0]
    tied = np.flatnonzero(np.diff(scores) == 0)
    for start in tied[np.isin(tied - 1, tied, invert=True)].tolist():  # the first of each run of equal scores
        end = start + int(np.searchsorted(-scores[start:], -scores[start], side="right"))
        ids = snapshot.to_ids(rows[start:end])
        rows[start:end] = rows[start:end][sorted(range(end - start), key=ids.__getitem__)]
    return rows[:k], scores[:k]


def _rank_by_popularity(snapshot: Snapshot, candidates: _CandidateSet, k: int) -> ScoredRows:
    """By how often items were taken, changed ones too; new ones never were."""
    popularity = snapshot.release.popularity
    if popularity is None:
        raise QueryError("nothing is known of this user, and this release has no popularity to fall back on")
    wanted = min(k, candidates.eligible_base_count)
    base = (
        _rank_base_by_popularity(snapshot.release, popularity, candidates.build_eligible_bitmap(), wanted)
        if wanted
        else _NO_HITS
    )
    if not len(candidates.delta_slots) or not k:
        return base
    origins = snapshot.delta.base_rows[candidates.delta_slots]
    taken = np.where(origins >= 0, popularity[origins], 0).astype(np.float32)
    return _merge_hits(snapshot, base, (candidates.delta_slots + candidates.base_size, taken), k)


def _rank_base_by_popularity(release: Release, popularity: Scores, eligible: Bitmap | None, k: int) -> ScoredRows:
    """Nearly always among the first that are kept in order; else by looking at all."""
    first = release.popular_rows if eligible is None else release.popular_rows[eligible.contains(release.popular_rows)]
    if len(first) >= k:
        return first[:k], popularity[first[:k]]
    scores = popularity if eligible is None else np.where(eligible.to_mask(), popularity, -np.inf).astype(np.float32)
    hits = select_top_k_batch(scores[None], k)
    return hits.rows[0], hits.scores[0]
