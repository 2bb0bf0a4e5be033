"""A serving process without HTTP: recalls, writes, release switches, and their metrics."""

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import Any

from vecall.errors import EngineUnavailableError, InvalidReleaseError, VecallError
from vecall.index.search_deadline import limit_search_time
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import PeerSettings
from vecall.live.snapshot import Snapshot
from vecall.ranking.ranker import ColumnRanker, NamedRanker
from vecall.recall.diversity import MarginalRelevance
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller
from vecall.recall.recommend import RecommendTrace
from vecall.recall.recommend_query import RecommendRequest
from vecall.recall.scan_limiter import ScanLimiter
from vecall.recall.trace import RecallTrace
from vecall.release.release import Release
from vecall.release.store import Store
from vecall.service.execution import (
    BoundedThreadPool,
    EventLoopExecutor,
    RequestDeadline,
    limit_faiss_to_single_thread,
    reduce_gil_switch_interval,
    start_daemon_thread,
)
from vecall.service.metrics.drift import DriftMonitor
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.metrics.online_recall import OnlineRecallMonitor
from vecall.service.metrics.registry import ServiceMetrics, to_path_label
from vecall.service.parsing import parse_delete, parse_recall, parse_upsert
from vecall.service.ranker_loading import load_ranker
from vecall.service.release_watcher import ReleaseWatcher
from vecall.service.remote_search_pool import RemoteSearchPool, enter_remote_search
from vecall.service.settings import ServeSettings

logger = logging.getLogger(__name__)

_MAX_UI_QUEUE, _MAX_WRITE_QUEUE, _MAX_SWITCH_QUEUE = 16, 64, 2
_MAX_LISTED_CHANGES = 5
_MAX_INLINE_CANDIDATES = 2_000  # ranked in the event loop: 500 take half a recall's time
_MAX_INLINE_PRODUCTS = 20_000  # of vectors, by MMR
_MIN_DEADLINE_MS = 1e-3  # of a request whose deadline passed while it waited: `deadline_ms` is above 0
_INTERACTIVE_TIMEOUT_MS = 60_000.0  # of people, and of clients that write
_REMOTE_SEARCH_SHARE = 0.8  # of the time that a request has left; the rest is for another answer, if it fails
_READINESS_RETRY_SECONDS = 0.5  # while the server of an index does not answer


class RecallService:
    """Serves one store: open it, start it, close it at the end.

    Attributes:
        settings: how to serve.
        store: what is served.
        recaller: answers queries.
        recall_executor: runs recalls, and recommendations that take not much longer.
        recommend_pool: runs recommendations that take too long for the event loop.
        remote_search_pool: runs recalls and recommendations that wait for the server of an index.
        ui_pool: renders pages, whose readers wait longer than machines do.
        write_pool: runs upserts and deletes, one at a time.
        switch_pool: loads and activates releases, beside writes.
        service_metrics: counts all of it.
        not_ready_reason: why recalls are not answered yet; None once they are.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: Store,
        live_index: LiveIndex,
        peers: WorkerPeers | None = None,
        ranker: NamedRanker | None = None,
    ) -> None:
        self.settings, self.store, self._peers = settings, store, peers
        scans = settings.max_concurrent_scans
        self.recall_executor = EventLoopExecutor(
            settings.max_queue, settings.deadline_ms, offload_threads=scans, thread_name_prefix="vecall-scan"
        )
        scan_limiter = ScanLimiter(scans, offload=self.recall_executor.offload)
        self.recaller = Recaller(
            live_index,
            scan_limiter=scan_limiter,
            ranker=ranker,
            ranking_slots=BoundedSemaphore(settings.max_concurrent_rankings),
            before_remote_search=enter_remote_search,
        )
        self.recommend_pool = BoundedThreadPool(
            settings.max_concurrent_rankings,
            settings.max_queue,
            settings.deadline_ms,
            thread_name_prefix="vecall-recommend",
        )
        self.remote_search_pool = RemoteSearchPool(
            settings.max_concurrent_remote_searches,
            settings.max_queue,
            settings.deadline_ms,
            thread_name_prefix="vecall-remote",
        )
        self.ui_pool = _make_pool("vecall-ui", _MAX_UI_QUEUE)
        self.write_pool = _make_pool("vecall-writes", _MAX_WRITE_QUEUE)
        self.switch_pool = _make_pool("vecall-switches", _MAX_SWITCH_QUEUE)
        self.online_recall_monitor = OnlineRecallMonitor(settings.recall_sample_rate)
        self._drift_monitor = DriftMonitor()
        self.service_metrics = ServiceMetrics(
            lambda: live_index.snapshot, self.online_recall_monitor, self._drift_monitor
        )
        self.not_ready_reason: str | None = "the golden queries have not been verified yet"
        self._release_watcher = ReleaseWatcher(
            store, live_index, settings.poll_seconds, on_switch=self._record_switch, on_poll=self._after_poll
        )
        live_index.on_compaction_served = partial(self._record_switch, True)
        self._refresh_error: str | None = None
        self._closing = Event()

    @classmethod
    def open(cls, store_path: Path, settings: ServeSettings, *, peers: WorkerPeers | None = None) -> "RecallService":
        """Verify and open a store's current release with its live changes.

        Args:
            store_path: directory of the store.
            settings: how to serve.
            peers: the other workers of this service, if there are any.

        Raises:
            StoreError: there is no such store, or no current release.
            InvalidReleaseError: a file is damaged.
            JournalCorruptedError, JournalIOError: the journal cannot be used.
            LockedError: `writable`, and another process writes.
            ConfigError: `settings.ranker` cannot be loaded.
        """
        ranker = None if settings.ranker is None else load_ranker(settings.ranker)
        store = Store.open(store_path)
        live_index = LiveIndex.open(
            store,
            None,
            writable=settings.writable,
            max_delta_items=settings.max_delta_items,
            keep_previous=True,
            peers=_build_peer_settings(settings, peers),
        )
        return cls(settings, store, live_index, peers, ranker)

    @property
    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self.recaller.live_index.snapshot

    @property
    def degraded_reason(self) -> str | None:
        """Why this process does not serve as it should; None if it does."""
        return (
            self.not_ready_reason
            or self._release_watcher.switch_error
            or self._refresh_error
            or self._describe_engine()
            or self._describe_rejected_changes()
        )

    def _describe_engine(self) -> str | None:
        remote_index = self.snapshot.release.remote_index
        return None if remote_index is None else remote_index.unavailable_reason

    def _describe_rejected_changes(self) -> str | None:
        rejected = self.snapshot.rejected_seqs
        if not rejected:
            return None
        seqs = ", ".join(map(str, sorted(rejected.values())[:_MAX_LISTED_CHANGES]))
        return (
            f"release {self.snapshot.release.name} cannot apply {len(rejected)} live changes (seq {seqs}): upsert "
            "these items again or delete them, or see `vecall journal list`"
        )

    def start(self) -> None:
        """Verify the golden queries, then answer; start following the store and sampling recalls.

        Must be called by the thread that will answer recalls.
        """
        limit_faiss_to_single_thread()
        reduce_gil_switch_interval()
        # A worker first checks before it accepts connections that a ready one could answer.
        if self._peers is None or not self._check_readiness(self.snapshot.release):
            start_daemon_thread("vecall-golden", self._run_readiness_check)
        start_daemon_thread("vecall-watcher", self._release_watcher.run)
        start_daemon_thread("vecall-online-recall", self.online_recall_monitor.run)

    def close(self) -> None:
        """Stop background work, wait for running requests, and release the store."""
        self._closing.set()
        self.not_ready_reason = "the service is shutting down"
        self._release_watcher.stop()
        self.online_recall_monitor.stop()
        for pool in (
            self.recall_executor,
            self.recommend_pool,
            self.remote_search_pool,
            self.ui_pool,
            self.write_pool,
            self.switch_pool,
        ):
            pool.close()
        self.recaller.close()

    def recall(self, body: bytes, deadline: RequestDeadline) -> RecallTrace:
        """Answer the body of a recall.

        Raises:
            QueryError: it is invalid.
            OverloadedError: the deadline passed, or too many scans run.
            EngineUnavailableError: the server that holds the index does not answer in time, and nothing else may.
        """
        return self.run_query(parse_recall(body, self.settings.limits), deadline)

    def run_query(self, query: Query, deadline: RequestDeadline) -> RecallTrace:
        """Answer a query, and record its metrics."""
        deadline.raise_if_expired()
        self._refresh_from_journal()
        with self._limit_remote_search(deadline):
            trace = self.recaller.recall_with_trace(query, check_cancelled=deadline.raise_if_expired)
        self._observe_recall(trace, query, k=query.k, queue_ms=deadline.queue_ms)
        return trace

    def select_recommend_executor(self, request: RecommendRequest) -> EventLoopExecutor | BoundedThreadPool:
        """Return what runs a recommendation: the event loop, as for recalls, if it takes not much longer than they do.

        The release's ranker does; for one of the caller's own, more candidates, or a longer list by MMR, nobody knows.
        """
        ranker, n_candidates = self.recaller.ranker, max(request.k, request.candidates)
        is_fast = ranker is None or isinstance(ranker.ranker, ColumnRanker)
        n_products = request.k * n_candidates if isinstance(request.diversity, MarginalRelevance) else 0
        is_short = is_fast and n_candidates <= _MAX_INLINE_CANDIDATES and n_products <= _MAX_INLINE_PRODUCTS
        return self.recall_executor if is_short else self.recommend_pool

    def run_recommendation(self, request: RecommendRequest, deadline: RequestDeadline) -> RecommendTrace:
        """Answer a request for a final list, and record its metrics.

        `deadline_ms` counts from the request's arrival. Where ranking would miss the service's own deadline, the order
        of recall answers, too.

        Raises:
            QueryError, OverloadedError, EngineUnavailableError: as for `recall`.
        """
        deadline.raise_if_expired()
        self._refresh_from_journal()
        if request.deadline_ms is not None:
            request = replace(request, deadline_ms=max(request.deadline_ms - deadline.queue_ms, _MIN_DEADLINE_MS))
        with self._limit_remote_search(deadline):
            trace = self.recaller.recommend_with_trace(
                request,
                deadline=deadline.expires_at,
                check_cancelled=deadline.raise_if_expired,
                needs_slot=self.select_recommend_executor(request) is not self.recall_executor,
            )
        candidate_count = max(request.k, request.candidates)
        self._observe_recall(trace.recall, request.query, k=candidate_count, queue_ms=deadline.queue_ms)
        self.service_metrics.observe_recommendation(trace)
        return trace

    @contextmanager
    def _limit_remote_search(self, deadline: RequestDeadline) -> Iterator[None]:
        """Let the server of an index answer so early that another answer is in time, and count its failures."""
        remaining_seconds = deadline.expires_at - (now := time.perf_counter())
        try:
            with limit_search_time(now + _REMOTE_SEARCH_SHARE * remaining_seconds):
                yield
        except EngineUnavailableError:
            self.service_metrics.count_engine_failure()
            raise

    def _observe_recall(self, trace: RecallTrace, query: Query, *, k: int, queue_ms: float) -> None:
        self.service_metrics.observe_recall(trace, k=k, queue_ms=queue_ms)
        self._drift_monitor.observe(trace, query, current_release=self.snapshot.release)
        if trace.snapshot.release is self.snapshot.release:
            self.online_recall_monitor.maybe_sample(to_path_label(trace), trace)

    def upsert(self, body: bytes) -> dict[str, Any]:
        """Apply the body of an upsert; returns the response's content."""
        items, partial = parse_upsert(body, self.settings.limits)
        return asdict(self.recaller.live_index.upsert(items, partial=partial))

    def delete(self, body: bytes) -> dict[str, Any]:
        """Apply the body of a deletion; returns the response's content."""
        return asdict(self.recaller.live_index.delete(parse_delete(body, self.settings.limits)))

    def activate(self, name: str) -> dict[str, Any]:
        """Verify a release, make it the store's current one and serve it.

        Raises:
            StoreError, InvalidReleaseError: it cannot be served; the served release stays.
        """
        try:
            previous = self.recaller.activate(name)
        except VecallError:
            self._record_switch(False)
            raise
        self._record_switch(True)
        return {"release": name, "previous": previous}

    def list_releases(self) -> dict[str, Any]:
        """All releases of the store, newest first."""
        current = self.store.find_current()
        releases = [manifest.to_summary() for manifest in self.store.list_releases(skip_damaged=True)]
        return {"current": None if current is None else current.release, "releases": releases}

    def render_metrics(self) -> bytes:
        """Metrics in Prometheus text format, of all workers of this service."""
        metrics = self.service_metrics.render()
        return metrics if self._peers is None else self._peers.merge_metrics(metrics)

    def _after_poll(self) -> None:
        self._refresh_from_journal()
        if self._peers is not None:
            with suppress(OSError):  # the other workers then report old metrics of this one
                self._peers.publish_metrics(self.service_metrics.render())

    def _refresh_from_journal(self) -> None:
        """Apply what other processes wrote. If the journal cannot be read, serve on; `degraded_reason` says so."""
        try:
            self.recaller.live_index.refresh()
        except VecallError as error:
            if self._refresh_error is None:
                logger.warning("cannot apply changes by other processes: %s", error)
            self._refresh_error = str(error)
        else:
            self._refresh_error = None

    def _run_readiness_check(self) -> None:
        release = self.snapshot.release
        while not self._check_readiness(release) and self._wait_for_engine(release):
            pass

    def _wait_for_engine(self, release: Release) -> bool:
        """Wait until the server has loaded the index of a release, or another one is served; False at the end."""
        while not self._closing.wait(_READINESS_RETRY_SECONDS):
            if self.snapshot.release is not release or release.remote_index is None:
                return True
            with suppress(EngineUnavailableError):
                release.remote_index.load()
                return True
        return False

    def _check_readiness(self, release: Release) -> bool:
        """Verify the golden queries of the release that was served first; returns whether there is nothing left to do.

        While the server of its index does not answer, the service is not ready, unless other items may answer.
        """
        if self.snapshot.release is not release:
            return True  # another release was verified meanwhile
        try:
            release.check_golden_queries()
        except EngineUnavailableError as error:
            if release.remote_index is not None and release.remote_index.when_down != "refuse":
                self._become_ready(release)
            elif self.snapshot.release is release:
                self.not_ready_reason = str(error)
            return False
        except InvalidReleaseError as error:
            if self.snapshot.release is release:
                self.not_ready_reason = str(error)
            logger.critical("not ready: %s", error)
            return True
        release.mark_current()
        self._become_ready(release)
        return True

    def _become_ready(self, release: Release) -> None:
        if self.not_ready_reason is None or self._closing.is_set():
            return
        gc.collect()
        gc.freeze()  # the loaded release stays: a full collection over it would pause requests for 60 ms
        self.not_ready_reason = None
        logger.info("ready: serving release %s, %d items", release.name, len(self.snapshot))

    def _record_switch(self, succeeded: bool) -> None:
        """Count an attempt to switch releases."""
        self.service_metrics.count_release_switch(succeeded=succeeded)
        if succeeded:
            self.not_ready_reason = None  # the new release is verified, whatever was wrong with the first


def _make_pool(name: str, max_queue: int) -> BoundedThreadPool:
    return BoundedThreadPool(1, max_queue, _INTERACTIVE_TIMEOUT_MS, thread_name_prefix=name)


def _build_peer_settings(settings: ServeSettings, peers: WorkerPeers | None) -> PeerSettings | None:
    """Other processes that write: the workers of this service, or a writer beside this read-only process."""
    if peers is not None:
        return PeerSettings(peers.write_lock_path, settings.workers)
    return None if settings.writable else PeerSettings()
