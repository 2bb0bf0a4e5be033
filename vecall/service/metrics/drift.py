"""Drift that needs no labels: real requests against the release's own golden queries."""

from collections import deque
from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from vecall.recall.query import Query
from vecall.recall.recaller import Answered
from vecall.release.release import Release

_WINDOW = 2_000  # newest requests
_LEAST = 100  # requests; of fewer the index says nothing
_BINS = 10
_EMPTY = 1e-3  # share that an empty bin counts as


Counted = tuple[int, int]  # how many are unknown, of how many


class Drift:
    """Scores of the first places, and how much of the requests is unknown, over the newest requests of a release."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._release = ""
        self._usual: NDArray[np.float64] | None = None
        self._scores: deque[float] = deque(maxlen=_WINDOW)
        self._unknown: deque[tuple[Counted, ...]] = deque(maxlen=_WINDOW)

    def _begin(self, release: Release) -> None:
        usual = golden_scores(release)
        with self._lock:
            self._release, self._usual = release.name, usual
            self._scores.clear()
            self._unknown.clear()

    def add(self, made: Answered, query: Query, *, served: Release) -> None:
        """One answered request.

        Args:
            made: the answer; one of another release than `served` counts for nothing.
            query: the request.
            served: what is served now. With another one it begins anew.
        """
        if served.name != self._release:
            self._begin(served)
        scores, unknown = made.recalled.scores, _unknown_of(made, query)
        with self._lock:
            if made.recalled.release != self._release:
                return
            if scores and made.ask.vector is not None:
                self._scores.append(scores[0])
            self._unknown.append(unknown)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        with self._lock:
            scores, unknown, usual = np.array(self._scores), list(self._unknown), self._usual
        text = "Population stability index of the best scores against the golden queries'; above 0.25: look."
        moved = GaugeMetricFamily("vecall_drift_score_psi", text)
        if usual is not None and len(scores) >= _LEAST:
            moved.add_metric([], stability_index(usual, scores))
        yield moved
        shares = GaugeMetricFamily(
            "vecall_unknown_share",
            "Of what the newest requests gave: of user ids, of histories' ids, of user features' categories and tags.",
            labels=["what"],
        )
        if unknown:
            for what, (absent, given) in zip(_WHAT, np.sum(unknown, axis=0).tolist(), strict=True):
                if given:
                    shares.add_metric([what], absent / given)
        yield shares


_WHAT = ("user", "history", "features")


def _unknown_of(made: Answered, query: Query) -> tuple[Counted, ...]:
    """As `_WHAT` has them."""
    unknown, encoder = made.recalled.unknown, made.view.release.encoder
    features = encoder.count_unknown(query.user) if query.user and encoder is not None else (0, 0)
    user = (int(unknown.user), int(query.user_id is not None))
    return user, (unknown.history, len(query.history or ())), features


def golden_scores(release: Release) -> NDArray[np.float64] | None:
    """[G] best score of each golden query; None where there are too few of them."""
    golden = release.golden
    if golden is None or len(golden.vectors) < 2 * _BINS:
        return None
    best = release.index.vectors(golden.rows[:, 0])  # [G, D]
    scores: NDArray[np.float64] = np.einsum("gd,gd->g", golden.vectors, best, dtype=np.float64)
    return scores


def stability_index(usual: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    """Population stability index: sum over the deciles of `usual` of (p - q) ln(p / q), p of it and q of `now`.

    0 for equal distributions. By custom below 0.1 is no change and above 0.25 a large one.
    """
    edges = np.unique(np.quantile(usual, np.arange(1, _BINS) / _BINS))
    p, q = (
        np.maximum(np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values), _EMPTY)
        for values in (usual, now)
    )
    return float(((p - q) * np.log(p / q)).sum())
