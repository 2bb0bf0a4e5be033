"""What the service tells Prometheus. Every metric is explained in docs/operations.md."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from vecall.live.snapshot import Snapshot
from vecall.recall.recaller import STAGES, Answered
from vecall.service.metrics.buffered import Counts, Distribution
from vecall.service.metrics.drift import Drift
from vecall.service.metrics.online_recall import LiveRecall

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_PASS_RATES = ((1.0, "1"), (0.5, "0.5"), (0.1, "0.1"), (0.01, "0.01"), (0.0, "0"))


class Telemetry:
    """The service's metrics, in a registry of their own.

    Args:
        view: gives what is served now.
        live_recall: ANN recall of real requests.
        drift: of real requests.
    """

    def __init__(self, view: Callable[[], Snapshot], live_recall: LiveRecall, drift: Drift) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each counter began, which nobody asks for
        self._registry = registry = CollectorRegistry()
        self._seconds = Distribution(
            "vecall_request_seconds",
            "From the request's first byte to its answer.",
            ["endpoint"],
            bounds=_SECONDS,
        )
        self._requests = Counts("vecall_requests", "Answers by HTTP status.", ["endpoint", "status"])
        self._stages = Distribution(
            "vecall_recall_stage_seconds",
            "A recall's time by stage.",
            ["stage"],
            bounds=_SECONDS,
            known=[(one,) for one in ("queue", *STAGES)],
        )
        self._recalls = Counts(
            "vecall_recalls",
            "Recalls by how they were found; pass_rate: at least this share of items satisfied `where`.",
            ["path", "pass_rate"],
        )
        self._fill = Distribution("vecall_recall_fill", "Items in the answer for each one asked for.", bounds=_SHARES)
        self._errors = Counter(
            "vecall_errors", "Answers that are no success, by error code.", ["code"], registry=registry
        )
        self._fallbacks = Counter("vecall_recall_fallbacks", "What stood in for a user.", ["kind"], registry=registry)
        self._swaps = Counter("vecall_swaps", "Releases gone over to, or refused.", ["result"], registry=registry)
        for result in ("done", "refused"):
            self._swaps.labels(result)
        ProcessCollector(registry=registry)
        for one in (self._seconds, self._requests, self._stages, self._recalls, self._fill):
            registry.register(one)
        registry.register(_Now(view, live_recall, drift))

    def answered(self, made: Answered, *, asked: int, queued_ms: float) -> None:
        """A recall of `asked` items was answered."""
        for stage, ms in (("queue", queued_ms), *made.ms.items()):
            self._stages.observe(ms / 1e3, stage)
        self._recalls.add(path_of(made), _pass_rate(made))
        self._fill.observe(len(made.recalled.ids) / asked)
        if made.recalled.fallback is not None:
            self._fallbacks.labels(made.recalled.fallback).inc()

    def ended(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        self._requests.add(endpoint, str(status))
        self._seconds.observe(seconds, endpoint)

    def failed(self, code: str) -> None:
        """A request had no success."""
        self._errors.labels(code).inc()

    def swapped(self, *, done: bool) -> None:
        """Another release was gone over to, or was refused."""
        self._swaps.labels("done" if done else "refused").inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def path_of(made: Answered) -> str:
    """How an answer was found; a search among some of the rows takes another effort than one among all."""
    filtered = made.found.path == "index" and (made.passing is not None or made.view.live is not None)
    return "index_filtered" if filtered else made.found.path


def _pass_rate(made: Answered) -> str:
    share = made.found.matches / max(len(made.view), 1)
    return next(label for least, label in _PASS_RATES if share >= least)


class _Now:
    """Gauges, read when they are asked for."""

    def __init__(self, view: Callable[[], Snapshot], live_recall: LiveRecall, drift: Drift) -> None:
        self._view, self._live_recall, self._drift = view, live_recall, drift

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        view = self._view()
        release = GaugeMetricFamily("vecall_release", "1 for the release that is served.", labels=["release", "engine"])
        release.add_metric([view.release.name, view.release.manifest.index.engine], 1.0)
        yield release
        for name, text, value in (
            ("vecall_items", "Items that can be answers.", len(view)),
            ("vecall_delta_items", "Live items beside the release.", view.delta.count),
            ("vecall_tombstones", "Items of the release that were deleted or replaced.", view.tombstones),
            ("vecall_journal_seq", "Number of the last change that is served.", view.seq),
            ("vecall_refused_changes", "Live changes that the release cannot take.", len(view.refused)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        yield from self._live_recall.collect()
        yield from self._drift.collect()
