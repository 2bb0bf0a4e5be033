import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall import progress
from vecall.index import tuning as tuning
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Hits, SearchParams
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import TuningPoint
from vecall.index.tuning import measure_scan_ms_per_row, tune


def unit(seed, n, dim=16):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def queries(n=50):
    return np.zeros((n, 2), np.float32)


class Planted:
    """An index that finds a known share of the right rows: width / `whole`, for every query or on average."""

    def __init__(self, whole, *, spread=0.0, size=1000):
        self.size, self.whole, self.spread, self.efforts = size, whole, spread, []

    def score(self, query, rows):
        return -rows.astype(np.float32)

    def search_exact(self, asked, k, *, allowed=None):
        rows = np.tile(np.arange(k), (len(asked), 1))
        return Hits(rows, -rows.astype(np.float32))

    def search(self, asked, k, *, search_params=None, allowed=None):
        if len(asked) > 1:
            self.efforts.append(search_params.width)
        hits = self.search_exact(asked, k)
        for place, row in enumerate(hits.rows):
            luck = self.spread * (1 if place % 2 else -1)
            row[round(k * min(1.0, max(0.0, search_params.width / self.whole + luck))) :] = -1
        return hits


class PlantedCells(IvfPqIndex):
    """Cells, of which `probes` hold the share probes / `whole` of the truth, and its last row at place `needed` · k.

    Queries take turns in what is needed.
    """

    size, nlist = 1000, 64

    def __init__(self, whole, *needed):
        self.whole, self.needed, self.asked = whole, needed, []

    search_exact, score = Planted.search_exact, Planted.score

    def search(self, asked, k, *, search_params=None, allowed=None):
        return self.search_exact(asked, k)

    def search_candidates(self, asked, search_params, allowed=None):
        self.asked.append(search_params)
        rows = np.full((len(asked), search_params.depth), -1)
        k = round(search_params.depth / 6)
        found = round(k * min(1.0, search_params.width / self.whole))
        for turn, needed in enumerate(self.needed):
            places = np.linspace(0, math.ceil(needed * k) - 1, k).astype(int)[:found]
            rows[turn :: len(self.needed), places] = np.arange(found)
        return rows


def timed(monkeypatch, milliseconds):
    """Let searches take as long as a function of (k, effort) says."""
    monkeypatch.setattr(tuning, "_median_ms", lambda index, queries, k, effort, allowed=None: milliseconds(k, effort))
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 1.0)


def test_the_least_effort_that_reaches_the_target():
    index = Planted(400)
    found = tune(index, queries(), [100], 0.9)
    (point,) = found.best_points
    assert (point.k, point.rerank_depth, point.recall_ci95) == (100, 0, pytest.approx(0, abs=1e-9))
    assert index.efforts == sorted(index.efforts) == [one.width for one in found.trials]
    assert index.efforts[0] == 100
    reached = [width >= 0.9 * 400 for width in index.efforts]
    assert reached == [False] * (len(reached) - 1) + [True]
    assert point.width == index.efforts[-1] <= 1.25 * 0.9 * 400 + 1
    assert point.recall == pytest.approx(min(1, point.width / 400), abs=0.01)
    assert found.curve.points == ((100, SearchParams(point.width)),)
    assert point.p50_ms > 0


def test_the_target_is_reached_with_confidence():
    """Half of the queries lie far below the mean: of four of them that may be chance, of 4,000 it may not."""
    (few,) = tune(Planted(400, spread=0.08), queries(4), [100], 0.76).best_points
    (many,) = tune(Planted(400, spread=0.08), queries(4000), [100], 0.76).best_points
    assert few.width > many.width
    assert few.recall - few.recall_ci95 >= 0.76
    assert 0.76 <= many.recall - many.recall_ci95 < few.recall - few.recall_ci95


@pytest.mark.parametrize("quiet", [False, True])
def test_what_cannot_be_reached_ends_before_the_whole_pool_and_is_said(caplog, quiet):
    index = Planted(5000)
    with caplog.at_level(logging.WARNING):
        (point,) = tune(index, queries(10), [100], 0.9, is_trial=quiet).best_points
    assert index.size / 1.25 <= point.width < index.size  # all of it would be a scan by another name
    assert point.recall == pytest.approx(0.19)
    assert ("ANN recall@100 of at least 0.900 was not reached" in caplog.text) != quiet
    assert ("0.1900 ± 0.0000" in caplog.text) != quiet


def test_more_that_gains_nothing_is_not_tried():
    """As in a graph that many equal vectors have torn apart: what is found early is all that is found."""
    torn = Planted(1000)
    torn.search = lambda asked, k, *, effort=None, allowed=None: Planted.search(
        torn, asked, k, search_params=SearchParams(300)
    )
    tune(torn, queries(10), [100], 0.9)
    found = tune(torn, queries(10), [100], 0.9, is_trial=True)
    assert len(found.trials) == 1 + tuning._PLATEAU_STEPS


def test_what_costs_more_than_a_scan_of_everything_is_not_tried(monkeypatch):
    timed(monkeypatch, lambda k, effort: effort.width / 100)
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 0.75e-3)  # 0.75 ms for all
    found = tune(Planted(1000), queries(10), [100], 0.9, is_trial=True)
    assert found.trials[-2].p50_ms <= 3 < found.trials[-1].p50_ms


def test_what_takes_too_long_is_not_chosen(caplog, monkeypatch):
    """Width 360 would reach the target in 3.6 ms; within 2 ms the best is what about 200 finds."""
    timed(monkeypatch, lambda k, effort: effort.width / 100)
    with caplog.at_level(logging.WARNING):
        (point,) = tune(Planted(400), queries(), [100], 0.9, max_latency_ms=2.0).best_points
    assert 2.0 / 1.25 < point.p50_ms <= 2.0
    assert "not reached within 2 ms" in caplog.text
    caplog.clear()
    (point,) = tune(Planted(400), queries(), [100], 0.9, max_latency_ms=5.0).best_points
    assert point.recall >= 0.9
    assert not caplog.text


def test_where_nothing_is_quick_enough_the_least_effort_stands(caplog, monkeypatch):
    timed(monkeypatch, lambda k, effort: 50 + effort.width)
    (point,) = tune(Planted(400), queries(), [100], 0.9, max_latency_ms=2.0).best_points
    assert (point.width, point.p50_ms) == (100, 150)
    assert "not reached within 2 ms" in caplog.text


def test_a_given_width_is_kept():
    index = Planted(400)
    found = tune(index, queries(), [10, 100], 0.9, fixed_width=150, is_trial=True)
    assert [(point.k, point.width) for point in found.best_points] == [(10, 150), (100, 150)]
    assert index.efforts == [150, 150]


def test_depths_beyond_the_pool_are_left_out():
    assert [point.k for point in tune(Planted(9, size=50), queries(4), [10, 50, 51], 0.9).best_points] == [10, 50]
    assert [point.k for point in tune(Planted(9, size=5), queries(4), [10, 50], 0.9).best_points] == [5]


def test_cells_are_tried_with_the_least_depth_that_reaches_the_target(monkeypatch):
    timed(monkeypatch, lambda k, effort: effort.width / 10)  # ever more cells only cost more
    index = PlantedCells(9, 1.9)
    found = tune(index, queries(), [100], 0.9)
    assert [one.width for one in index.asked] == [one.width for one in found.trials] == [4, 8, 16, 11, 32]
    assert {one.depth for one in index.asked} == {600}
    few, more, enough, between, beyond = found.trials
    assert (few.rerank_depth, more.rerank_depth) == (600, 600)  # whatever the depth, these cells do not hold them
    assert (enough.rerank_depth, between.rerank_depth, beyond.rerank_depth) == (
        200,
        200,
        200,
    )  # 2 · k; with 1.5 it would be .79
    assert (few.recall, more.recall, enough.recall) == pytest.approx((0.44, 0.89, 1.0))
    assert found.best_points == (between,)


@pytest.mark.parametrize(("asked", "depth"), [(4, 200), (400, 150)])
def test_the_depth_too_is_enough_with_confidence(monkeypatch, asked, depth):
    """With 1.5 · k half of the queries find all and half .79: of four of them .895 is chance."""
    timed(monkeypatch, lambda k, effort: effort.width / 10)
    assert tune(PlantedCells(4, 1, 1.9), queries(asked), [100], 0.85).best_points[0].rerank_depth == depth


def test_the_fastest_of_those_that_reach_the_target_is_chosen(monkeypatch):
    """More cells may need less depth; the search for them ends where they only cost more."""
    milliseconds = {4: 5.0, 8: 4.0, 16: 3.0, 32: 3.2, 64: 2.5}
    timed(monkeypatch, lambda k, effort: milliseconds.get(effort.width, 9.0))
    found = tune(PlantedCells(4, 1), queries(), [100], 0.9)
    assert [one.width for one in found.trials] == [4, 8, 16, 32, 64]
    assert found.best_points[0].search_params == SearchParams(64, 100)


def test_cells_end_with_all_of_them(monkeypatch, caplog):
    timed(monkeypatch, lambda k, effort: effort.width / 10)
    found = tune(PlantedCells(640, 1), queries(), [100], 0.9)
    assert found.trials[-1].width == 64
    assert found.best_points == found.trials[-1:]
    assert "recall@100 of at least 0.900 was not reached" in caplog.text
    assert [one.width for one in tune(PlantedCells(8, 1), queries(), [100], 0.9, fixed_width=8).trials] == [8]


def test_costs_are_those_of_the_measured_points(monkeypatch):
    timed(monkeypatch, lambda k, effort: 0.25 + 0.01 * effort.width + 0.002 * effort.depth)
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 1e-5)
    costs = tune(PlantedCells(9, 1.9), queries(), [50, 100], 0.9).costs
    assert (costs.fixed_ms, costs.ms_per_width, costs.ms_per_reranked_row) == pytest.approx((0.25, 0.01, 0.002))
    assert costs.ms_per_scanned_row == 1e-5


def test_one_effort_alone_costs_in_proportion_to_its_width(monkeypatch):
    """A search ten times as wide must not look as cheap."""
    timed(monkeypatch, lambda k, effort: 0.004 * effort.width)
    found = tune(Planted(10), queries(), [100], 0.9)
    assert len(found.trials) == 1
    assert (found.costs.fixed_ms, found.costs.ms_per_width, found.costs.ms_per_reranked_row) == pytest.approx(
        (0, 0.004, 0)
    )


points = st.builds(
    TuningPoint,
    st.just(10),
    st.integers(1, 300),
    st.just(0) | st.integers(10, 900),
    st.just(1.0),
    st.just(0.0),
    st.floats(1e-3, 50),
)


@given(st.lists(points, min_size=1, max_size=12))
def test_costs_are_never_negative(tried):
    index = ExactIndex.build(unit(0, 50))
    costs = tuning._fit_cost_model(index, unit(1, 3), tried, 1e-4)
    assert all(
        one >= 0 and math.isfinite(one) for one in (costs.fixed_ms, costs.ms_per_width, costs.ms_per_reranked_row)
    )
    assert costs.ms_per_scanned_row == 1e-4
    assert costs.estimate_index_ms(SearchParams(10, 10)) > 0


def test_a_scan_is_timed_over_rows_from_anywhere(monkeypatch):
    monkeypatch.setattr(tuning, "_SCANNED", 300)
    index, asked = ExactIndex.build(unit(0, 1000)), []
    search_exact = index.search_exact

    def noted(queries, k, *, allowed):
        asked.append((len(queries), k, allowed.count))
        assert allowed.has(np.arange(500)).any()
        assert allowed.has(np.arange(500, 1000)).any()
        return search_exact(queries, k, allowed=allowed)

    monkeypatch.setattr(index, "search_exact", noted)
    assert 0 < measure_scan_ms_per_row(index, unit(1, 50)) < 1
    assert asked == [(1, 100, 300)] * 20


@pytest.mark.parametrize("kind", ["hnsw", "cells"])
def test_an_index_searched_with_what_was_found_reaches_the_target(kind):
    vectors, asked, others = unit(0, 3000), unit(1, 300), unit(2, 300)
    if kind == "hnsw":
        index = HnswIndex.build(vectors, m=8, ef_construction=40, threads=1)
    else:
        index = IvfPqIndex.build(vectors, nlist=64, threads=1)
    found = tune(index, asked, [10, 50], 0.95)
    assert [point.k for point in found.best_points] == [10, 50]
    assert isinstance(found.costs, CostModel)
    for k in (10, 30, 50):
        truth = ExactIndex.build(vectors).search(others, k).rows
        rows = index.search(others, k, search_params=found.curve.look_up(k)).rows
        assert recall_per_query(index, others, rows, truth).mean() > 0.93
    for point in found.trials:
        # Cells were measured by deeper candidates, cut: of rows with one code others may stand at the cut.
        hits, truth = (
            index.search(asked, point.k, search_params=point.search_params),
            index.search_exact(asked, point.k),
        )
        shares = recall_per_query(index, asked, hits.rows, truth.rows)
        assert shares.mean() == pytest.approx(point.recall, abs=2e-3 if kind == "cells" else 0)


def test_progress_is_told():
    told = []

    class Listener:
        def begin(self, task, total):
            told.append((task, total))
            return lambda steps=1, note="": told.append(steps)

        def end(self):
            told.append("end")

    with progress.report_to(Listener()):
        tune(Planted(400), queries(4), [10, 100], 0.5)
    assert told == [("tuning index", 3), 1, 1, 1, "end"]
