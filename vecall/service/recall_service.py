"""What a serving process does, apart from HTTP: answers in threads, changes, swaps, and what is told of them."""

import gc
import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vecall.errors import InvalidReleaseError, VecallError
from vecall.live.live_index import LiveIndex
from vecall.live.live_state import PeerSettings
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, RecallTrace
from vecall.recall.scan_limiter import ScanLimiter
from vecall.release.store import Store
from vecall.service.line import EventLoopExecutor
from vecall.service.metrics.drift import DriftMonitor
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.metrics.online_recall import OnlineRecallMonitor
from vecall.service.metrics.registry import ServiceMetrics, to_path_label
from vecall.service.parsing import parse_delete, parse_recall, parse_upsert
from vecall.service.pool import BoundedThreadPool, RequestDeadline
from vecall.service.release_watcher import ReleaseWatcher
from vecall.service.settings import ServeSettings
from vecall.service.threads import limit_faiss_to_one_thread, reduce_gil_switch_interval, start_daemon_thread

logger = logging.getLogger(__name__)

_MAX_UI_QUEUE, _MAX_WRITE_QUEUE, _MAX_SWITCH_QUEUE = 16, 64, 2  # requests
_MAX_LISTED_CHANGES = 5
_INTERACTIVE_TIMEOUT_MS = 60_000.0  # of people, and of those who change something


class RecallService:
    """A store being served. Open it, start it, and close it at the end.

    Attributes:
        settings: how.
        store: what is served.
        recaller: answers.
        recall_executor: where recalls are worked on.
        ui_pool: where what people look at is made; they wait longer than machines do.
        write_pool: where upserts and deletes are, one after another.
        switch_pool: where releases are prepared and gone over to, beside changes.
        service_metrics: what is told of all that.
        not_ready_reason: why recalls are not answered yet; None once they are.
    """

    def __init__(
        self, settings: ServeSettings, store: Store, live_index: LiveIndex, peers: WorkerPeers | None = None
    ) -> None:
        self.settings, self.store, self._peers = settings, store, peers
        self.recall_executor = EventLoopExecutor(
            settings.max_queue,
            settings.deadline_ms,
            offload_threads=settings.max_concurrent_scans,
            thread_name_prefix="vecall-scan",
        )
        self.recaller = Recaller(
            live_index, scan_limiter=ScanLimiter(settings.max_concurrent_scans, offload=self.recall_executor.offload)
        )
        self.ui_pool = BoundedThreadPool(1, _MAX_UI_QUEUE, _INTERACTIVE_TIMEOUT_MS, thread_name_prefix="vecall-pages")
        self.write_pool = BoundedThreadPool(
            1, _MAX_WRITE_QUEUE, _INTERACTIVE_TIMEOUT_MS, thread_name_prefix="vecall-changes"
        )
        self.switch_pool = BoundedThreadPool(
            1, _MAX_SWITCH_QUEUE, _INTERACTIVE_TIMEOUT_MS, thread_name_prefix="vecall-swaps"
        )
        self.online_recall_monitor, self._drift_monitor = (
            OnlineRecallMonitor(settings.recall_sample_rate),
            DriftMonitor(),
        )
        self.service_metrics = ServiceMetrics(
            lambda: live_index.snapshot, self.online_recall_monitor, self._drift_monitor
        )
        self.not_ready_reason: str | None = "the golden queries have not been asked yet"
        self._release_watcher = ReleaseWatcher(
            store, live_index, settings.poll_seconds, self._record_switch, self._after_poll
        )
        self._refresh_error: str | None = None

    @classmethod
    def open(cls, store_path: Path, settings: ServeSettings, *, peers: WorkerPeers | None = None) -> "RecallService":
        """Verify and open a store's current release, with its live changes.

        Args:
            store_path: the store's folder.
            settings: how to serve it.
            peers: this process among others that serve it too.

        Raises:
            StoreError: there is no such store, or no current release.
            ReleaseRefused: a file is damaged.
            JournalDamaged, JournalFailed: the journal cannot be used.
            Locked: `writable`, and another process writes.
        """
        store = Store.open(store_path)
        live = LiveIndex.open(
            store,
            None,
            writable=settings.writable,
            max_delta_items=settings.max_delta_items,
            keep_previous=True,
            peers=_build_peer_settings(settings, peers),
        )
        return cls(settings, store, live, peers)

    @property
    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self.recaller.live_index.snapshot

    @property
    def degraded_reason(self) -> str | None:
        """Why this process is not as it should be; None where it is."""
        return (
            self.not_ready_reason
            or self._release_watcher.switch_error
            or self._refresh_error
            or self._describe_rejected_changes()
        )

    def _describe_rejected_changes(self) -> str | None:
        refused = self.snapshot.rejected_seqs
        if not refused:
            return None
        numbers = ", ".join(map(str, sorted(refused.values())[:_MAX_LISTED_CHANGES]))
        return (
            f"release {self.snapshot.release.name} cannot take {len(refused)} live changes ({numbers}): give these items "
            "again, or see `vecall journal list`"
        )

    def start(self) -> None:
        """Ask the golden queries, and from then on answer, follow the store and judge some answers.

        Called by the thread that is to answer.
        """
        limit_faiss_to_one_thread()
        reduce_gil_switch_interval()
        if self._peers is None:
            start_daemon_thread("vecall-golden", self._run_readiness_check)
        else:
            self._run_readiness_check()  # before a request comes here, which another process might have answered meanwhile
        start_daemon_thread("vecall-watcher", self._release_watcher.run)
        start_daemon_thread("vecall-live-recall", self.online_recall_monitor.run)

    def close(self) -> None:
        """End what was begun, then let the store go."""
        self.not_ready_reason = "the service ends"
        self._release_watcher.stop()
        self.online_recall_monitor.stop()
        for pool in (self.recall_executor, self.ui_pool, self.write_pool, self.switch_pool):
            pool.close()
        self.recaller.close()

    def recall(self, body: bytes, deadline: RequestDeadline) -> RecallTrace:
        """Answer a recall's body.

        Raises:
            QueryError: it is wrong.
            Overloaded: its deadline passed, or too many scans run.
        """
        return self.run_query(parse_recall(body, self.settings.limits), deadline)

    def run_query(self, query: Query, deadline: RequestDeadline) -> RecallTrace:
        """Answer a query, and remember how it went."""
        deadline.raise_if_expired()
        self._refresh_from_journal()
        made = self.recaller.recall_with_trace(query, check_cancelled=deadline.raise_if_expired)
        self.service_metrics.observe_recall(made, k=query.k, queue_ms=deadline.queue_ms)
        self._drift_monitor.observe(made, query, current_release=self.snapshot.release)
        self.online_recall_monitor.maybe_sample(to_path_label(made), made)
        return made

    def upsert(self, body: bytes) -> dict[str, Any]:
        """Take an upsert's body."""
        items, partial = parse_upsert(body, self.settings.limits)
        return asdict(self.recaller.live_index.upsert(items, partial=partial))

    def delete(self, body: bytes) -> dict[str, Any]:
        """Take a deletion's body."""
        return asdict(self.recaller.live_index.delete(parse_delete(body, self.settings.limits)))

    def activate(self, name: str) -> dict[str, Any]:
        """Go over to another release of the store, and make it the current one.

        Raises:
            StoreError, ReleaseRefused: it cannot be served; what is served stays.
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
        listed = [manifest.to_summary() for manifest in self.store.list_releases(skip_damaged=True)]
        return {"current": None if current is None else current.release, "releases": listed}

    def render_metrics(self) -> bytes:
        """For Prometheus, of all processes that answer on this port."""
        text = self.service_metrics.render()
        return text if self._peers is None else self._peers.merge_metrics(text)

    def _after_poll(self) -> None:
        self._refresh_from_journal()
        if self._peers is not None:
            with suppress(OSError):  # the others then lack these metrics
                self._peers.publish_metrics(self.service_metrics.render())

    def _refresh_from_journal(self) -> None:
        """What other processes wrote; if it cannot be read, what is known is served on, and `problem` says so."""
        try:
            self.recaller.live_index.refresh()
        except VecallError as error:
            if self._refresh_error is None:
                logger.warning("changes by other processes are not seen: %s", error)
            self._refresh_error = str(error)
        else:
            self._refresh_error = None

    def _run_readiness_check(self) -> None:
        release = self.snapshot.release
        try:
            release.check_golden_queries()
        except InvalidReleaseError as error:
            if self.snapshot.release is release:  # else another one has proved itself meanwhile
                self.not_ready_reason = str(error)
            logger.critical("not ready: %s", error)
            return
        gc.collect()
        gc.freeze()  # what was loaded stays: to look through all of it now and then would stop requests for 60 ms
        self.not_ready_reason = None
        logger.info("ready: release %s, %d items", self.snapshot.release.name, len(self.snapshot))

    def _record_switch(self, succeeded: bool) -> None:
        """After an attempt to go over to another release."""
        self.service_metrics.count_release_switch(succeeded=succeeded)
        if succeeded:
            self.not_ready_reason = None  # it has proved itself, whatever the first one did


def _build_peer_settings(settings: ServeSettings, peers: WorkerPeers | None) -> PeerSettings | None:
    """Who else serves the store: processes of this port, or, where this one only reads, perhaps a writer."""
    if peers is not None:
        return PeerSettings(peers.write_lock_path, settings.workers)
    return None if settings.writable else PeerSettings()
