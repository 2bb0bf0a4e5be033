"""Counters and histograms that buffer observations and aggregate them on scrape.

A metric of `prometheus_client` takes a lock and a dozen calls per observation. A recall makes seven observations, right
after a search that has evicted their memory from the processor's caches; they took a tenth of its time
(docs/decisions/0011). Here an observation is one append to a deque.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

ObservationT = TypeVar("ObservationT")
LabelValues = tuple[str, ...]

_MAX_BUFFERED = 4_096  # observations; aggregating them takes about a millisecond


class _BufferedMetric(ABC, Generic[ObservationT]):
    """Base of buffered metrics: a custom collector of `prometheus_client`.

    Args:
        name: metric name.
        documentation: help text.
        label_names: label names.
    """

    def __init__(self, name: str, documentation: str, label_names: Sequence[str] = ()) -> None:
        self._name, self._documentation, self._label_names = name, documentation, label_names
        self._pending: deque[ObservationT] = deque()
        self._lock = Lock()  # of the aggregate; appending to a deque is atomic

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family, with all observations so far."""
        with self._lock:
            self._aggregate(self._drain())
            yield self._to_family()

    def _append(self, observation: ObservationT) -> None:
        self._pending.append(observation)
        if len(self._pending) >= _MAX_BUFFERED:
            with self._lock:
                self._aggregate(self._drain())

    def _drain(self) -> list[ObservationT]:
        return [self._pending.popleft() for _ in range(len(self._pending))]  # other threads may append meanwhile

    @abstractmethod
    def _aggregate(self, observations: list[ObservationT]) -> None: ...

    @abstractmethod
    def _to_family(self) -> Metric: ...


class BufferedCounter(_BufferedMetric[LabelValues]):
    """Counter that buffers increments and aggregates on scrape."""

    def __init__(self, name: str, documentation: str, label_names: Sequence[str]) -> None:
        super().__init__(name, documentation, label_names)
        self._counts: Counter[LabelValues] = Counter()

    def inc(self, *label_values: str) -> None:
        """Add 1."""
        self._append(label_values)

    def _aggregate(self, observations: list[LabelValues]) -> None:
        self._counts.update(observations)

    def _to_family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._label_names)
        for label_values, count in sorted(self._counts.items()):
            family.add_metric(label_values, count)
        return family


class BufferedHistogram(_BufferedMetric[tuple[LabelValues, float]]):
    """Histogram that buffers observations and aggregates on scrape.

    Args:
        name: metric name, with its unit.
        documentation: help text.
        label_names: label names.
        buckets: [B] ascending upper bounds, inclusive; a last bucket without bound is added.
        initial_labels: label values to export from the start, with counts of zero. A histogram without labels is
            always exported.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label_names: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        initial_labels: Iterable[LabelValues] = (),
    ) -> None:
        super().__init__(name, documentation, label_names)
        self._upper_bounds = np.array([*buckets, np.inf])
        self._bucket_counts: defaultdict[LabelValues, NDArray[np.int64]] = defaultdict(
            lambda: np.zeros(len(buckets) + 1, np.int64)
        )
        self._sums: defaultdict[LabelValues, float] = defaultdict(float)
        for label_values in initial_labels if label_names else [()]:
            self._bucket_counts[label_values] += 0

    def observe(self, value: float, *label_values: str) -> None:
        """Add an observation."""
        self._append((label_values, value))

    def _aggregate(self, observations: list[tuple[LabelValues, float]]) -> None:
        values_by_labels: defaultdict[LabelValues, list[float]] = defaultdict(list)
        for label_values, value in observations:
            values_by_labels[label_values].append(value)
        for label_values, values in values_by_labels.items():
            buckets = np.searchsorted(self._upper_bounds, values)
            self._bucket_counts[label_values] += np.bincount(buckets, minlength=len(self._upper_bounds))
            self._sums[label_values] += sum(values)

    def _to_family(self) -> Metric:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        bounds = [floatToGoString(bound) for bound in self._upper_bounds]  # type: ignore[no-untyped-call]
        for label_values, counts in sorted(self._bucket_counts.items()):
            cumulative = counts.cumsum().tolist()
            family.add_metric(label_values, list(zip(bounds, cumulative, strict=True)), self._sums[label_values])
        return family
