"""Metrics of what happens with every request: to note it is one append, and counting waits until someone looks.

A metric of the library takes a lock and a dozen calls for each value. After a search, which leaves nothing of them in
the processor's caches, a recall's seven values took a tenth of its time (decision 0011).
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

_MAX_BUFFERED = 4_096  # that wait to be counted, which then takes about a millisecond


class _BufferedMetric(ABC, Generic[ObservationT]):
    """A collector of `prometheus_client`.

    Args:
        name: of the metric.
        documentation: what it tells.
        label_names: names.
    """

    def __init__(self, name: str, documentation: str, label_names: Sequence[str] = ()) -> None:
        self._name, self._documentation, self._label_names = name, documentation, label_names
        self._pending: deque[ObservationT] = deque()
        self._lock = Lock()

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        with self._lock:
            self._aggregate(self._drain())
            yield self._to_family()

    def _append(self, observation: ObservationT) -> None:
        self._pending.append(observation)
        if len(self._pending) >= _MAX_BUFFERED:
            with self._lock:
                self._aggregate(self._drain())

    def _drain(self) -> list[ObservationT]:
        return [self._pending.popleft() for _ in range(len(self._pending))]  # others may append meanwhile

    @abstractmethod
    def _aggregate(self, observations: list[ObservationT]) -> None: ...

    @abstractmethod
    def _to_family(self) -> Metric: ...


class BufferedCounter(_BufferedMetric[LabelValues]):
    """How often something happened, by labels."""

    def __init__(self, name: str, documentation: str, label_names: Sequence[str]) -> None:
        super().__init__(name, documentation, label_names)
        self._counts: Counter[LabelValues] = Counter()

    def inc(self, *label_values: str) -> None:
        """It happened."""
        self._append(label_values)

    def _aggregate(self, observations: list[LabelValues]) -> None:
        self._counts.update(observations)

    def _to_family(self) -> Metric:
        told = CounterMetricFamily(self._name, self._documentation, labels=self._label_names)
        for labels, count in sorted(self._counts.items()):
            told.add_metric(labels, count)
        return told


class BufferedHistogram(_BufferedMetric[tuple[LabelValues, float]]):
    """How large something was, by labels: a histogram.

    Args:
        name: of the metric, with its unit.
        documentation: what it tells.
        label_names: names.
        buckets: [B] ascending; a value counts for the first that is at least as large, or for a last one without bound.
        initial_labels: label values that are told from the start, with noughts; without labels there is but one.
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
        for one in initial_labels if label_names else [()]:
            self._bucket_counts[one] += 0

    def observe(self, value: float, *label_values: str) -> None:
        """It was so large."""
        self._append((label_values, value))

    def _aggregate(self, observations: list[tuple[LabelValues, float]]) -> None:
        values: defaultdict[LabelValues, list[float]] = defaultdict(list)
        for labels, value in observations:
            values[labels].append(value)
        for labels, some in values.items():
            self._bucket_counts[labels] += np.bincount(
                np.searchsorted(self._upper_bounds, some), minlength=len(self._upper_bounds)
            )
            self._sums[labels] += sum(some)

    def _to_family(self) -> Metric:
        told = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        names = [floatToGoString(bound) for bound in self._upper_bounds]  # type: ignore[no-untyped-call]
        for labels, counts in sorted(self._bucket_counts.items()):
            told.add_metric(labels, list(zip(names, counts.cumsum().tolist(), strict=True)), self._sums[labels])
        return told
