"""Drift that needs no labels: real requests against the release's own golden queries."""

from collections import deque
from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from vecall.recall.query import Query
from vecall.recall.recaller import RecallTrace
from vecall.release.release import Release

_WINDOW_SIZE = 2_000  # newest requests
_MIN_SAMPLES = 100  # requests; of fewer the index says nothing
_BIN_COUNT = 10
_MIN_BIN_SHARE = 1e-3  # share that an empty bin counts as


UnknownAndTotal = tuple[int, int]  # how many are unknown, of how many


class DriftMonitor:
    """Scores of the first places, and how much of the requests is unknown, over the newest requests of a release."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._release_name = ""
        self._reference_scores: NDArray[np.float64] | None = None
        self._top_scores: deque[float] = deque(maxlen=_WINDOW_SIZE)
        self._unknown_counts: deque[tuple[UnknownAndTotal, ...]] = deque(maxlen=_WINDOW_SIZE)

    def _reset(self, release: Release) -> None:
        usual = compute_golden_scores(release)
        with self._lock:
            self._release_name, self._reference_scores = release.name, usual
            self._top_scores.clear()
            self._unknown_counts.clear()

    def observe(self, trace: RecallTrace, query: Query, *, current_release: Release) -> None:
        """One answered request.

        Args:
            trace: the answer; one of another release than `served` counts for nothing.
            query: the request.
            current_release: what is served now. With another one it begins anew.
        """
        if current_release.name != self._release_name:
            self._reset(current_release)
        scores, unknown = trace.answer.scores, _count_unknown(trace, query)
        with self._lock:
            if trace.answer.release != self._release_name:
                return
            if scores and trace.resolved_query.query_matrix is not None:
                self._top_scores.append(scores[0])
            self._unknown_counts.append(unknown)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        with self._lock:
            scores, unknown, usual = np.array(self._top_scores), list(self._unknown_counts), self._reference_scores
        text = "Population stability index of the best scores against the golden queries'; above 0.25: look."
        moved = GaugeMetricFamily("vecall_drift_score_psi", text)
        if usual is not None and len(scores) >= _MIN_SAMPLES:
            moved.add_metric([], compute_psi(usual, scores))
        yield moved
        shares = GaugeMetricFamily(
            "vecall_unknown_share",
            "Of what the newest requests gave: of user ids, of histories' ids, of user features' categories and tags.",
            labels=["what"],
        )
        if unknown:
            for what, (absent, given) in zip(_INPUT_KINDS, np.sum(unknown, axis=0).tolist(), strict=True):
                if given:
                    shares.add_metric([what], absent / given)
        yield shares


_INPUT_KINDS = ("user", "history", "features")


def _count_unknown(trace: RecallTrace, query: Query) -> tuple[UnknownAndTotal, ...]:
    """As `_INPUT_KINDS` has them."""
    unknown, encoder = trace.answer.unknown, trace.snapshot.release.encoder
    features = encoder.count_oov(query.user) if query.user and encoder is not None else (0, 0)
    user = (int(unknown.user), int(query.user_id is not None))
    return user, (unknown.history, len(query.history or ())), features


def compute_golden_scores(release: Release) -> NDArray[np.float64] | None:
    """[G] best score of each golden query; None where there are too few of them."""
    golden = release.golden_queries
    if golden is None or len(golden.vectors) < 2 * _BIN_COUNT:
        return None
    best = release.index.get_vectors(golden.exact_rows[:, 0])  # [G, D]
    scores: NDArray[np.float64] = np.einsum("gd,gd->g", golden.vectors, best, dtype=np.float64)
    return scores


def compute_psi(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """Population stability index: sum over the deciles of `reference` of (p - q) ln(p / q), p of it and q of `now`.

    0 for equal distributions. By custom below 0.1 is no change and above 0.25 a large one.
    """
    edges = np.unique(np.quantile(reference, np.arange(1, _BIN_COUNT) / _BIN_COUNT))
    p, q = (
        np.maximum(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values), _MIN_BIN_SHARE)
        for values in (reference, current)
    )
    return float(((p - q) * np.log(p / q)).sum())
