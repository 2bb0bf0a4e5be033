import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index import ivf_engine, sweep, timing, tuning
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import AdaptedSearch, SearchParams
from vecall.index.engines import ENGINES
from vecall.index.exact import ExactIndex
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.ivf_engine import sweep_spreads
from vecall.index.planner import CostModel
from vecall.index.search_params import FilteredSearchTable, RecallTarget, TuningPoint
from vecall.index.timing import measure_scan_ms_per_row
from vecall.index.tuning import tune


def unit_vectors(seed, n, dim=16):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_queries(n=50):
    return np.zeros((n, 2), np.float32)


class PlantedIndex:
    """Index whose search finds the share width / `full_width` of the exact rows.

    Attributes:
        full_width: width that finds all exact rows.
        spread: added to the share for odd queries, subtracted for even ones.
        widths: widths of the batch searches so far.
    """

    def __init__(self, full_width, *, spread=0.0, size=1000):
        self.size, self.max_width, self.full_width, self.spread, self.widths = size, size, full_width, spread, []
        self.vectors = self

    def score(self, query, rows):
        return -rows.astype(np.float32)

    def search_exact(self, queries, k, *, allowed=None):
        rows = np.tile(np.arange(k), (len(queries), 1))
        return Hits(rows, -rows.astype(np.float32))

    def search(self, queries, k, *, search_params=None, allowed=None):
        if len(queries) > 1:
            self.widths.append(search_params.width)
        hits = self.search_exact(queries, k)
        for b, query_rows in enumerate(hits.rows):
            deviation = self.spread * (1 if b % 2 else -1)
            found_share = min(1.0, max(0.0, search_params.width / self.full_width + deviation))
            query_rows[round(k * found_share) :] = -1
        return hits


@pytest.fixture(autouse=True)
def _few_spreads(monkeypatch):
    monkeypatch.setattr(ivf_engine, "SPREADS", (0.8, 0.85, 0.9, 0.93, 0.95, 0.965, 0.975, 0.99))


class PlantedIvf(IvfPqIndex):
    """IVF index of which the lists of a spread hold the share spread / `full_spread` of the exact rows.

    The exact rows are evenly spaced among the first `depth_factor` · k candidates; with several factors, query b has
    factor b modulo their number. Spreads 0.8 and 0.9 scan 50 and 150 lists.
    """

    size, nlist = 1000, 220

    def __init__(self, full_spread, *depth_factors):
        self.vectors = self
        self.full_spread, self.depth_factors, self.candidate_params = full_spread, depth_factors, []

    search_exact, score = PlantedIndex.search_exact, PlantedIndex.score

    def search(self, queries, k, *, search_params=None, allowed=None, lists=None):
        return self.search_exact(queries, k)

    def profile_filter(self, allowed):
        return FilterProfile(allowed)

    def adapt(self, request, search_params):
        return AdaptedSearch(search_params)

    def compute_median_nprobe(self, queries, k, spread):
        return round(1000 * (spread - 0.75))

    def search_candidates(self, queries, k, search_params, allowed=None, lists=None):
        self.candidate_params.append(search_params)
        rows = np.full((len(queries), search_params.rerank_depth), -1)
        assert search_params.rerank_depth == 6 * k  # 6 is the largest rerank factor
        found = round(k * min(1.0, search_params.spread / self.full_spread))
        for remainder, depth_factor in enumerate(self.depth_factors):
            positions = np.linspace(0, math.ceil(depth_factor * k) - 1, k).astype(int)[:found]
            rows[remainder :: len(self.depth_factors), positions] = np.arange(found)
        return rows


def plant_latency(monkeypatch, ms_of, ms_per_scanned_row=1.0):
    """Make searches take as many milliseconds as a function of the search parameters says, and scans a constant."""
    monkeypatch.setattr(timing, "measure_median_ms", lambda index, queries, k, params, allowed=None: ms_of(params))
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: ms_per_scanned_row)


def test_smallest_width_that_reaches_the_target_is_chosen():
    index = PlantedIndex(400)
    result = tune(index, make_queries(), [100], RecallTarget(0.9, 0))
    (point,) = result.best_points
    assert (point.k, point.rerank_depth, point.recall_ci95) == (100, 0, pytest.approx(0, abs=1e-9))
    assert index.widths == sorted(index.widths) == [trial.width for trial in result.trials]
    assert index.widths[0] == 100
    is_reached = [width >= 0.9 * 400 for width in index.widths]
    assert is_reached == [False] * (len(is_reached) - 1) + [True]
    assert point.width == index.widths[-1] <= 1.25 * 0.9 * 400 + 1
    assert point.recall == pytest.approx(min(1, point.width / 400), abs=0.01)
    assert result.curve.points == ((100, SearchParams(point.width)),)
    assert point.p50_ms > 0


def test_target_is_reached_with_confidence():
    """Half of the queries are far below the mean: with 4 queries that may be chance, with 4,000 it may not."""
    (few,) = tune(PlantedIndex(400, spread=0.08), make_queries(4), [100], RecallTarget(0.76, 0)).best_points
    (many,) = tune(PlantedIndex(400, spread=0.08), make_queries(4000), [100], RecallTarget(0.76, 0)).best_points
    assert few.width > many.width
    assert few.recall - few.recall_ci95 >= 0.76
    assert 0.76 <= many.recall - many.recall_ci95 < few.recall - few.recall_ci95


@pytest.mark.parametrize("warn_if_missed", [True, False])
def test_sweep_for_an_unreachable_target_ends_before_all_rows_with_a_warning(caplog, warn_if_missed):
    index = PlantedIndex(5000)
    with caplog.at_level(logging.WARNING):
        (point,) = tune(index, make_queries(10), [100], RecallTarget(0.9, 0), warn_if_missed=warn_if_missed).best_points
    assert index.size / 1.25 <= point.width < index.size  # a search as wide as the index would be a scan
    assert point.recall == pytest.approx(0.19)
    assert (
        "ANN recall@100 of at least 0.900, 0.000 of the worst 1 % of queries, was not" in caplog.text
    ) == warn_if_missed
    assert ("0.1900 ± 0.0000, worst 0.190" in caplog.text) == warn_if_missed


def test_warning_counts_the_trials_of_its_k(caplog):
    with caplog.at_level(logging.WARNING):
        result = tune(PlantedIndex(5000), make_queries(10), [10, 100], RecallTarget(0.9, 0), tune_filters=False)
    for k, line in zip((10, 100), caplog.messages, strict=True):
        assert f"recall@{k} " in line
        assert f"the best of {sum(trial.k == k for trial in result.trials)} trials" in line


def test_filters_are_tuned_unless_turned_off_or_the_width_is_fixed(monkeypatch):
    filtered_table = FilteredSearchTable(depth_factor=2.0)
    monkeypatch.setattr(tuning, "tune_filtered", lambda *_: filtered_table)
    assert tune(PlantedIndex(400), make_queries(4), [100], RecallTarget(0.9, 0)).filtered_table == filtered_table
    for options in ({"tune_filters": False}, {"fixed_width": 400}):
        result = tune(PlantedIndex(400), make_queries(4), [100], RecallTarget(0.9, 0), **options)
        assert result.filtered_table == FilteredSearchTable()


def test_sweep_ends_where_recall_stops_growing():
    """As in the graph over many equal vectors, which is disconnected: a wider search finds no more."""
    index = PlantedIndex(1000)

    def search(queries, k, *, search_params=None, allowed=None):
        return PlantedIndex.search(index, queries, k, search_params=SearchParams(300))

    index.search = search
    tune(index, make_queries(10), [100], RecallTarget(0.9, 0))
    result = tune(index, make_queries(10), [100], RecallTarget(0.9, 0), tune_filters=False, warn_if_missed=False)
    assert len(result.trials) == 1 + sweep._PLATEAU_STEPS


def test_sweep_ends_where_a_search_costs_two_full_scans(monkeypatch):
    plant_latency(monkeypatch, lambda params: params.width / 100, ms_per_scanned_row=0.75e-3)  # 0.75 ms for all rows
    result = tune(
        PlantedIndex(1000), make_queries(10), [100], RecallTarget(0.9, 0), tune_filters=False, warn_if_missed=False
    )
    assert result.trials[-2].p50_ms <= 1.5 < result.trials[-1].p50_ms


@pytest.mark.parametrize(("last_width", "far_width"), [(100, 800), (2000, 10_000), (20_000, 20_000)])
def test_cost_model_is_fitted_to_a_wide_search_but_to_none_that_takes_seconds(monkeypatch, last_width, far_width):
    """A graph that missed its target was tried at widths at which 8 times as many take minutes to measure."""
    widths = []

    def measure(index, queries, k, params, allowed=None):
        widths.append(params.width)
        return 0.5 + params.width / 100

    monkeypatch.setattr(timing, "measure_median_ms", measure)
    index = PlantedIndex(last_width, size=100_000)
    tune(index, make_queries(10), [10], RecallTarget(1, 0), fixed_width=last_width, warn_if_missed=False)
    assert widths == [last_width, far_width]


def test_point_beyond_the_latency_is_not_chosen(caplog, monkeypatch):
    """Width 360 would reach the target in 3.6 ms; within 2 ms the best is a width of about 200."""
    plant_latency(monkeypatch, lambda params: params.width / 100)
    with caplog.at_level(logging.WARNING):
        result = tune(PlantedIndex(400), make_queries(), [100], RecallTarget(0.9, 0), max_latency_ms=2.0)
    (point,) = result.best_points
    assert 2.0 / 1.25 < point.p50_ms <= 2.0
    assert len(result.trials) == 5  # widths 100 to 196, and one beyond
    assert "not reached within 2 ms" in caplog.text
    caplog.clear()
    (point,) = tune(PlantedIndex(400), make_queries(), [100], RecallTarget(0.9, 0), max_latency_ms=5.0).best_points
    assert point.recall >= 0.9
    assert not caplog.text


def test_narrowest_search_is_chosen_if_none_is_within_the_latency(caplog, monkeypatch):
    plant_latency(monkeypatch, lambda params: 50 + params.width)
    (point,) = tune(PlantedIndex(400), make_queries(), [100], RecallTarget(0.9, 0), max_latency_ms=2.0).best_points
    assert (point.width, point.p50_ms) == (100, 150)
    assert "not reached within 2 ms" in caplog.text
    assert "lower index.target_recall or index.target_worst or raise index.latency_ms" in caplog.text


def test_fixed_width_is_the_only_one_tried():
    index = PlantedIndex(400)
    result = tune(index, make_queries(), [10, 100], RecallTarget(0.9, 0), fixed_width=150, warn_if_missed=False)
    assert [(point.k, point.width) for point in result.best_points] == [(10, 150), (100, 150)]
    assert index.widths == [150, 150]


def test_ks_beyond_the_size_are_left_out():
    result = tune(PlantedIndex(9, size=50), make_queries(4), [10, 50, 51], RecallTarget(0.9, 0))
    assert [point.k for point in result.best_points] == [10, 50]
    assert [
        point.k for point in tune(PlantedIndex(9, size=5), make_queries(4), [10, 50], RecallTarget(0.9, 0)).best_points
    ] == [5]


def test_worst_queries_reach_their_target():
    """The mean query finds the share width / 400, half of the queries 0.08 less."""
    (point,) = tune(PlantedIndex(400, spread=0.08), make_queries(), [100], RecallTarget(0.5, 0.9)).best_points
    assert 0.9 <= point.worst_recall <= point.recall
    assert 0.98 * 400 <= point.width <= 1.25 * 0.98 * 400 + 1


def test_each_spread_is_measured_with_the_smallest_sufficient_depth(monkeypatch):
    plant_latency(monkeypatch, lambda params: params.width / 10)  # a larger spread is always slower
    index = PlantedIvf(0.95, 1.9)
    result = tune(index, make_queries(), [100], RecallTarget(0.9, 0), sweep=sweep_spreads)
    spreads = [0.8, 0.85, 0.9, 0.93]
    assert [params.spread for params in index.candidate_params] == spreads
    assert [trial.spread for trial in result.trials] == spreads
    assert [trial.width for trial in result.trials] == [50, 100, 150, 180]
    # At 0.8 and 0.85 the lists do not hold enough rows at any depth. From 0.9 on 2 k suffice; 1.5 k would give 0.75.
    assert [trial.rerank_depth for trial in result.trials] == [600, 600, 200, 200]
    assert [trial.recall for trial in result.trials[:3]] == pytest.approx([0.84, 0.89, 0.95])
    assert result.best_points == (result.trials[2],)


@pytest.mark.parametrize(("query_count", "depth"), [(4, 200), (400, 150)])
def test_depth_is_sufficient_with_confidence(monkeypatch, query_count, depth):
    """With 1.5 k half of the queries have recall 1 and half 0.79: with 4 queries the mean of 0.895 may be chance."""
    plant_latency(monkeypatch, lambda params: params.width / 10)
    result = tune(PlantedIvf(0.5, 1, 1.9), make_queries(query_count), [100], RecallTarget(0.85, 0), sweep=sweep_spreads)
    assert result.best_points[0].rerank_depth == depth


def test_depth_is_sufficient_for_the_worst_queries(monkeypatch):
    plant_latency(monkeypatch, lambda params: params.width / 10)
    result = tune(PlantedIvf(0.5, 1, 1.9), make_queries(400), [100], RecallTarget(0.85, 0.8), sweep=sweep_spreads)
    assert result.best_points[0].rerank_depth == 200


def test_fastest_spread_that_reaches_the_target_is_chosen(monkeypatch):
    """A larger spread may need less depth; the sweep ends where it is only slower."""
    ms_by_spread = {0.8: 5.0, 0.85: 4.0, 0.9: 3.0, 0.93: 3.2, 0.95: 2.5}
    plant_latency(monkeypatch, lambda params: ms_by_spread.get(params.spread, 9.0))
    result = tune(PlantedIvf(0.5, 1), make_queries(), [100], RecallTarget(0.9, 0), sweep=sweep_spreads)
    assert [trial.spread for trial in result.trials] == [*ms_by_spread, 0.965]
    assert result.best_points[0].search_params == SearchParams(200, 100, 0.95)


def test_of_spreads_that_are_about_as_fast_the_robust_one_is_chosen(monkeypatch):
    """The largest would be the fastest by chance, and scan hundreds of lists for queries unlike the tuning ones."""
    monkeypatch.setattr(ivf_engine, "SPREADS", (0.3, 0.35, 0.4, 0.5, 1.0))
    monkeypatch.setattr(PlantedIvf, "compute_median_nprobe", lambda *_: 50)
    ms_by_spread = {0.3: 1.0, 0.35: 1.05, 0.4: 1.04, 0.5: 1.02, 1.0: 0.99}
    plant_latency(monkeypatch, lambda params: ms_by_spread.get(params.spread, 9.0))
    result = tune(PlantedIvf(0.2, 1), make_queries(), [100], RecallTarget(0.9, 0), sweep=sweep_spreads)
    assert [trial.spread for trial in result.trials] == list(ms_by_spread)
    assert result.best_points[0].spread == 0.4
    ms_by_spread[0.35] = 1.2  # slower than the fastest by more than a tenth
    result = tune(PlantedIvf(0.2, 1), make_queries(), [100], RecallTarget(0.9, 0), sweep=sweep_spreads)
    assert result.best_points[0].spread == 0.3


def test_spread_sweep_ends_where_every_list_is_scanned(monkeypatch, caplog):
    plant_latency(monkeypatch, lambda params: params.width / 10)
    result = tune(PlantedIvf(10, 1), make_queries(), [100], RecallTarget(0.9, 0), sweep=sweep_spreads)
    assert [trial.width >= 220 for trial in result.trials] == [False] * (len(result.trials) - 1) + [True]
    assert result.best_points[0].recall == max(trial.recall for trial in result.trials)
    message = "recall@100 of at least 0.900, 0.000 of the worst 1 % of queries, was not reached: the best of"
    assert message in caplog.text  # no latency limit was given


def test_fixed_nprobe_is_the_only_one_tried():
    index = IvfPqIndex.build(unit_vectors(0, 500), nlist=16, threads=1)
    result = tune(
        index,
        unit_vectors(1, 20),
        [10],
        RecallTarget(0.9, 0),
        sweep=sweep_spreads,
        fixed_width=8,
        warn_if_missed=False,
    )
    assert [(trial.width, trial.spread) for trial in result.trials] == [(8, 0.0)]


def test_cost_model_fits_the_measured_points(monkeypatch):
    plant_latency(
        monkeypatch, lambda params: 0.25 + 0.01 * params.width + 0.002 * params.rerank_depth, ms_per_scanned_row=1e-5
    )
    costs = tune(PlantedIvf(0.95, 1.9), make_queries(), [50, 100], RecallTarget(0.9, 0), sweep=sweep_spreads).costs
    assert (costs.fixed_ms, costs.ms_per_width, costs.ms_per_reranked_row) == pytest.approx((0.25, 0.01, 0.002))
    assert costs.ms_per_scanned_row == 1e-5


def test_cost_model_of_one_trial_is_proportional_to_the_width(monkeypatch):
    """A search ten times as wide must not be estimated as equally fast."""
    plant_latency(monkeypatch, lambda params: 0.004 * params.width)
    result = tune(PlantedIndex(10), make_queries(), [100], RecallTarget(0.9, 0))
    assert len(result.trials) == 1
    costs = result.costs
    assert (costs.fixed_ms, costs.ms_per_width, costs.ms_per_reranked_row) == pytest.approx((0, 0.004, 0))


points = st.builds(
    TuningPoint,
    st.just(10),
    st.integers(1, 300),
    st.just(0) | st.integers(10, 900),
    st.just(1.0),
    st.just(0.0),
    st.floats(1e-3, 50),
    st.just(1.0),
    st.sampled_from([0.0, 0.9]),
)


@given(st.lists(points, min_size=1, max_size=12))
def test_costs_are_never_negative(trials):
    index = ExactIndex.build(unit_vectors(0, 50))
    costs = tuning._fit_cost_model(index, unit_vectors(1, 3), trials, 1e-4)
    index_costs = (costs.fixed_ms, costs.ms_per_width, costs.ms_per_reranked_row)
    assert all(cost >= 0 and math.isfinite(cost) for cost in index_costs)
    assert costs.ms_per_scanned_row == 1e-4
    assert costs.estimate_index_ms(SearchParams(10, 10)) > 0


def test_scan_is_timed_on_rows_from_the_whole_index(monkeypatch):
    monkeypatch.setattr(timing, "_SCAN_SAMPLE_ROWS", 300)
    index, scans = ExactIndex.build(unit_vectors(0, 1000)), []
    search_exact = index.vectors.search_exact

    def recording_search_exact(queries, k, *, allowed):
        scans.append((len(queries), k, allowed.count))
        assert allowed.contains(np.arange(500)).any()
        assert allowed.contains(np.arange(500, 1000)).any()
        return search_exact(queries, k, allowed=allowed)

    monkeypatch.setattr(index.vectors, "search_exact", recording_search_exact)
    assert 0 < measure_scan_ms_per_row(index.vectors, unit_vectors(1, 50)) < 1
    assert scans == [(1, 100, 300)] * 20


@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_tuned_index_reaches_the_target_on_other_queries(engine):
    vectors, queries, other_queries = unit_vectors(0, 3000), unit_vectors(1, 300), unit_vectors(2, 300)
    if engine == "hnsw":
        index = HnswIndex.build(vectors, m=8, ef_construction=40, threads=1)
    else:
        index = IvfPqIndex.build(vectors, nlist=64, threads=1)
    result = tune(index, queries, [10, 50], RecallTarget(0.95, 0), sweep=ENGINES[engine].sweep)
    assert [point.k for point in result.best_points] == [10, 50]
    assert isinstance(result.costs, CostModel)
    for k in (10, 30, 50):
        exact_rows = ExactIndex.build(vectors).search(other_queries, k).rows
        found_rows = index.search(other_queries, k, search_params=result.curve.look_up(k)).rows
        assert recall_per_query(index.vectors, other_queries, found_rows, exact_rows).mean() > 0.93
    for trial in result.trials:
        # IVF trials measure deeper candidates, cut at the depth: of rows with equal codes others may survive the cut.
        found_rows = index.search(queries, trial.k, search_params=trial.search_params).rows
        exact_rows = index.vectors.search_exact(queries, trial.k).rows
        recalls = recall_per_query(index.vectors, queries, found_rows, exact_rows)
        assert recalls.mean() == pytest.approx(trial.recall, abs=2e-3 if engine == "ivf" else 0)


def test_tuning_reports_progress(progress_events):
    tune(PlantedIndex(400), make_queries(4), [10, 100], RecallTarget(0.5, 0))
    assert progress_events == [("tuning index", 3), 1, 1, 1, "end"]
