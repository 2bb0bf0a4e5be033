"""Prometheus metrics of the service; docs/operations.md explains each of them."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from vecall.live.snapshot import Snapshot
from vecall.recall.engine_fallback import DEGRADED_ENGINE
from vecall.recall.recommend import DEGRADED_RANKER, RANKING_STAGE, RecommendTrace
from vecall.recall.trace import STAGES, RecallTrace
from vecall.service.metrics.buffered import BufferedCounter, BufferedHistogram
from vecall.service.metrics.drift import DriftMonitor
from vecall.service.metrics.online_recall import OnlineRecallMonitor

_DURATION_BUCKETS_SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    5.0,
)
_FILL_BUCKETS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_SELECTIVITY_BUCKETS = ((1.0, "1"), (0.5, "0.5"), (0.1, "0.1"), (0.01, "0.01"), (0.0, "0"))


class ServiceMetrics:
    """All metrics of a serving process, in a registry of their own.

    Args:
        get_snapshot: returns what is served now.
        online_recall_monitor: exports online ANN recall.
        drift_monitor: exports drift.
    """

    def __init__(
        self,
        get_snapshot: Callable[[], Snapshot],
        online_recall_monitor: OnlineRecallMonitor,
        drift_monitor: DriftMonitor,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # start time of each counter: doubles the output
        self._registry = registry = CollectorRegistry()
        self._request_seconds = BufferedHistogram(
            "vecall_http_request_duration_seconds",
            "Seconds from the request's first byte to its response.",
            ["endpoint"],
            buckets=_DURATION_BUCKETS_SECONDS,
        )
        self._requests = BufferedCounter(
            "vecall_http_requests", "HTTP requests by endpoint and status.", ["endpoint", "status"]
        )
        self._stage_seconds = BufferedHistogram(
            "vecall_recall_stage_duration_seconds",
            "Seconds of a recall by stage.",
            ["stage"],
            buckets=_DURATION_BUCKETS_SECONDS,
            initial_labels=[(stage,) for stage in ("queue", *STAGES, RANKING_STAGE)],
        )
        self._recalls = BufferedCounter(
            "vecall_recalls",
            "Recalls by execution path; selectivity: at least this share of the items satisfied `where`.",
            ["path", "selectivity"],
        )
        self._fill_ratio = BufferedHistogram(
            "vecall_recall_fill_ratio", "Items returned, divided by k.", buckets=_FILL_BUCKETS
        )
        self._recommendations = BufferedCounter(
            "vecall_recommendations", "Final lists by the ranker that ordered them; recall: none did.", ["ranker"]
        )
        self._create_counters(registry)
        ProcessCollector(registry=registry)
        for metric in (
            self._request_seconds,
            self._requests,
            self._stage_seconds,
            self._recalls,
            self._recommendations,
            self._fill_ratio,
        ):
            registry.register(metric)
        registry.register(_StateGauges(get_snapshot))
        registry.register(online_recall_monitor)
        registry.register(drift_monitor)

    def _create_counters(self, registry: CollectorRegistry) -> None:
        """Create the counters of what happens seldom, which need no buffer."""
        self._errors = Counter("vecall_errors", "Error responses by error code.", ["code"], registry=registry)
        self._fallbacks = Counter(
            "vecall_recall_fallbacks",
            "Recalls of unknown users by what replaced the user.",
            ["kind"],
            registry=registry,
        )
        self._degraded = Counter(
            "vecall_degraded_answers",
            "Answers that lack a part because it failed or the deadline passed: a channel, the engine, or the ranker.",
            ["part"],
            registry=registry,
        )
        self._engine_failures = Counter(
            "vecall_engine_failures",
            "Searches that the server of the index did not answer, or was not asked for while it is unavailable.",
            registry=registry,
        )
        self._release_switches = Counter(
            "vecall_release_switches", "Attempts to switch to another release.", ["result"], registry=registry
        )
        for result in ("success", "failure"):
            self._release_switches.labels(result)

    def observe_recall(self, trace: RecallTrace, *, k: int, queue_ms: float) -> None:
        """Record an answered recall.

        Args:
            trace: how it was answered.
            k: number of items that were requested.
            queue_ms: how long it waited.
        """
        for stage, ms in (("queue", queue_ms), *trace.stage_ms.items()):
            self._stage_seconds.observe(ms / 1e3, stage)
        self._recalls.inc(to_path_label(trace), _to_selectivity_label(trace))
        self._fill_ratio.observe(len(trace.answer.ids) / k)
        if trace.answer.fallback is not None:
            self._fallbacks.labels(trace.answer.fallback).inc()
        for part in trace.answer.degraded:
            self._degraded.labels(part).inc()
        if DEGRADED_ENGINE in trace.answer.degraded:
            self.count_engine_failure()

    def observe_recommendation(self, trace: RecommendTrace) -> None:
        """Record an answered recommendation; its recall is recorded by `observe_recall`."""
        self._stage_seconds.observe(trace.rank_ms / 1e3, RANKING_STAGE)
        self._recommendations.inc(trace.answer.ranker)
        if DEGRADED_RANKER in trace.answer.degraded:
            self._degraded.labels(DEGRADED_RANKER).inc()

    def observe_request(self, endpoint: str, status: int, duration_seconds: float) -> None:
        """Record an HTTP request that was answered."""
        self._requests.inc(endpoint, str(status))
        self._request_seconds.observe(duration_seconds, endpoint)

    def count_error(self, code: str) -> None:
        """Count an error response."""
        self._errors.labels(code).inc()

    def count_engine_failure(self) -> None:
        """Count a search that the server of the index did not answer."""
        self._engine_failures.inc()

    def count_release_switch(self, *, succeeded: bool) -> None:
        """Count an attempt to switch releases."""
        self._release_switches.labels("success" if succeeded else "failure").inc()

    def render(self) -> bytes:
        """All metrics in Prometheus text format."""
        return generate_latest(self._registry)


def to_path_label(trace: RecallTrace) -> str:
    """The execution path; searches of a part of the index are told apart, as they use other search parameters."""
    vector_result = trace.search_result.vector_result
    if vector_result is None:
        return "channels"
    filtered = vector_result.route == "index" and (
        trace.filter_mask is not None or trace.snapshot.live_base_rows is not None
    )
    return "index_filtered" if filtered else vector_result.route


def _to_selectivity_label(trace: RecallTrace) -> str:
    selectivity = trace.candidates.match_count / max(len(trace.snapshot), 1)
    return next(label for lower_bound, label in _SELECTIVITY_BUCKETS if selectivity >= lower_bound)


class _StateGauges:
    """Gauges of what is served, read on scrape."""

    def __init__(self, get_snapshot: Callable[[], Snapshot]) -> None:
        self._get_snapshot = get_snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        snapshot = self._get_snapshot()
        release = GaugeMetricFamily(
            "vecall_release_info", "1, with the served release and its engine.", labels=["release", "engine"]
        )
        release.add_metric([snapshot.release.name, snapshot.release.manifest.index.engine], 1.0)
        yield release
        remote_index = snapshot.release.remote_index
        is_available = remote_index is None or remote_index.unavailable_reason is None
        for name, text, value in (
            (
                "vecall_engine_available",
                "0 while searches are refused because the server of the index did not answer, else 1.",
                is_available,
            ),
            ("vecall_items", "Items that can be recalled.", len(snapshot)),
            ("vecall_delta_items", "Live items beyond the release.", snapshot.delta.live_count),
            (
                "vecall_tombstoned_items",
                "Items of the release that were deleted or replaced.",
                snapshot.tombstone_count,
            ),
            ("vecall_journal_seq", "Sequence number of the last live change that is served.", snapshot.seq),
            ("vecall_rejected_changes", "Live changes that the release cannot apply.", len(snapshot.rejected_seqs)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
