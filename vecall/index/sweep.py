"""Sweep of search parameters: which ones the tuner tries for one k, and what was measured with them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.index import timing
from vecall.index.ann_recall import (
    compute_ci95_half_width,
    compute_worst_ci95_half_width,
    mean_of_worst,
    recall_per_query,
)
from vecall.index.base import Index, SearchParams
from vecall.index.search_params import RecallTarget, TuningPoint

_WIDTH_GROWTH = 1.25  # from one width to the next
_PLATEAU_STEPS = 5  # steps of width that must together gain _MIN_RECALL_GAIN: else larger ones will gain nothing either
_MIN_RECALL_GAIN = 0.002


@dataclass(frozen=True)
class SweepTask:
    """What a sweep is for.

    Attributes:
        index: index to be searched.
        queries: [Q, D].
        exact_rows: [Q, k] exact results, best first.
        target: ANN recall to be reached.
        fixed_width: the only width to try; None tries several.
        cutoff_ms: median milliseconds of a search beyond which wider ones are not tried.
    """

    index: Index
    queries: Vectors
    exact_rows: Rows
    target: RecallTarget
    fixed_width: int | None
    cutoff_ms: float

    @property
    def k(self) -> int:
        """Number of rows per query."""
        return int(self.exact_rows.shape[1])


def sweep_widths(task: SweepTask) -> Iterator[TuningPoint]:
    """Yield points of growing width, from k to the first that reaches the target; a fixed width yields one point.

    The sweep ends earlier if recall stops growing, if a search takes longer than `cutoff_ms`, or before the width is
    the index's largest, where the search would be a scan.
    """
    index, k = task.index, task.k
    width, recalls = float(k if task.fixed_width is None else task.fixed_width), []
    while True:
        params = SearchParams(min(index.max_width, math.ceil(width)))
        found_rows = index.search(task.queries, k, search_params=params).rows
        found_recalls = recall_per_query(index.vectors, task.queries, found_rows, task.exact_rows)
        point = build_timed_point(task, params, found_recalls)
        yield point
        recalls.append(point.recall)
        is_plateau = len(recalls) > _PLATEAU_STEPS and recalls[-1] - recalls[-1 - _PLATEAU_STEPS] < _MIN_RECALL_GAIN
        is_fixed, is_too_slow = task.fixed_width is not None, point.p50_ms > task.cutoff_ms
        if point.reaches_with_confidence(task.target) or is_fixed or is_plateau or is_too_slow:
            return
        width = params.width * _WIDTH_GROWTH
        if width >= index.max_width:
            return


def build_timed_point(task: SweepTask, search_params: SearchParams, recalls: NDArray[np.float64]) -> TuningPoint:
    """Build the point of measured recalls [Q]; measures the latency."""
    return TuningPoint(
        task.k,
        search_params.width,
        search_params.rerank_depth,
        recall=float(recalls.mean()),
        recall_ci95=compute_ci95_half_width(recalls),
        p50_ms=timing.measure_median_ms(task.index, task.queries, task.k, search_params),
        worst_recall=mean_of_worst(recalls),
        spread=search_params.spread,
        worst_ci95=compute_worst_ci95_half_width(recalls),
    )
