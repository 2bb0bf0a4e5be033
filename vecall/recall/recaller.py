"""The recall stage in Python: queries from any number of threads while items change. Loads no torch."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import polars as pl

from vecall.channels.merge_plan import MergePlan
from vecall.data.id_map import Id
from vecall.errors import QueryError
from vecall.live.live_index import MAX_DELTA_ITEMS, LiveIndex
from vecall.live.snapshot import Snapshot
from vecall.ranking.ranker import NamedRanker, Ranker, name_ranker
from vecall.recall.candidate_columns import RecalledColumns
from vecall.recall.candidate_set import CandidateSet, build_candidate_set
from vecall.recall.channel_search import NO_DEADLINE, ChannelSearchResult, search_channels, select_plan
from vecall.recall.channels.available import VECTOR_CHANNELS
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.channels.similar import must_search_index
from vecall.recall.diversity import Diversity, parse_diversity
from vecall.recall.filters import FilterCache, never_cancel
from vecall.recall.query import ExecutionPlan, Fallback, Query, Recalled, parse_id
from vecall.recall.ranking_timer import RankingTimer
from vecall.recall.recommend import RecommendTrace, recommend_from_candidates
from vecall.recall.recommend_query import DEFAULT_CANDIDATES, DEFAULT_K, Recommended, RecommendRequest
from vecall.recall.resolve import ResolvedQuery, resolve_query
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.recall.trace import STAGES, RecallTrace
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked

NO_RANKING_LIMIT: AbstractContextManager[object] = nullcontext()


class Recaller:
    """Answers queries, each from one consistent snapshot of a release and its live changes.

    A context manager. Thread-safe.

    Args:
        live_index: The release that is served, and its live changes.
        scan_limiter: Limits the large exact scans that run at once.
        ranker: Ranks the candidates of `recommend` instead of the release's ranker.
        ranking_slots: Context in which candidates are ranked, such as a semaphore.
        before_remote_search: Called before the search of a query that may wait for the server of an engine; it may
            raise, for example to restart the request in a thread that may wait.

    Attributes:
        live_index: As given; its `upsert` and `delete` return more than the methods here.
    """

    def __init__(
        self,
        live_index: LiveIndex,
        *,
        scan_limiter: ScanLimiter = UNLIMITED_SCANS,
        ranker: Ranker | NamedRanker | None = None,
        ranking_slots: AbstractContextManager[object] = NO_RANKING_LIMIT,
        before_remote_search: Callable[[], object] = never_cancel,
    ) -> None:
        self.live_index = live_index
        self._ranking_slots, self._before_remote_search = ranking_slots, before_remote_search
        self._ranker = None if ranker is None else name_ranker(ranker)
        self._ranking_timer = RankingTimer()
        self._filter_cache = FilterCache(scan_limiter)
        self._scan_limiter = scan_limiter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the recaller."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a recaller holds files, threads and locks of one process."""
        raise TypeError(
            "a Recaller cannot be pickled or copied: pass the store's path to other processes, and call open_recaller "
            "in each of them"
        )

    def close(self) -> None:
        """Stop taking changes, release the writer lock, and end the connection to the server of an index."""
        self.live_index.close()

    @property
    def release(self) -> str:
        """Name of the release that is served."""
        return self.live_index.snapshot.release.name

    @property
    def ranker(self) -> NamedRanker | None:
        """What `recommend` ranks by: the caller's ranker, or that of the release that is served; None without one."""
        return self._ranker or self.live_index.snapshot.release.ranker

    def parse_user_id(self, text: str) -> Id:
        """Parse a user id that was written as text, such as on a command line, into the release's id type.

        Raises:
            QueryError: The ids are integers, and the text is not an integer.
        """
        return parse_id("user_id", text, self.live_index.snapshot.release.user_id_type)

    def recall(self, query: Query) -> Recalled:
        """Return the k items with the highest scores for the user.

        Returns:
            Exactly k items that pass `where` and are not excluded, or all of these if there are fewer.

        Raises:
            QueryError: The release cannot answer the query; `field` names the part to blame.
            TooManyScansError: The query needs a large scan, and as many as allowed are running.
            EngineUnavailableError: The server that holds the index does not answer, and the release was published with
                `when_down = "refuse"`. With "popular" the other channels and popular items answer, and `degraded` has
                "engine".
        """
        return self.recall_with_trace(query).answer

    def candidates(self, query: Query) -> pl.DataFrame:
        """Return the items of `recall` as a table for a ranking model.

        Returns:
            One row per item, see `vecall.recall.candidate_columns.RecalledColumns`.

        Raises:
            QueryError, TooManyScansError, EngineUnavailableError: As for `recall`.
        """
        trace = self.recall_with_trace(query)
        return RecalledColumns(trace.snapshot, trace.resolved_query, trace.search_result).to_frame()

    def recommend(
        self,
        query: Query,
        k: int = DEFAULT_K,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        diversity: Diversity | Mapping[str, object] | None = None,
        deadline_ms: float | None = None,
    ) -> Recommended:
        """Recall candidates, rank them and return the final list of k items.

        The ranker is that of `open_recaller`, else the release's; without one, and where it fails or would miss the
        deadline, the order of recall answers, and the answer says so.

        Args:
            query: The request; its own `k` is ignored.
            k: Items of the final list.
            candidates: Items that are recalled and ranked; k if that is more.
            diversity: `{"by": attribute, "max": n}`: at most n items of a value; a hard limit, so the list may be
                shorter. `{"mmr": x}` with x from 0 to 1: maximal marginal relevance by the vectors, 1 for the order of
                the scores. None for neither.
            deadline_ms: Milliseconds after which no further channel is asked, and within which ranking must be expected
                to end, or it does not start. A ranking that has started is not interrupted.

        Raises:
            QueryError: An argument is invalid, or the release cannot answer the query; `field` names the part.
            TooManyScansError, EngineUnavailableError: As for `recall`.
        """
        _require_query(query)
        request = RecommendRequest(query, k, candidates, parse_diversity(diversity), deadline_ms)
        return self.recommend_with_trace(request).answer

    def upsert(self, items: Sequence[Mapping[str, object]], *, partial: bool = False) -> int:
        """Insert or replace items, all or none. The next query sees them, and they survive a crash.

        Args:
            items: `{"id", "fields"}` or `{"id", "vector", "encoder", "fields"}`. `fields` is by column; a missing
                column is null. `vector` [D] is stored instead of the item tower's output, and `encoder` is the hash
                of the encoder that made it; a release without towers has no encoder and takes vectors alone. Of
                items with equal ids the last one is stored.
            partial: Whether a missing column keeps its value, and an item its own vector. The items must exist, and
                items with equal ids are applied one after the other.

        Returns:
            Number of distinct items stored.

        Raises:
            QueryError: An item is invalid; `field` names the part, such as `items[3].fields.colour`.
            EncoderMismatchError: A vector was made by another encoder than the release's.
            DeltaFullError: Too many items are new since the release was made; wait for a compaction.
            JournalIOError: The journal cannot be written; nothing was changed.
            StoreError: The recaller was not opened with `writable=True`.
        """
        return self.live_index.upsert(items, partial=partial).accepted

    def delete(self, ids: Sequence[Id]) -> int:
        """Delete items, all or none; no later query returns them.

        Returns:
            Number of the items that existed.

        Raises:
            QueryError: An id is of the wrong type.
            JournalIOError, StoreError: As for `upsert`.
        """
        return self.live_index.delete(ids).deleted

    def activate(self, name: str) -> str | None:
        """Switch to another release once its files and its golden queries are verified; make it the store's current.

        Running queries finish on the release that they started with. Live changes, also those made during the switch,
        are applied to the new release.

        Returns:
            Name of the release that was current before.

        Raises:
            StoreError: The release does not exist, or the journal does not belong to it.
            InvalidReleaseError: The release is damaged, or answers differently than when it was published.
        """
        return self.live_index.activate(name)

    def recommend_with_trace(
        self,
        request: RecommendRequest,
        *,
        deadline: float = NO_DEADLINE,
        check_cancelled: Callable[[], object] = never_cancel,
        needs_slot: bool = True,
    ) -> RecommendTrace:
        """Answer a request for a final list and return the recall that it comes from with the answer.

        Args:
            request: The request.
            deadline: `time.perf_counter` that holds beside `request.deadline_ms`, whichever is earlier.
            check_cancelled: As for `recall_with_trace`.
            needs_slot: Whether to wait for one of the `ranking_slots`; an event loop must not wait.

        Raises:
            QueryError, TooManyScansError, EngineUnavailableError: As for `recommend`.
        """
        if request.deadline_ms is not None:
            deadline = min(deadline, time.perf_counter() + request.deadline_ms / 1e3)
        recall = self.recall_with_trace(
            request.to_candidate_query(), deadline=deadline, check_cancelled=check_cancelled
        )
        ranker = self._ranker or recall.snapshot.release.ranker
        with self._ranking_slots if needs_slot else nullcontext():
            return recommend_from_candidates(
                recall, request, ranker, self._ranking_timer, deadline=deadline, check_cancelled=check_cancelled
            )

    def recall_with_trace(
        self,
        query: Query,
        *,
        deadline: float = NO_DEADLINE,
        check_cancelled: Callable[[], object] = never_cancel,
    ) -> RecallTrace:
        """Answer a query and return the intermediate results with the answer.

        Args:
            query: The request.
            deadline: `time.perf_counter` from which on no further channel is asked.
            check_cancelled: Called between the stages and while a filter is evaluated; an exception that it raises
                ends the request.

        Raises:
            QueryError, TooManyScansError, EngineUnavailableError: As for `recall`.
        """
        check_not_forked()
        _require_query(query)
        snapshot = self.live_index.snapshot
        times = [time.perf_counter()]
        plan = select_plan(snapshot.release, query)
        resolved_query = self._resolve(query, snapshot, plan)
        times.append(time.perf_counter())
        check_cancelled()
        filter_mask = (
            self._filter_cache.get_mask(query.where, snapshot, check_cancelled=check_cancelled) if query.where else None
        )
        times.append(time.perf_counter())
        check_cancelled()
        candidates = build_candidate_set(snapshot, resolved_query.excluded_rows, filter_mask)
        channel_query = ChannelQuery(snapshot, resolved_query, candidates, self._scan_limiter)
        k = min(query.k, max(1, candidates.eligible_count))  # the kernels count in 64 bits
        search_result = search_channels(channel_query, plan, k, deadline=deadline)
        times.append(time.perf_counter())
        ids = snapshot.to_ids(search_result.rows)
        times.append(time.perf_counter())
        stage_ms = {
            stage: round((end - start) * 1e3, 3) for stage, (start, end) in zip(STAGES, pairwise(times), strict=True)
        }
        answer = Recalled(
            release=snapshot.release.name,
            ids=ids,
            scores=search_result.scores.tolist(),
            exhausted=len(ids) == candidates.eligible_count,
            fallback=_get_fallback(resolved_query, plan, search_result),
            unknown=resolved_query.unknown,
            degraded=search_result.degraded,
            plan=_build_execution_plan(candidates, search_result, stage_ms) if query.explain else None,
        )
        return RecallTrace(snapshot, resolved_query, filter_mask, candidates, search_result, answer, stage_ms)

    def _resolve(self, query: Query, snapshot: Snapshot, plan: MergePlan) -> ResolvedQuery:
        """Resolve a query, and call `before_remote_search` as soon as it is known that the server will be asked."""
        is_remote = snapshot.release.remote_index is not None
        if is_remote and "vector" in plan.channels:
            self._before_remote_search()
        resolved_query = resolve_query(query, snapshot, needs_vector=not VECTOR_CHANNELS.isdisjoint(plan.channels))
        if is_remote and "similar" in plan.channels and must_search_index(snapshot, resolved_query.history):
            self._before_remote_search()
        return resolved_query


def _get_fallback(
    resolved_query: ResolvedQuery, plan: MergePlan, search_result: ChannelSearchResult
) -> Fallback | None:
    """Return what stood in for the user; popular items only where they answered in place of the vector."""
    if search_result.fallback is None and resolved_query.fallback == "popular" and "vector" not in plan.channels:
        return None
    return search_result.fallback or resolved_query.fallback


def _build_execution_plan(
    candidates: CandidateSet, search_result: ChannelSearchResult, stage_ms: Mapping[str, float]
) -> ExecutionPlan:
    vector_result = search_result.vector_result
    search_params = None if vector_result is None else vector_result.search_params
    return ExecutionPlan(
        path="channels" if vector_result is None else vector_result.route,
        matches=candidates.match_count,
        excluded=candidates.match_count - candidates.eligible_count,
        delta=len(candidates.delta_slots),
        effort=None if search_params is None else search_params.to_dict(),
        ms=stage_ms,
        channels=search_result.describe_channels(),
    )


def _require_query(query: object) -> None:
    if not isinstance(query, Query):
        raise QueryError(
            f"expected a vecall.Query, got {type(query).__name__}; Query.from_json reads a request of HTTP"
        )


def open_recaller(
    store: str | Path,
    *,
    release: str | None = None,
    writable: bool = False,
    max_delta_items: int = MAX_DELTA_ITEMS,
    auto_compact: bool = True,
    ranker: Ranker | NamedRanker | None = None,
) -> Recaller:
    """Open a store for recall after verifying every byte of the release. Loads no torch.

    Live changes in the store's journal are applied. Without `writable`, later changes are not seen.

    Args:
        store: Directory of the store.
        release: Name of the release; None for the current one.
        writable: Whether to take upserts and deletes. Only one process at a time may; closing the recaller ends this.
        max_delta_items: New items beside the release beyond which upserts of further ones are refused until a
            compaction.
        auto_compact: Whether a writable recaller compacts: when there are many changes it builds the next release in
            a child process of low priority, and switches to it.
        ranker: Ranks the candidates of `recommend` instead of the release's ranker: returns a score for each row of
            `Recaller.candidates`.

    Raises:
        StoreError: The store or the release does not exist.
        InvalidReleaseError: A file of the release is damaged, missing or unexpected.
        JournalCorruptedError: The journal is damaged.
        JournalIOError: The journal cannot be read or written.
        LockedError: `writable`, and another process is already writing; the error carries its pid.
        ForkError: This process was forked from one that had used vecall.
    """
    check_not_forked()
    live_index = LiveIndex.open(
        Store.open(Path(store)),
        release,
        writable=writable,
        max_delta_items=max_delta_items,
        auto_compact=auto_compact,
    )
    return Recaller(live_index, ranker=ranker)
