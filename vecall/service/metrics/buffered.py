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

Noted = TypeVar("Noted")
Labels = tuple[str, ...]

_MOST = 4_096  # that wait to be counted, which then takes about a millisecond


class _Tally(ABC, Generic[Noted]):
    """A collector of `prometheus_client`.

    Args:
        name: of the metric.
        text: what it tells.
        labels: names.
    """

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._new: deque[Noted] = deque()
        self._lock = Lock()

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        with self._lock:
            self._count(self._taken())
            yield self._told()

    def _note(self, noted: Noted) -> None:
        self._new.append(noted)
        if len(self._new) >= _MOST:
            with self._lock:
                self._count(self._taken())

    def _taken(self) -> list[Noted]:
        return [self._new.popleft() for _ in range(len(self._new))]  # others may append meanwhile

    @abstractmethod
    def _count(self, noted: list[Noted]) -> None: ...

    @abstractmethod
    def _told(self) -> Metric: ...


class Counts(_Tally[Labels]):
    """How often something happened, by labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels)
        self._counted: Counter[Labels] = Counter()

    def add(self, *labels: str) -> None:
        """It happened."""
        self._note(labels)

    def _count(self, noted: list[Labels]) -> None:
        self._counted.update(noted)

    def _told(self) -> Metric:
        told = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in sorted(self._counted.items()):
            told.add_metric(labels, count)
        return told


class Distribution(_Tally[tuple[Labels, float]]):
    """How large something was, by labels: a histogram.

    Args:
        name: of the metric, with its unit.
        text: what it tells.
        labels: names.
        bounds: [B] ascending; a value counts for the first that is at least as large, or for a last one without bound.
        known: label values that are told from the start, with noughts; without labels there is but one.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        known: Iterable[Labels] = (),
    ) -> None:
        super().__init__(name, text, labels)
        self._bounds = np.array([*bounds, np.inf])
        self._counts: defaultdict[Labels, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(bounds) + 1, np.int64))
        self._sums: defaultdict[Labels, float] = defaultdict(float)
        for one in known if labels else [()]:
            self._counts[one] += 0

    def observe(self, value: float, *labels: str) -> None:
        """It was so large."""
        self._note((labels, value))

    def _count(self, noted: list[tuple[Labels, float]]) -> None:
        values: defaultdict[Labels, list[float]] = defaultdict(list)
        for labels, value in noted:
            values[labels].append(value)
        for labels, some in values.items():
            self._counts[labels] += np.bincount(np.searchsorted(self._bounds, some), minlength=len(self._bounds))
            self._sums[labels] += sum(some)

    def _told(self) -> Metric:
        told = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [floatToGoString(bound) for bound in self._bounds]  # type: ignore[no-untyped-call]
        for labels, counts in sorted(self._counts.items()):
            told.add_metric(labels, list(zip(names, counts.cumsum().tolist(), strict=True)), self._sums[labels])
        return told
