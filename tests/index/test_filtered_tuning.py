import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vecall.index import filtered_tuning, timing
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.engines import ENGINES
from vecall.index.filtered_tuning import tune_filtered
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import RecallTarget
from vecall.index.tuning import tune


def normal(n, seed):
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


BUILDERS = {
    "hnsw": lambda: HnswIndex.build(normal(4000, 0), m=8, ef_construction=60),
    "ivf": lambda: IvfPqIndex.build(normal(4000, 0), threads=1),
}


@pytest.mark.parametrize("engine", BUILDERS)
def test_tuned_searches_reach_the_target_under_filters_and_exclusions(monkeypatch, engine):
    index = BUILDERS[engine]()
    # A scan is so expensive that every selectivity is measured.
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)
    result = tune(index, normal(60, 1), [10, 20], RecallTarget(0.95, 0.8), sweep=ENGINES[engine].sweep)
    widths = result.filtered_table.widths
    assert [width.rank for width in widths] == ([50, 167, 500, 1000, 1667] if engine == "hnsw" else [])
    assert all(width.width_for_all <= width.width_for_tail for width in widths)
    other_queries = normal(60, 2)
    for selectivity in (1, 0.3, 0.1):
        allowed = Bitmap.from_mask(np.random.default_rng(3).random(4000) < selectivity)
        profile = index.profile_filter(allowed)
        for excluded in (0, 60):
            fetch_k = 10 + excluded
            rank = math.ceil(fetch_k * 4000 / allowed.count)
            search_params = result.curve.look_up(fetch_k, expected_rank=rank, excluded_count=excluded)
            exact_rows = index.vectors.search_exact(other_queries, fetch_k, allowed=allowed).rows[:, excluded:]
            found_rows = np.empty((60, fetch_k), dtype=np.int64)
            for b, query in enumerate(other_queries):
                request = SearchRequest(query, fetch_k, excluded, allowed.count, profile)
                adapted = index.adapt(request, search_params)
                hits = index.search(
                    query[None], fetch_k, search_params=adapted.search_params, allowed=allowed, lists=adapted.lists
                )
                found_rows[b] = hits.rows[0]
            assert recall_per_query(index.vectors, other_queries, found_rows, exact_rows).mean() > 0.93


def test_widths_that_cost_more_than_a_scan_are_not_tried(monkeypatch):
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 0.0)
    result = tune(BUILDERS["hnsw"](), normal(60, 1), [10], RecallTarget(0.95, 0.8))
    assert {width.width_for_tail for width in result.filtered_table.widths} <= {result.best_points[-1].width}


@pytest.mark.parametrize(("ms_per_scanned_row", "is_tuned"), [(1e-4, False), (1.0, True)])
def test_no_width_is_tried_after_one_that_is_measured_to_cost_more_than_a_scan(
    monkeypatch, ms_per_scanned_row, is_tuned
):
    """A server is asked for as many more rows as a filter takes away, which the costs by width do not show."""
    index, widths = PlantedIndex(), []
    search = index.search

    def search_slowly(queries, k, *, search_params=None, allowed=None):
        widths.append(search_params.width)
        time.sleep(0.02)
        return search(queries, k, search_params=search_params, allowed=allowed)

    monkeypatch.setattr(index, "search", search_slowly, raising=False)
    monkeypatch.setattr(filtered_tuning, "_SELECTIVITIES", (1,))
    exact_rows, points = np.tile(np.arange(100), (5, 1)), [(100, SearchParams(20, 100))]
    costs = CostModel(0, 0, 0, ms_per_scanned_row)
    table = tune_filtered(index, normal(5, 0), exact_rows, points, RecallTarget(0.9, 0.8), costs)
    assert (len(widths) > 5, len(table.widths) == 1) == (is_tuned, is_tuned)


class PlantedIndex:
    """Finds the exact rows up to the smaller of `width` and `rerank_depth`."""

    size = max_width = 10_000
    vectors = property(lambda self: self)

    def score(self, query, rows):
        return -rows.astype(np.float32)

    def search_exact(self, queries, k, *, allowed=None):
        raise AssertionError("the exact result without a filter is passed in")

    def search(self, queries, k, *, search_params=None, allowed=None):
        found = min(search_params.width, search_params.rerank_depth)
        rows = np.where(np.arange(k) < found, np.arange(k), -1)
        return SimpleNamespace(rows=np.tile(rows, (len(queries), 1)))


def test_depth_factor_is_found_before_the_width(monkeypatch):
    """Rows 95 to 99 of 100 must be found: that takes twice the depth of 50, and then the width grows from 20."""
    exact_rows = np.tile(np.arange(100), (5, 1))
    monkeypatch.setattr(filtered_tuning, "_SELECTIVITIES", (1,))
    points = [(100, SearchParams(20, 50))]
    params = tune_filtered(
        PlantedIndex(), normal(5, 0), exact_rows, points, RecallTarget(0.9, 0.8), CostModel(0, 0, 0, 1)
    )
    assert params.depth_factor == 2.0
    (width,) = params.widths
    assert width.rank == 100
    assert 90 <= width.width_for_all < 98 <= width.width_for_tail < 120
