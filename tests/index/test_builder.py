import logging
import math

import numpy as np
import pytest

from vecall.errors import ConfigError, DataError
from vecall.index import builder
from vecall.index.base import SearchParams
from vecall.index.builder import IndexSpec, build_index
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex
from vecall.index.planner import CostModel
from vecall.index.search_params import FilteredSearchParams, TuningPoint
from vecall.index.settings import IndexSettings
from vecall.index.tuning import TuningResult

QUICK = {"target_recall": 0.5, "ks": (5,)}


def normal(n, dim=4, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def built(n=300, queries=None, **settings):
    return build_index(normal(n), normal(20, seed=1) if queries is None else queries, IndexSettings(**QUICK | settings))


@pytest.mark.parametrize(
    ("settings", "n", "kind", "engine"),
    [
        ({}, 1999, ExactIndex, "exact"),
        ({"engine": "exact"}, 2500, ExactIndex, "exact"),
        ({"engine": "hnsw"}, 300, HnswIndex, "hnsw"),
        ({"engine": "cells"}, 300, IvfPqIndex, "cells"),
        ({"M": 4}, 300, HnswIndex, "hnsw"),  # a parameter names its engine
        ({"ef_construction": 20}, 300, HnswIndex, "hnsw"),
        ({"ef": 20}, 300, HnswIndex, "hnsw"),
        ({"cells": 9}, 300, IvfPqIndex, "cells"),
        ({"probes": 9}, 300, IvfPqIndex, "cells"),
        ({"engine": "hnsw"}, 1, ExactIndex, "exact"),  # nothing to find
        ({"engine": "cells"}, 2, IvfPqIndex, "cells"),
    ],
)
def test_the_engine_is_the_settings_or_follows_the_size(settings, n, kind, engine):
    made = built(n, **settings)
    assert type(made.index) is kind
    assert (made.engine, made.index.size) == (engine, n)
    assert (made.tuning is None) == (kind is ExactIndex)


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"engine": "hnsw", "cells": 9}, "cells"),
        ({"engine": "hnsw", "M": 5, "probes": 9}, "probes"),
        ({"engine": "cells", "M": 5}, "M"),
        ({"engine": "cells", "ef": 5, "cells": 7}, "ef"),
        ({"engine": "exact", "ef_construction": 5}, "ef_construction"),
        ({"engine": "exact", "probes": 5}, "probes"),
        ({"M": 5, "cells": 9}, "M"),
        ({"ef": 5, "probes": 9}, "ef"),
    ],
)
def test_parameters_of_two_engines_do_not_go_together(settings, first):
    with pytest.raises(ConfigError, match=rf"^index\.{first}: .*engine '{settings.get('engine', 'auto')}'"):
        built(**settings)


def test_given_parameters_reach_the_graph():
    made = built(engine="hnsw", M=5, ef_construction=33, ef=44)
    graph = made.index._graph.hnsw
    assert (graph.efConstruction, graph.nb_neighbors(1)) == (33, 5)
    assert made.build_params == {"M": 5, "ef_construction": 33}
    assert [point.search_params for point in made.tuning.best_points] == [SearchParams(44)]
    assert built(engine="hnsw").build_params == {"M": 16, "ef_construction": 200}


def test_given_parameters_reach_the_cells():
    made = built(engine="cells", cells=11, probes=7)
    assert (made.index.cells, made.build_params) == (11, {"cells": 11})
    assert [point.width for point in made.tuning.best_points] == [7]
    assert built(engine="cells").build_params == {"cells": 32}  # 2 · sqrt(300) = 35
    assert built(3, engine="cells", cells=99).build_params == {"cells": 3}


@pytest.mark.parametrize("vectors", [np.empty((0, 4), np.float32), normal(5).astype(np.float64)])
@pytest.mark.parametrize("engine", ["auto", "hnsw", "cells", "exact"])
def test_what_cannot_be_stored_is_refused(vectors, engine):
    with pytest.raises(DataError, match="item vectors are"):
        build_index(vectors, normal(5), IndexSettings(engine=engine))


def test_what_is_found_reaches_the_target():
    made = built(2500, normal(200, seed=1), engine="cells", target_recall=0.9, ks=(5, 50))
    assert [point.k for point in made.tuning.best_points] == [5, 50]
    assert all(point.recall - point.recall_ci95 >= 0.9 for point in made.tuning.best_points)


def test_item_vectors_stand_in_for_queries(caplog, monkeypatch):
    asked, tune = [], builder.tune

    def noted(index, queries, *args, **kwargs):
        asked.append(queries)
        return tune(index, queries, *args, **kwargs)

    monkeypatch.setattr(builder, "tune", noted)
    monkeypatch.setattr(builder, "_TUNED_WITH", 30)
    with caplog.at_level(logging.INFO):
        made = build_index(normal(300).astype(np.float16), None, IndexSettings(engine="cells", **QUICK))
    assert made.tuning.best_points
    assert "found on item vectors" in caplog.text
    assert (len(asked[0]), asked[0].dtype) == (30, np.float32)
    assert np.isin(asked[0][:, 0], normal(300).astype(np.float16)[:, 0].astype(np.float32)).all()


def test_many_queries_are_used_in_part_and_evenly(monkeypatch):
    monkeypatch.setattr(builder, "_TUNED_WITH", 11)
    asked = []

    def noted(index, queries, *args, **kwargs):
        asked.append(queries[:, 0].tolist())
        return TuningResult((), (), CostModel(0, 0, 0, 0), FilteredSearchParams())

    monkeypatch.setattr(builder, "tune", noted)
    queries = np.tile(np.arange(101, dtype=np.float32)[:, None], 4)
    built(engine="hnsw", queries=queries)
    assert asked == [list(range(0, 101, 10))]


@pytest.fixture
def contest(monkeypatch):
    """Let each structure miss so many ks in so many milliseconds, by a function; and note what was tried on what."""

    def planted(result):
        tried = []

        def attempt(structure, vectors, queries, settings):
            tried.append((structure, len(vectors), len(queries)))
            return result(structure)

        monkeypatch.setattr(builder, "_try", attempt)
        return tried

    return planted


@pytest.mark.parametrize(
    ("result", "engine", "cells"),
    [
        (lambda one: (0, 1.0 if one.engine == "hnsw" else 2.0), "hnsw", None),
        (lambda one: (0, 9.0 if one.engine == "hnsw" else 2.0), "cells", 128),
        # What misses fewer ks stands above what is fast.
        (lambda one: (1, 1.0) if one.engine == "hnsw" else (0, 5.0), "cells", 128),
        (lambda one: (0, 9.0) if one.engine == "hnsw" else (2, 0.1), "hnsw", None),
        (lambda one: (1, 1.0), "hnsw", None),  # the first of equals
    ],
)
def test_the_fastest_that_reaches_the_target_is_chosen(contest, caplog, result, engine, cells):
    contest(result)
    with caplog.at_level(logging.INFO):
        made = built(2500)
    assert made.engine == engine
    assert cells is None or made.build_params == {"cells": cells}
    assert caplog.text.count("ks missed") == 2


def test_structures_are_compared_on_a_sample(contest, monkeypatch):
    monkeypatch.setattr(builder, "_TRIED_ON", 2000)
    monkeypatch.setattr(builder, "_TRIED_WITH", 7)
    tried = contest(lambda one: (0, 1.0))
    assert built(2600).index.size == 2600
    assert [(items, queries) for _, items, queries in tried] == [(2000, 7)] * 2
    assert [one.engine for one, *_ in tried] == ["hnsw", "cells"]


def test_nothing_is_compared_where_the_engine_is_given(contest):
    tried = contest(lambda one: (0, 1.0))
    for settings in ({"engine": "hnsw"}, {"engine": "cells"}, {"engine": "exact"}, {"ef": 9}, {"probes": 2}):
        built(2100, **settings)
    assert tried == []


def test_a_trial_by_hand(monkeypatch):
    found = [TuningPoint(5, 9, 0, 0.99, 0.02, 0.2), TuningPoint(50, 9, 0, 0.99, 0.001, 0.8)]
    monkeypatch.setattr(
        builder, "tune", lambda *_, **__: TuningResult(tuple(found), (), CostModel(0, 0, 0, 0), FilteredSearchParams())
    )
    settings = IndexSettings(target_recall=0.98, ks=(5, 50))
    misses, ms = builder._benchmark_spec(IndexSpec("hnsw"), normal(50), normal(5), settings)
    assert misses == 1  # .99 may be .97 by chance
    assert ms == pytest.approx(math.sqrt(0.2 * 0.8))


@pytest.mark.parametrize("n", [2000, 3000])
def test_auto_measures_for_itself(n):
    made = built(n, target_recall=0.9, ks=(5, 20))
    assert made.engine in {"hnsw", "cells"}
    assert all(point.recall >= 0.9 for point in made.tuning.best_points)
