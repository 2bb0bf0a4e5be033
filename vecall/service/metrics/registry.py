"""What the service tells Prometheus. Every metric is explained in docs/operations.md."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from vecall.live.snapshot import Snapshot
from vecall.recall.recaller import STAGES, RecallTrace
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
    """The service's metrics, in a registry of their own.

    Args:
        get_snapshot: gives what is served now.
        online_recall_monitor: ANN recall of real requests.
        drift_monitor: of real requests.
    """

    def __init__(
        self,
        get_snapshot: Callable[[], Snapshot],
        online_recall_monitor: OnlineRecallMonitor,
        drift_monitor: DriftMonitor,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter began, which nobody asks for
        self._registry = registry = CollectorRegistry()
        self._request_seconds = BufferedHistogram(
            "vecall_request_seconds",
            "From the request's first byte to its answer.",
            ["endpoint"],
            buckets=_DURATION_BUCKETS_SECONDS,
        )
        self._requests = BufferedCounter("vecall_requests", "Answers by HTTP status.", ["endpoint", "status"])
        self._stage_seconds = BufferedHistogram(
            "vecall_recall_stage_seconds",
            "A recall's time by stage.",
            ["stage"],
            buckets=_DURATION_BUCKETS_SECONDS,
            initial_labels=[(one,) for one in ("queue", *STAGES)],
        )
        self._recalls = BufferedCounter(
            "vecall_recalls",
            "Recalls by how they were found; pass_rate: at least this share of items satisfied `where`.",
            ["path", "pass_rate"],
        )
        self._fill_ratio = BufferedHistogram(
            "vecall_recall_fill", "Items in the answer for each one asked for.", buckets=_FILL_BUCKETS
        )
        self._errors = Counter(
            "vecall_errors", "Answers that are no success, by error code.", ["code"], registry=registry
        )
        self._fallbacks = Counter("vecall_recall_fallbacks", "What stood in for a user.", ["kind"], registry=registry)
        self._release_switches = Counter(
            "vecall_swaps", "Releases gone over to, or refused.", ["result"], registry=registry
        )
        for result in ("done", "refused"):
            self._release_switches.labels(result)
        ProcessCollector(registry=registry)
        for one in (self._request_seconds, self._requests, self._stage_seconds, self._recalls, self._fill_ratio):
            registry.register(one)
        registry.register(_StateGauges(get_snapshot, online_recall_monitor, drift_monitor))

    def observe_recall(self, trace: RecallTrace, *, k: int, queue_ms: float) -> None:
        """A recall of `k` items was answered."""
        for stage, ms in (("queue", queue_ms), *trace.stage_ms.items()):
            self._stage_seconds.observe(ms / 1e3, stage)
        self._recalls.inc(to_path_label(trace), _to_selectivity_label(trace))
        self._fill_ratio.observe(len(trace.answer.ids) / k)
        if trace.answer.fallback is not None:
            self._fallbacks.labels(trace.answer.fallback).inc()

    def observe_request(self, endpoint: str, status: int, duration_seconds: float) -> None:
        """A request has its answer."""
        self._requests.inc(endpoint, str(status))
        self._request_seconds.observe(duration_seconds, endpoint)

    def count_error(self, code: str) -> None:
        """A request had no success."""
        self._errors.labels(code).inc()

    def count_release_switch(self, *, succeeded: bool) -> None:
        """Another release was gone over to, or was refused."""
        self._release_switches.labels("done" if succeeded else "refused").inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def to_path_label(trace: RecallTrace) -> str:
    """How an answer was found; a search among some of the rows takes another effort than one among all."""
    filtered = trace.search_result.route == "index" and (
        trace.filter_mask is not None or trace.snapshot.live_base_rows is not None
    )
    return "index_filtered" if filtered else trace.search_result.route


def _to_selectivity_label(trace: RecallTrace) -> str:
    share = trace.search_result.match_count / max(len(trace.snapshot), 1)
    return next(label for least, label in _SELECTIVITY_BUCKETS if share >= least)


class _StateGauges:
    """Gauges, read when they are asked for."""

    def __init__(
        self,
        get_snapshot: Callable[[], Snapshot],
        online_recall_monitor: OnlineRecallMonitor,
        drift_monitor: DriftMonitor,
    ) -> None:
        self._get_snapshot, self._online_recall_monitor, self._drift_monitor = (
            get_snapshot,
            online_recall_monitor,
            drift_monitor,
        )

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        view = self._get_snapshot()
        release = GaugeMetricFamily("vecall_release", "1 for the release that is served.", labels=["release", "engine"])
        release.add_metric([view.release.name, view.release.manifest.index.engine], 1.0)
        yield release
        for name, text, value in (
            ("vecall_items", "Items that can be answers.", len(view)),
            ("vecall_delta_items", "Live items beside the release.", view.delta.live_count),
            ("vecall_tombstones", "Items of the release that were deleted or replaced.", view.tombstone_count),
            ("vecall_journal_seq", "Number of the last change that is served.", view.seq),
            ("vecall_refused_changes", "Live changes that the release cannot take.", len(view.rejected_seqs)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield from self._online_recall_monitor.collect()
        yield from self._drift_monitor.collect()
