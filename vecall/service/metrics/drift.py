"""Drift detection without labels: recent requests are compared with the release's golden queries."""

from collections import deque
from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from vecall.recall.query import Query
from vecall.recall.trace import RecallTrace
from vecall.release.release import Release

_WINDOW_SIZE = 2_000  # latest requests
_MIN_SAMPLES = 100  # requests; with fewer the PSI is noise
_BIN_COUNT = 10
_MIN_BIN_SHARE = 1e-3  # stands in for the share of an empty bin, whose logarithm is infinite
_INPUT_KINDS = ("user", "history", "features")

UnknownAndTotal = tuple[int, int]  # number of unknown inputs, number of inputs


class DriftMonitor:
    """Top scores, and ratios of unknown inputs, over the latest requests that the current release answered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._release_name = ""
        self._reference_scores: NDArray[np.float64] | None = None
        self._top_scores: deque[float] = deque(maxlen=_WINDOW_SIZE)
        self._unknown_counts: deque[tuple[UnknownAndTotal, ...]] = deque(maxlen=_WINDOW_SIZE)

    def _reset(self, release: Release) -> None:
        reference_scores = compute_golden_scores(release)
        with self._lock:
            self._release_name, self._reference_scores = release.name, reference_scores
            self._top_scores.clear()
            self._unknown_counts.clear()

    def observe(self, trace: RecallTrace, query: Query, *, current_release: Release) -> None:
        """Record an answered request.

        Args:
            trace: how it was answered; it is ignored if another release answered.
            query: the request.
            current_release: what is served now. If it is a new one, the window starts empty.
        """
        if current_release.name != self._release_name:
            self._reset(current_release)
        vector_result, unknown = trace.search_result.vector_result, _count_unknown(trace, query)
        is_by_vector = vector_result is not None and vector_result.route != "popular"
        scores = vector_result.scores[:1].tolist() if vector_result is not None and is_by_vector else []
        with self._lock:
            if trace.answer.release != self._release_name:
                return
            if scores and trace.resolved_query.query_matrix is not None:
                self._top_scores.append(scores[0])
            self._unknown_counts.append(unknown)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        with self._lock:
            scores, reference = np.array(self._top_scores), self._reference_scores
            unknown_counts = list(self._unknown_counts)
        psi = GaugeMetricFamily(
            "vecall_drift_score_psi",
            "Population stability index of recent top scores against those of the golden queries.",
        )
        if reference is not None and len(scores) >= _MIN_SAMPLES:
            psi.add_metric([], compute_psi(reference, scores))
        yield psi
        ratios = GaugeMetricFamily(
            "vecall_unknown_input_ratio",
            "Ratio of user ids, history ids, and feature values of recent requests that the release does not know.",
            labels=["kind"],
        )
        if unknown_counts:
            sums = np.sum(unknown_counts, axis=0).tolist()  # [kinds, 2]
            for kind, (unknown, total) in zip(_INPUT_KINDS, sums, strict=True):
                if total:
                    ratios.add_metric([kind], unknown / total)
        yield ratios


def _count_unknown(trace: RecallTrace, query: Query) -> tuple[UnknownAndTotal, ...]:
    """Counts by kind, in the order of `_INPUT_KINDS`."""
    unknown, encoder = trace.answer.unknown, trace.snapshot.release.encoder
    features = encoder.count_unseen_values(query.user) if query.user and encoder is not None else (0, 0)
    user = (int(unknown.user), int(query.user_id is not None))
    return user, (unknown.history, len(query.history or ()) + len(query.recent or ())), features


def compute_golden_scores(release: Release) -> NDArray[np.float64] | None:
    """[G] top score of each golden query; None if there are too few for the PSI."""
    golden = release.golden_queries
    if golden is None or len(golden.vectors) < 2 * _BIN_COUNT:
        return None
    best = release.vectors.get_vectors(golden.exact_rows[:, 0])  # [G, D]
    scores: NDArray[np.float64] = np.einsum("gd,gd->g", golden.vectors, best, dtype=np.float64)
    return scores


def compute_psi(reference: NDArray[np.float64], current: NDArray[np.float64]) -> float:
    """Population stability index: the sum of (p - q) ln(p / q) over the deciles of the reference.

    p and q are the shares of `reference` and of `current` in a decile. Equal distributions have 0; by convention,
    less than 0.1 is no change, and more than 0.25 a large one.
    """
    edges = np.unique(np.quantile(reference, np.arange(1, _BIN_COUNT) / _BIN_COUNT))
    p, q = (
        np.maximum(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values), _MIN_BIN_SHARE)
        for values in (reference, current)
    )
    return float(((p - q) * np.log(p / q)).sum())
