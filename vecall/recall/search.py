"""Search of one snapshot: the base as the planner decides, the delta by a scan, merged into one order."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from vecall.arrays import Rows, Scores, Vectors
from vecall.errors import QueryError
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.completion_scans import limit_completion_scans
from vecall.index.kernels import compute_inner_products, select_top_k_superset
from vecall.index.planner import PlannedQuery, SearchPlan, plan_search
from vecall.index.topk import sort_hits
from vecall.live.snapshot import Snapshot
from vecall.recall.candidate_set import CandidateSet, build_candidate_set, is_in_sorted
from vecall.recall.filters import FilterMask
from vecall.recall.popularity_ranking import rank_by_popularity
from vecall.recall.query import RecallRoute
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.release.release import Release

_GROUND_TRUTH_CHUNK_ROWS = 32_768  # takes about two milliseconds

_NO_HITS: ScoredRows = (np.empty(0, np.int64), np.empty(0, np.float32))


@dataclass(frozen=True)
class SearchResult:
    """Rows by score descending, then id ascending, and how they were found.

    Attributes:
        rows: [at most k] rows of the snapshot.
        scores: Score of each row.
        route: How the base was searched: "index"; "scan" (exact); "all" (it has at most k eligible rows, perhaps none,
            and all are candidates); "popular" (by popularity, not by a vector).
        match_count: Items that pass `where`.
        eligible_count: Matching items that are not excluded.
        eligible_delta_count: Eligible items of the delta, all of which were scored.
        search_params: What the index was searched with; None if it was not.
    """

    rows: Rows
    scores: Scores
    route: RecallRoute
    match_count: int
    eligible_count: int
    eligible_delta_count: int
    search_params: SearchParams | None


def search_snapshot(
    snapshot: Snapshot,
    query: ResolvedQuery,
    filter_mask: FilterMask | None,
    k: int,
    *,
    scan_limiter: ScanLimiter = UNLIMITED_SCANS,
) -> SearchResult:
    """Return min(k, eligible items) items, never fewer: the best that the route finds.

    Args:
        snapshot: What is searched.
        query: User vector and excluded rows.
        filter_mask: Items that pass `where`; None for all.
        k: At least 1.
        scan_limiter: Limits the large exact scans that run at once.

    Raises:
        QueryError: Popular items are to be returned, and the release has no popularity.
        TooManyScansError: The query needs a large scan, and as many as `scan_limiter` allows are running.
    """
    candidates = build_candidate_set(snapshot, query.excluded_rows, filter_mask)
    return search_candidates(snapshot, query.query_matrix, candidates, k, scan_limiter=scan_limiter)


def search_candidates(
    snapshot: Snapshot,
    query_matrix: Vectors | None,
    candidates: CandidateSet,
    k: int,
    *,
    scan_limiter: ScanLimiter = UNLIMITED_SCANS,
) -> SearchResult:
    """Search as `search_snapshot` does, among items that were determined before.

    Args:
        snapshot: What is searched.
        query_matrix: [1, D] user vector; None ranks by popularity.
        candidates: Items of the snapshot that may be answers.
        k: At least 1.
        scan_limiter: Limits the large exact scans that run at once.

    Raises:
        QueryError, TooManyScansError: As for `search_snapshot`.
    """
    route: RecallRoute = "popular"
    search_params: SearchParams | None = None
    if query_matrix is None:
        rows, scores = _rank_by_popularity(snapshot, candidates, k)
    else:
        route, search_params, base_hits = _search_base(snapshot, query_matrix, candidates, k, scan_limiter)
        rows, scores = _scan_and_merge_delta(snapshot, query_matrix, candidates, base_hits, k)
    return SearchResult(
        rows=rows,
        scores=scores,
        route=route,
        match_count=candidates.match_count,
        eligible_count=candidates.eligible_count,
        eligible_delta_count=len(candidates.delta_slots),
        search_params=search_params,
    )


def compute_ground_truth_rows(
    snapshot: Snapshot,
    query_matrix: Vectors,
    excluded_rows: Rows,
    filter_mask: FilterMask | None,
    k: int,
    *,
    throttle: Callable[[], object] = lambda: None,
) -> Rows:
    """Return the ground truth of ANN recall: the rows that `search_snapshot` would return if it scanned every item.

    Args:
        snapshot: What was searched.
        query_matrix: [1, D] user vector.
        excluded_rows: Rows that must not be returned.
        filter_mask: Items that pass `where`; None for all.
        k: At least 1.
        throttle: Called after each chunk of some ten thousand rows, for a caller that must not occupy a core for long.
    """
    candidates = build_candidate_set(snapshot, excluded_rows, filter_mask)
    eligible, best = candidates.build_eligible_bitmap() or Bitmap.full(candidates.base_size), _NO_HITS
    for start in range(0, candidates.base_size, _GROUND_TRUTH_CHUNK_ROWS):
        chunk = eligible.list_rows(start, start + _GROUND_TRUTH_CHUNK_ROWS)
        if len(chunk):
            rows = np.concatenate([best[0], chunk])
            scores = np.concatenate([best[1], snapshot.release.vectors.score(query_matrix[0], chunk)])
            merged = sort_hits(rows[None], scores[None], min(k, len(rows)))
            best = merged.rows[0], merged.scores[0]
        throttle()
    return _scan_and_merge_delta(snapshot, query_matrix, candidates, best, k)[0]


def _search_base(
    snapshot: Snapshot, query_matrix: Vectors, candidates: CandidateSet, k: int, scan_limiter: ScanLimiter
) -> tuple[RecallRoute, SearchParams | None, ScoredRows]:
    """Return the route, the parameters of the index search (None without one) and the k best eligible base rows."""
    release = snapshot.release
    base_k = min(k, candidates.eligible_base_count)
    if not base_k:
        return "all", None, _NO_HITS
    allowed_count = candidates.eligible_base_count + len(candidates.excluded_base_rows)
    plan = plan_search(
        base_k,
        size=candidates.base_size,
        allowed_count=allowed_count,
        excluded_count=len(candidates.excluded_base_rows),
        curve=release.search_param_curve,
        costs=release.cost_model,
        query=PlannedQuery(release.index, query_matrix[0], candidates.filter_profile),
    )
    if plan.route == "index":
        # The index does not know the excluded rows: `fetch_k` is k plus their number, and they are dropped below.
        allowed = None if allowed_count == candidates.base_size else candidates.base_bitmap
        with _offload_long_search(release, plan, scan_limiter), limit_completion_scans(scan_limiter.acquire):
            hits = release.index.search(
                query_matrix, plan.fetch_k, search_params=plan.search_params, allowed=allowed, lists=plan.lists
            )
        rows, scores = hits.rows[0], hits.scores[0]
        if len(candidates.excluded_base_rows):
            kept = np.flatnonzero(~is_in_sorted(rows, candidates.excluded_base_rows))[:base_k]
            rows, scores = rows[kept], scores[kept]
        return "index", plan.search_params, (rows, scores)
    with scan_limiter.acquire(candidates.eligible_base_count):
        hits = release.vectors.search_exact(query_matrix, base_k, allowed=candidates.build_eligible_bitmap())
    return plan.route, None, (hits.rows[0], hits.scores[0])


def _offload_long_search(release: Release, plan: SearchPlan, scan_limiter: ScanLimiter) -> AbstractContextManager[None]:
    """Return the context of a search of the index: some queries, far from all items, take many inverted lists."""
    if plan.search_params is None or release.remote_index is not None:
        return nullcontext()
    return scan_limiter.offload_if_large(release.cost_model.count_equivalent_rows(plan.search_params))


def _scan_delta_superset(snapshot: Snapshot, query_matrix: Vectors, candidates: CandidateSet, k: int) -> ScoredRows:
    """Return an unordered superset of the k best eligible rows of the delta; it has all rows that tie with the k-th."""
    scores = compute_inner_products(snapshot.delta.half_vectors, query_matrix[0], candidates.delta_slots)
    best = select_top_k_superset(scores, k)
    return candidates.delta_slots[best] + candidates.base_size, scores[best]


def _scan_and_merge_delta(
    snapshot: Snapshot, query_matrix: Vectors, candidates: CandidateSet, base_hits: ScoredRows, k: int
) -> ScoredRows:
    """Return the k best of `base_hits` and the eligible rows of the delta."""
    if not len(candidates.delta_slots):
        return base_hits
    delta_hits = _scan_delta_superset(snapshot, query_matrix, candidates, k)
    rows, scores = np.concatenate([base_hits[0], delta_hits[0]]), np.concatenate([base_hits[1], delta_hits[1]])
    return rank_by_score_and_id(snapshot, rows, scores, k)


def _rank_by_popularity(snapshot: Snapshot, candidates: CandidateSet, k: int) -> ScoredRows:
    """Return the k most popular eligible items: by the counts of the channel `popular` where the release has them.

    These are of a window; the popularity counts all positive interactions alike.
    """
    release = snapshot.release
    if (popular := release.channels.popular) is not None:
        return rank_by_popularity(snapshot, candidates, popular.counts, popular.sorted_rows, k)
    if release.popularity is None:
        raise QueryError(
            "the query has no history and no user features, none are stored for its user_id, and this release has no "
            "popularity to fall back on: give `history`, `user` or `vector`"
        )
    return rank_by_popularity(snapshot, candidates, release.popularity, release.popular_rows, k)
