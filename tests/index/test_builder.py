import logging
import math

import numpy as np
import pytest
from support.vectors import random_vectors

from vecall.errors import ConfigError, DataError
from vecall.index import builder
from vecall.index.base import SearchParams
from vecall.index.builder import build_index
from vecall.index.engines import ENGINES
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import FilteredSearchTable, TuningPoint
from vecall.index.settings import IndexSettings
from vecall.index.tuning import TuningResult

EASY = {"target_recall": 0.5, "ks": (5,)}  # settings that are tuned quickly


def make_index(n=300, queries=None, **settings):
    queries = random_vectors(20, 4, seed=1) if queries is None else queries
    return build_index(random_vectors(n, 4), queries, IndexSettings(**EASY | settings))


def make_tuning_result(*points):
    return TuningResult(points, (), CostModel(0, 0, 0, 0), FilteredSearchTable())


@pytest.mark.parametrize(
    ("settings", "n", "index_type", "engine"),
    [
        ({}, 1999, ExactIndex, "exact"),
        ({"engine": "exact"}, 2500, ExactIndex, "exact"),
        ({"engine": "hnsw"}, 300, HnswIndex, "hnsw"),
        ({"engine": "ivf"}, 300, IvfPqIndex, "ivf"),
        ({"M": 4}, 300, HnswIndex, "hnsw"),  # a parameter implies its engine
        ({"ef_construction": 20}, 300, HnswIndex, "hnsw"),
        ({"ef": 20}, 300, HnswIndex, "hnsw"),
        ({"nlist": 9}, 300, IvfPqIndex, "ivf"),
        ({"nprobe": 9}, 300, IvfPqIndex, "ivf"),
        ({"engine": "hnsw"}, 1, ExactIndex, "exact"),  # one vector needs no graph
        ({"engine": "ivf"}, 2, IvfPqIndex, "ivf"),
    ],
)
def test_engine_is_set_or_implied_or_follows_the_size(settings, n, index_type, engine):
    built = make_index(n, **settings)
    assert type(built.index) is index_type
    assert (built.engine, built.index.vectors.size) == (engine, n)
    assert (built.tuning is None) == (index_type is ExactIndex)


@pytest.mark.parametrize(
    ("settings", "first_key"),
    [
        ({"engine": "hnsw", "nlist": 9}, "nlist"),
        ({"engine": "hnsw", "M": 5, "nprobe": 9}, "nprobe"),
        ({"engine": "ivf", "M": 5}, "M"),
        ({"engine": "ivf", "ef": 5, "nlist": 7}, "ef"),
        ({"engine": "exact", "ef_construction": 5}, "ef_construction"),
        ({"engine": "exact", "nprobe": 5}, "nprobe"),
        ({"M": 5, "nlist": 9}, "M"),
        ({"ef": 5, "nprobe": 9}, "ef"),
    ],
)
def test_parameters_of_another_engine_are_refused(settings, first_key):
    with pytest.raises(ConfigError, match=rf"^index\.{first_key}: .*engine '{settings.get('engine', 'auto')}'"):
        make_index(**settings)


def test_hnsw_parameters_of_the_settings_reach_the_graph():
    built = make_index(engine="hnsw", M=5, ef_construction=33, ef=44)
    graph = built.index._graph.hnsw
    assert (graph.efConstruction, graph.nb_neighbors(1)) == (33, 5)
    assert built.build_params == {"M": 5, "ef_construction": 33}
    assert [point.search_params for point in built.tuning.best_points] == [SearchParams(44)]
    assert make_index(engine="hnsw").build_params == {"M": 16, "ef_construction": 200}


def test_ivf_parameters_of_the_settings_reach_the_index():
    built = make_index(engine="ivf", nlist=11, nprobe=7)
    assert (built.index.nlist, built.build_params) == (11, {"nlist": 11})
    assert [point.width for point in built.tuning.best_points] == [7]
    assert make_index(engine="ivf").build_params == {"nlist": 32}  # 2 sqrt(300) = 35
    assert make_index(3, engine="ivf", nlist=99).build_params == {"nlist": 3}


@pytest.mark.parametrize("vectors", [np.empty((0, 4), np.float32), random_vectors(5, 4).astype(np.float64)])
@pytest.mark.parametrize("engine", ["auto", "hnsw", "ivf", "exact"])
def test_vectors_that_cannot_be_stored_are_refused(vectors, engine):
    with pytest.raises(DataError, match="item vectors are"):
        build_index(vectors, random_vectors(5, 4), IndexSettings(engine=engine))


def test_tuned_parameters_reach_the_target():
    built = make_index(2500, random_vectors(200, 4, seed=1), engine="ivf", target_recall=0.9, ks=(5, 50))
    assert [point.k for point in built.tuning.best_points] == [5, 50]
    assert all(point.recall - point.recall_ci95 >= 0.9 for point in built.tuning.best_points)


def test_item_vectors_replace_missing_queries(caplog, monkeypatch):
    tuning_queries, tune = [], builder.tune

    def recording_tune(index, queries, *args, **kwargs):
        tuning_queries.append(queries)
        return tune(index, queries, *args, **kwargs)

    monkeypatch.setattr(builder, "tune", recording_tune)
    monkeypatch.setattr(builder, "_TUNING_SAMPLE_SIZE", 30)
    vectors = random_vectors(300, 4).astype(np.float16)
    with caplog.at_level(logging.INFO):
        built = build_index(vectors, None, IndexSettings(engine="ivf", **EASY))
    assert built.tuning.best_points
    assert "tuning the index on item vectors" in caplog.text
    (queries,) = tuning_queries
    assert (len(queries), queries.dtype) == (30, np.float32)
    assert np.isin(queries[:, 0], vectors[:, 0].astype(np.float32)).all()


def test_many_queries_are_subsampled_evenly(monkeypatch):
    monkeypatch.setattr(builder, "_TUNING_SAMPLE_SIZE", 11)
    used = []

    def recording_tune(index, queries, *args, **kwargs):
        used.append(queries[:, 0].tolist())
        return make_tuning_result()

    monkeypatch.setattr(builder, "tune", recording_tune)
    queries = np.tile(np.arange(101, dtype=np.float32)[:, None], 4)
    make_index(engine="hnsw", queries=queries)
    assert used == [list(range(0, 101, 10))]


@pytest.fixture
def plant_trials(monkeypatch):
    """Replace the benchmark of an engine by a function of it; gives the list of (engine, items, queries) tried."""

    def plant(result_of):
        trials = []

        def benchmark(engine, vectors, queries, settings):
            trials.append((engine, len(vectors), len(queries)))
            return result_of(engine)

        monkeypatch.setattr(builder, "_benchmark_engine", benchmark)
        return trials

    return plant


@pytest.mark.parametrize(
    ("result_of", "engine", "nlist"),
    [
        (lambda engine: (0, 1.0 if engine.name == "hnsw" else 2.0), "hnsw", None),
        (lambda engine: (0, 9.0 if engine.name == "hnsw" else 2.0), "ivf", 128),
        # Fewer missed ks take precedence over speed.
        (lambda engine: (1, 1.0) if engine.name == "hnsw" else (0, 5.0), "ivf", 128),
        (lambda engine: (0, 9.0) if engine.name == "hnsw" else (2, 0.1), "hnsw", None),
        (lambda engine: (1, 1.0), "hnsw", None),  # the first of equals
    ],
)
def test_auto_chooses_the_fastest_engine_that_reaches_the_target(plant_trials, caplog, result_of, engine, nlist):
    plant_trials(result_of)
    with caplog.at_level(logging.INFO):
        built = make_index(2500)
    assert built.engine == engine
    assert nlist is None or built.build_params == {"nlist": nlist}
    assert caplog.text.count("trial on 2500 items") == 2


@pytest.mark.parametrize(
    ("hnsw_recall", "ivf_recall", "engine", "is_tried", "is_warned"),
    [
        (0.99, 0.99, "hnsw", False, False),
        (0.90, 0.99, "ivf", True, False),
        (0.90, 0.91, "hnsw", True, True),  # both miss, and the graph is faster
    ],
)
def test_graph_that_misses_its_target_over_all_items_is_compared_with_lists(
    plant_trials, monkeypatch, caplog, hnsw_recall, ivf_recall, engine, is_tried, is_warned
):
    plant_trials(lambda engine: (0, 1.0 if engine.name == "hnsw" else 2.0))

    def planted_tune(index, *args, warn_if_missed, tune_filters, **kwargs):
        is_graph = isinstance(index, HnswIndex)
        recall, ms = (hnsw_recall, 1.0) if is_graph else (ivf_recall, 2.0)
        assert not warn_if_missed  # before it is known which index is kept
        assert not tune_filters
        return make_tuning_result(TuningPoint(5, 9, 100, recall, 0.0, ms, 0.95))

    monkeypatch.setattr(builder, "tune", planted_tune)
    with caplog.at_level(logging.INFO):
        built = make_index(2500, target_recall=0.98)
    assert built.engine == engine
    assert ("hnsw misses its target at 1 of 1 ks over all 2500 items: trying ivf" in caplog.text) == is_tried
    assert ("was not reached" in caplog.text) == is_warned
    assert built.tuning.filtered_table != FilteredSearchTable()


def test_engines_are_compared_on_a_sample(plant_trials, monkeypatch):
    monkeypatch.setattr(builder, "_MAX_TRIAL_ITEMS", 2000)
    monkeypatch.setattr(builder, "_MAX_TRIAL_QUERIES", 7)
    trials = plant_trials(lambda engine: (0, 1.0))
    assert make_index(2600).index.vectors.size == 2600
    assert [(items, queries) for _, items, queries in trials] == [(2000, 7)] * 2
    assert [engine.name for engine, *_ in trials] == ["hnsw", "ivf"]


def test_no_engines_are_compared_if_the_settings_determine_one(plant_trials):
    trials = plant_trials(lambda engine: (0, 1.0))
    for settings in ({"engine": "hnsw"}, {"engine": "ivf"}, {"engine": "exact"}, {"ef": 9}, {"nprobe": 2}):
        make_index(2100, **settings)
    assert trials == []


@pytest.mark.parametrize(("worst", "expected_misses"), [(0.95, 1), (0.89, 2)])
def test_trial_result_by_hand(monkeypatch, worst, expected_misses):
    points = [TuningPoint(5, 9, 0, 0.99, 0.02, 0.2, 0.95), TuningPoint(50, 9, 0, 0.99, 0.001, 0.8, worst)]
    monkeypatch.setattr(builder, "tune", lambda *_, **__: make_tuning_result(*points))
    settings = IndexSettings(target_recall=0.98, ks=(5, 50))
    misses, ms = builder._benchmark_engine(ENGINES["hnsw"], random_vectors(50, 4), random_vectors(5, 4), settings)
    assert misses == expected_misses  # 0.99 ± 0.02 may be 0.97; the worst queries must reach 0.9
    assert ms == pytest.approx(math.sqrt(0.2 * 0.8))


@pytest.mark.parametrize("n", [2000, 3000])
def test_auto_reaches_the_target_by_its_own_measurement(n):
    built = make_index(n, target_recall=0.9, ks=(5, 20))
    assert built.engine in {"hnsw", "ivf"}
    assert all(point.recall >= 0.9 for point in built.tuning.best_points)
