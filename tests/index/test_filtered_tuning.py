import math

import numpy as np
import pytest

from vecall.index import tuning as tuning
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.filtered_tuning import tune_filtered
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.tuning import tune


def normal(n, seed):
    return np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)


INDEXES = {
    "hnsw": lambda: HnswIndex.build(normal(4000, 0), m=8, ef_construction=60),
    "cells": lambda: IvfPqIndex.build(normal(4000, 0), threads=1),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_widths_under_filters_are_measured(monkeypatch, kind):
    index = INDEXES[kind]()
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 1.0)  # dear, so that all rates are measured
    found = tune(index, normal(60, 1), [10, 20], 0.95)
    widths = found.filtered_params.widths
    assert [one.rank for one in widths] == [50, 167, 500, 1000, 1667]
    assert all(one.width_for_all <= one.width_for_tail for one in widths)
    others = normal(60, 2)
    for share in (1, 0.3, 0.1):
        allowed = Bitmap.from_mask(np.random.default_rng(3).random(4000) < share)
        for excluded in (0, 60):
            wanted = 10 + excluded
            effort = found.curve.look_up(wanted, rank=math.ceil(wanted * 4000 / allowed.count), excluded_count=excluded)
            truth = index.search_exact(others, wanted, allowed=allowed).rows[:, excluded:]
            rows = index.search(others, wanted, search_params=effort, allowed=allowed).rows
            assert recall_per_query(index, others, rows, truth).mean() > 0.93


def test_widths_that_would_cost_more_than_a_scan_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 0.0)
    found = tune(INDEXES["hnsw"](), normal(60, 1), [10], 0.95)
    assert {one.width_for_tail for one in found.filtered_params.widths} <= {found.best_points[-1].width}


class Planted:
    """Of the exact answer the rows up to `width` are found, if they are among the first `depth`."""

    size = 10_000

    def score(self, query, rows):
        return -rows.astype(np.float32)

    def search_exact(self, queries, k, *, allowed=None):
        raise AssertionError("only the answer without a filter is asked for")

    def search(self, queries, k, *, search_params=None, allowed=None):
        rows = np.where(np.arange(k) < min(search_params.width, search_params.depth), np.arange(k), -1)

        class Hits:
            pass

        Hits.rows = np.tile(rows, (len(queries), 1))
        return Hits


def test_depth_is_found_before_the_width(monkeypatch):
    """Rows 95 to 99 of 100 must be found: depth 50 needs twice as much for that, and then the width grows from 20."""
    nearest = np.tile(np.arange(100), (5, 1))
    monkeypatch.setattr("vecall.index.filtered_tuning._PASS_RATES", (1,))
    found = tune_filtered(Planted(), normal(5, 0), nearest, [(100, SearchParams(20, 50))], 0.9, CostModel(0, 0, 0, 1))
    assert found.depth_factor == 2.0
    (width,) = found.widths
    assert width.rank == 100
    assert 90 <= width.width_for_all < 98 <= width.width_for_tail < 120
