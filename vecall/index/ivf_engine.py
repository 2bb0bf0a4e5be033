"""Engine `ivf`: how inverted lists are built and opened, and the sweep of spreads and rerank depths."""

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Vectors
from vecall.index.ann_recall import compute_ci95_half_width, compute_worst_lower_bound, recall_at_depths
from vecall.index.base import SearchParams
from vecall.index.engine import BuildContext, Engine, EngineBuild
from vecall.index.faiss_files import INDEX_FILE
from vecall.index.filtered_tuning import SPREADS
from vecall.index.ivf import IvfPqIndex
from vecall.index.search_params import RecallTarget, TuningPoint
from vecall.index.sweep import SweepTask, build_timed_point

_RERANK_FACTORS = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0)  # rerank depths tried, as multiples of k
_MAX_SLOWDOWN = 1.1  # latency as a multiple of the best so far; beyond it a larger spread can only be slower


def sweep_spreads(task: SweepTask) -> Iterator[TuningPoint]:
    """Yield points of growing spread, each with the smallest sufficient rerank depth; a fixed width yields one.

    A larger spread may need less depth, so the sweep goes on beyond the target, until a search is slower than the
    best, or scans every list, or, with a spread of 1 or more, takes longer than `cutoff_ms`.
    """
    nlist, best_ms = task.index.max_width, math.inf
    if task.fixed_width is not None:
        yield _measure_at_smallest_depth(task, SearchParams(min(nlist, task.fixed_width)))
        return
    for spread in SPREADS:
        point = _measure_at_smallest_depth(task, SearchParams(1, spread=spread))
        yield point
        is_too_slow = spread >= 1 and point.p50_ms > task.cutoff_ms  # below 1 a late clock tick must not end it
        if point.p50_ms > _MAX_SLOWDOWN * best_ms or point.width >= nlist or is_too_slow:
            return
        if point.reaches_with_confidence(task.target):
            best_ms = min(best_ms, point.p50_ms)


def _measure_at_smallest_depth(task: SweepTask, search_params: SearchParams) -> TuningPoint:
    """Measure lists to scan with the smallest rerank depth that reaches the target, else with the largest."""
    index, queries, k, target = cast("IvfPqIndex", task.index), task.queries, task.k, task.target
    max_depth = min(index.vectors.size, math.ceil(_RERANK_FACTORS[-1] * k))
    candidates = index.search_candidates(queries, k, search_params._replace(rerank_depth=max_depth))
    depths = sorted({min(max_depth, math.ceil(factor * k)) for factor in _RERANK_FACTORS})
    # Exact scores would rank the candidates right, so the recall of a search is that of its candidates.
    recalls_by_depth = recall_at_depths(index.vectors, queries, candidates, task.exact_rows, depths)
    sufficient = (i for i, recalls in enumerate(recalls_by_depth) if _reaches_with_confidence(recalls, target))
    chosen = next(sufficient, -1)
    if search_params.spread:
        search_params = search_params._replace(width=index.compute_median_nprobe(queries, k, search_params.spread))
    return build_timed_point(task, search_params._replace(rerank_depth=depths[chosen]), recalls_by_depth[chosen])


def _reaches_with_confidence(recalls: NDArray[np.float64], target: RecallTarget) -> bool:
    return target.is_reached(
        float(recalls.mean()) - compute_ci95_half_width(recalls), compute_worst_lower_bound(recalls)
    )


def _build(vectors: Vectors | HalfVectors, context: BuildContext) -> EngineBuild:
    index = IvfPqIndex.build(vectors, nlist=context.settings.nlist)
    return EngineBuild(index, {"nlist": index.nlist})


IVF_ENGINE = Engine(
    name="ivf",
    file=INDEX_FILE,
    build=_build,
    open=lambda path, _: IvfPqIndex.load(path),
    settings_keys=("nlist", "nprobe"),
    sweep=sweep_spreads,
    maps_vectors=True,
    fixed_width_key="nprobe",
)
