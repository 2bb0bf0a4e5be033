"""ANN recall of real requests: some of them are repeated exactly, in a small share of one core's time."""

import math
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from vecall.arrays import Rows
from vecall.index.ann_recall import recall_from_scores
from vecall.recall.recaller import RecallTrace
from vecall.recall.search import compute_ground_truth_rows

_QUEUE_SIZE = 16  # answers; more are not needed to keep one thread busy, and each keeps its view in memory
_WINDOW_SIZE = 2_000  # newest samples by path
_MAX_CPU_SHARE = 0.03  # that judging may take: an exact scan of millions of rows takes as long as many requests
_POLL_SECONDS = 0.2  # seconds between looks at whether to end


@dataclass(frozen=True)
class RecallEstimate:
    """Mean recall of a sample, with a 95 % confidence interval by Wilson's score (JASA 1927), so within 0 and 1.

    Attributes:
        sample_count: how many requests.
        mean: mean share of the exact answer that was in the answer.
        lower: of the interval.
        upper: of the interval.
    """

    sample_count: int
    mean: float
    lower: float
    upper: float


class OnlineRecallMonitor:
    """Judges a share of the answers by `compute_ground_truth_rows` over the very view that they were made of.

    Args:
        sample_rate: of the answers that an index gave.
        seed: of the drawing.
    """

    def __init__(self, sample_rate: float, *, seed: int | None = None) -> None:
        self._sample_rate = sample_rate
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._queue: Queue[tuple[str, RecallTrace]] = Queue(_QUEUE_SIZE)
        self._recalls_by_path: dict[str, deque[float]] = {}
        self._lock = Lock()
        self._stop_event = Event()

    def maybe_sample(self, path_label: str, trace: RecallTrace) -> None:
        """Perhaps judge an answer later; where too many wait already, it is left out."""
        if (
            self._sample_rate
            and trace.resolved_query.query_matrix is not None
            and self._random.random() < self._sample_rate
        ):
            try:
                self._queue.put_nowait((path_label, trace))
            except Full:
                return

    def run(self) -> None:
        """Judge what was offered, until `end`."""
        while not self._stop_event.is_set():
            try:
                path, made = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            self._evaluate_sample(path, made)
            del made  # or its release would stay in memory until the next one

    def stop(self) -> None:
        """Let `run` return."""
        self._stop_event.set()

    def estimate_by_path(self) -> dict[str, RecallEstimate]:
        """By path."""
        with self._lock:
            shares = {path: list(kept) for path, kept in self._recalls_by_path.items()}
        return {path: estimate_recall(kept) for path, kept in shares.items()}

    def collect(self) -> Iterator[Metric]:
        """The estimates, for Prometheus."""
        recall = GaugeMetricFamily(
            "vecall_live_ann_recall",
            "Share of the exact answer that real requests got; bound: mean, or of a 95 % confidence interval.",
            labels=["path", "bound"],
        )
        count = GaugeMetricFamily("vecall_live_ann_recall_samples", "Requests judged exactly.", labels=["path"])
        for path, known in self.estimate_by_path().items():
            for bound, value in (("low", known.lower), ("mean", known.mean), ("high", known.upper)):
                recall.add_metric([path, bound], value)
            count.add_metric([path], known.sample_count)
        yield from (recall, count)

    def _evaluate_sample(self, path_label: str, trace: RecallTrace) -> None:
        if trace.resolved_query.query_matrix is None or not len(trace.search_result.rows):
            return
        exact = compute_ground_truth_rows(
            trace.snapshot,
            trace.resolved_query.query_matrix,
            trace.resolved_query.excluded_rows,
            trace.filter_mask,
            len(trace.search_result.rows),
            throttle=_CpuThrottle(self._stop_event),
        )
        found, wanted = (_compute_scores(trace, rows) for rows in (trace.search_result.rows, exact))
        share = recall_from_scores(found, wanted)
        with self._lock:
            self._recalls_by_path.setdefault(path_label, deque(maxlen=_WINDOW_SIZE)).append(share)


def _compute_scores(trace: RecallTrace, rows: Rows) -> NDArray[np.float64]:
    """[n] inner products of the user's vector with some items' stored ones."""
    vector = np.asarray(trace.resolved_query.query_matrix, dtype=np.float64)
    products: NDArray[np.float64] = (trace.snapshot.get_vectors(rows).astype(np.float64) * vector).sum(axis=1)
    return products


class _CpuThrottle:
    """Rests after each piece of work, so that all of it takes a small share of one core."""

    def __init__(self, stop_event: Event) -> None:
        self._stop_event, self._last_cpu_seconds = stop_event, time.thread_time()

    def __call__(self) -> None:
        """Rest for what was done since the last time."""
        worked = time.thread_time() - self._last_cpu_seconds
        self._stop_event.wait(worked * (1 / _MAX_CPU_SHARE - 1))
        self._last_cpu_seconds = time.thread_time()


def estimate_recall(recalls: list[float]) -> RecallEstimate:
    """Of at least one share. Its variance is at most that of yes or no, for which the interval is made."""
    n, mean, z = len(recalls), sum(recalls) / len(recalls), 1.96
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return RecallEstimate(n, mean, max(0.0, centre - half), min(1.0, centre + half))
