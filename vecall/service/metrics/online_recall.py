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

from vecall.index.bitmap import Rows
from vecall.recall.recaller import Answered
from vecall.recall.search import find_exactly

_WAITING = 16  # answers; more are not needed to keep one thread busy, and each keeps its view in memory
_WINDOW = 2_000  # newest samples by path
_OF_A_CORE = 0.03  # that judging may take: an exact scan of millions of rows takes as long as many requests
_PAUSE = 0.2  # seconds between looks at whether to end


@dataclass(frozen=True)
class Estimate:
    """Mean recall of a sample, with a 95 % confidence interval by Wilson's score (JASA 1927), so within 0 and 1.

    Attributes:
        samples: how many requests.
        recall: mean share of the exact answer that was in the answer.
        low: of the interval.
        high: of the interval.
    """

    samples: int
    recall: float
    low: float
    high: float


class LiveRecall:
    """Judges a share of the answers by `find_exactly` over the very view that they were made of.

    Args:
        share: of the answers that an index gave.
        seed: of the drawing.
    """

    def __init__(self, share: float, *, seed: int | None = None) -> None:
        self._share = share
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._waiting: Queue[tuple[str, Answered]] = Queue(_WAITING)
        self._shares: dict[str, deque[float]] = {}
        self._lock = Lock()
        self._ended = Event()

    def offer(self, path: str, made: Answered) -> None:
        """Perhaps judge an answer later; where too many wait already, it is left out."""
        if self._share and made.ask.vector is not None and self._random.random() < self._share:
            try:
                self._waiting.put_nowait((path, made))
            except Full:
                return

    def run(self) -> None:
        """Judge what was offered, until `end`."""
        while not self._ended.is_set():
            try:
                path, made = self._waiting.get(timeout=_PAUSE)
            except Empty:
                continue
            self._judge(path, made)
            del made  # or its release would stay in memory until the next one

    def end(self) -> None:
        """Let `run` return."""
        self._ended.set()

    def estimates(self) -> dict[str, Estimate]:
        """By path."""
        with self._lock:
            shares = {path: list(kept) for path, kept in self._shares.items()}
        return {path: estimate(kept) for path, kept in shares.items()}

    def collect(self) -> Iterator[Metric]:
        """The estimates, for Prometheus."""
        recall = GaugeMetricFamily(
            "vecall_live_ann_recall",
            "Share of the exact answer that real requests got; bound: mean, or of a 95 % confidence interval.",
            labels=["path", "bound"],
        )
        count = GaugeMetricFamily("vecall_live_ann_recall_samples", "Requests judged exactly.", labels=["path"])
        for path, known in self.estimates().items():
            for bound, value in (("low", known.low), ("mean", known.recall), ("high", known.high)):
                recall.add_metric([path, bound], value)
            count.add_metric([path], known.samples)
        yield from (recall, count)

    def _judge(self, path: str, made: Answered) -> None:
        if made.ask.vector is None or not len(made.found.rows):
            return
        exact = find_exactly(
            made.view, made.ask.vector, made.ask.excluded, made.passing, len(made.found.rows), rest=_Rest(self._ended)
        )
        # By score, as in `vecall.index.ann_recall`: which of equal items was returned makes no difference.
        found, wanted = (_scores(made, rows) for rows in (made.found.rows, exact))
        share = min(1.0, float(np.count_nonzero(found >= wanted.min()) / len(wanted)))
        with self._lock:
            self._shares.setdefault(path, deque(maxlen=_WINDOW)).append(share)


def _scores(made: Answered, rows: Rows) -> NDArray[np.float64]:
    """[n] inner products of the user's vector with some items' stored ones."""
    vector = np.asarray(made.ask.vector, dtype=np.float64)
    products: NDArray[np.float64] = (made.view.vectors(rows).astype(np.float64) * vector).sum(axis=1)
    return products


class _Rest:
    """Rests after each piece of work, so that all of it takes a small share of one core."""

    def __init__(self, ended: Event) -> None:
        self._ended, self._since = ended, time.thread_time()

    def __call__(self) -> None:
        """Rest for what was done since the last time."""
        worked = time.thread_time() - self._since
        self._ended.wait(worked * (1 / _OF_A_CORE - 1))
        self._since = time.thread_time()


def estimate(shares: list[float]) -> Estimate:
    """Of at least one share. Its variance is at most that of yes or no, for which the interval is made."""
    n, mean, z = len(shares), sum(shares) / len(shares), 1.96
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Estimate(n, mean, max(0.0, centre - half), min(1.0, centre + half))
