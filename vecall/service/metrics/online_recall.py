"""ANN recall of real requests: a sample of them is repeated exactly, in a small share of one core's time."""

import math
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from vecall.arrays import Rows
from vecall.index.ann_recall import recall_from_scores
from vecall.recall.search import compute_ground_truth_rows
from vecall.recall.trace import RecallTrace
from vecall.release.release import Release

_QUEUE_SIZE = 16  # traces; that many keep the thread busy, and each keeps its snapshot in memory
_WINDOW_SIZE = 2_000  # latest samples by path
_MAX_CPU_SHARE = 0.03  # of one core: an exact scan of millions of rows takes as long as many requests
_REMOTE_RATE_FACTOR = 0.1  # with an engine on a server, whose local vectors may be more than fits into memory
_POLL_SECONDS = 0.2  # between two checks of the stop event


@dataclass(frozen=True)
class RecallEstimate:
    """Mean recall of a sample, with Wilson's 95 % confidence interval (JASA 1927), which stays within 0 and 1.

    Attributes:
        sample_count: number of requests.
        mean: mean share of the exact top k that the answers contained.
        lower: lower end of the interval.
        upper: upper end of the interval.
    """

    sample_count: int
    mean: float
    lower: float
    upper: float


class OnlineRecallMonitor:
    """Repeats a sample of recalls by an exact search of the same snapshot, and estimates the served release's recall.

    Args:
        sample_rate: share of the recalls to repeat; a tenth of it with an engine on a server.
        seed: of the random sample.
    """

    def __init__(self, sample_rate: float, *, seed: int | None = None) -> None:
        self._sample_rate = sample_rate
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._queue: Queue[tuple[str, RecallTrace]] = Queue(_QUEUE_SIZE)
        self._recalls_by_path: dict[str, deque[float]] = {}
        self._last_release: Callable[[], Release | None] = lambda: None  # weak, so that it can leave the memory
        self._lock = Lock()
        self._stop_event = Event()

    def maybe_sample(self, path_label: str, trace: RecallTrace) -> None:
        """Queue a recall with the probability `sample_rate`; drop it if the queue is full."""
        vector_result = trace.search_result.vector_result
        if not self._sample_rate or vector_result is None or vector_result.route == "popular":
            return
        is_remote = trace.snapshot.release.remote_index is not None
        if self._random.random() < self._sample_rate * (_REMOTE_RATE_FACTOR if is_remote else 1.0):
            try:
                self._queue.put_nowait((path_label, trace))
            except Full:
                return

    def run(self) -> None:
        """Evaluate queued recalls until `stop`."""
        while not self._stop_event.is_set():
            try:
                path_label, trace = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            self._evaluate_sample(path_label, trace)
            del trace  # or its release would stay in memory until the next sample

    def stop(self) -> None:
        """Let `run` return."""
        self._stop_event.set()

    def estimate_by_path(self) -> dict[str, RecallEstimate]:
        """The estimates by path label; a path without samples is missing."""
        with self._lock:
            recalls_by_path = {path: list(recalls) for path, recalls in self._recalls_by_path.items()}
        return {path: estimate_recall(recalls) for path, recalls in recalls_by_path.items()}

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        name, text = "vecall_online_ann_recall", "ANN recall of sampled requests, against an exact search"
        mean = GaugeMetricFamily(f"{name}_ratio", f"{text}: mean.", labels=["path"])
        lower = GaugeMetricFamily(f"{name}_ratio_lower", f"{text}: lower end of the 95 % interval.", labels=["path"])
        upper = GaugeMetricFamily(f"{name}_ratio_upper", f"{text}: upper end of the 95 % interval.", labels=["path"])
        samples = GaugeMetricFamily(
            f"{name}_samples", "Requests behind vecall_online_ann_recall_ratio.", labels=["path"]
        )
        for path, estimate in self.estimate_by_path().items():
            mean.add_metric([path], estimate.mean)
            lower.add_metric([path], estimate.lower)
            upper.add_metric([path], estimate.upper)
            samples.add_metric([path], estimate.sample_count)
        yield from (mean, lower, upper, samples)

    def _evaluate_sample(self, path_label: str, trace: RecallTrace) -> None:
        vector, vector_result = trace.resolved_query.query_matrix, trace.search_result.vector_result
        if vector is None or vector_result is None or not len(vector_result.rows):
            return
        rows = vector_result.rows
        exact_rows = compute_ground_truth_rows(
            trace.snapshot,
            vector,
            trace.resolved_query.excluded_rows,
            trace.filter_mask,
            len(rows),
            throttle=_CpuThrottle(self._stop_event),
        )
        recall = recall_from_scores(_compute_scores(trace, rows), _compute_scores(trace, exact_rows))
        with self._lock:
            if trace.snapshot.release is not self._last_release():
                self._recalls_by_path.clear()  # they tell of another index
                self._last_release = weakref.ref(trace.snapshot.release)
            self._recalls_by_path.setdefault(path_label, deque(maxlen=_WINDOW_SIZE)).append(recall)


def _compute_scores(trace: RecallTrace, rows: Rows) -> NDArray[np.float64]:
    """[len(rows)] inner products of the user vector and stored item vectors."""
    vector = np.asarray(trace.resolved_query.query_matrix, dtype=np.float64)
    scores: NDArray[np.float64] = (trace.snapshot.get_vectors(rows).astype(np.float64) * vector).sum(axis=1)
    return scores


class _CpuThrottle:
    """Sleeps between pieces of work, so that a thread takes at most `_MAX_CPU_SHARE` of one core."""

    def __init__(self, stop_event: Event) -> None:
        self._stop_event, self._last_cpu_seconds = stop_event, time.thread_time()

    def __call__(self) -> None:
        """Sleep in proportion to the CPU time since the last call."""
        cpu_seconds = time.thread_time() - self._last_cpu_seconds
        self._stop_event.wait(cpu_seconds * (1 / _MAX_CPU_SHARE - 1))
        self._last_cpu_seconds = time.thread_time()


def estimate_recall(recalls: list[float]) -> RecallEstimate:
    """Estimate the mean of at least one recall.

    Wilson's interval is for proportions of yes and no; values between 0 and 1 vary at most as much, so it covers them.
    """
    n, mean, z = len(recalls), sum(recalls) / len(recalls), 1.96
    center = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return RecallEstimate(n, mean, max(0.0, center - half_width), min(1.0, center + half_width))
