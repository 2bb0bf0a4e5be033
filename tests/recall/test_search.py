"""Exactly k of the true remaining best, by whichever path: held against a sort of everything."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecall.errors import QueryError
from vecall.index.base import Hits
from vecall.recall.search import find
from vecall.recall.types import Unknown
from vecall.recall.understand import Ask

N = 60


def whole_numbers(n, dim=4, seed=0):
    """Vectors whose products are exact in any order, with many ties."""
    return np.random.default_rng(seed).integers(-3, 4, (n, dim)).astype(np.float32)


def asking(vector=None, excluded=()):
    rows = np.array(sorted(excluded), dtype=np.int64)
    vector = None if vector is None else np.asarray(vector, dtype=np.float32)[None]
    return Ask(vector, rows, None, Unknown())


def best(scores, k, allowed, excluded):
    """(rows, matches, available) by a sort of all there is."""
    matching = [row for row in range(len(scores)) if allowed is None or allowed[row]]
    left = [row for row in matching if row not in excluded]
    return sorted(left, key=lambda row: (-scores[row], row))[:k], len(matching), len(left)


class Recording:
    """An index that notes how it was asked; with `short`, one that finds that many rows only."""

    def __init__(self, index, short=None):
        self.index, self.short, self.asked = index, short, []

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, queries, k, *, effort=None):
        self.asked.append((k, effort))
        hits = self.index.search(queries, k, effort=effort)
        if self.short is not None:
            hits = Hits(hits.rows.copy(), hits.scores.copy())
            hits.rows[:, self.short :] = -1
            hits.scores[:, self.short :] = -np.inf
        return hits


@pytest.fixture
def release(release_of):
    return release_of(whole_numbers(N), popularity=np.arange(N) // 7 % 5)


CASES = {
    "vector": st.none() | st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    "k": st.integers(1, N + 3),
    "excluded": st.sets(st.integers(0, N - 1), max_size=8) | st.sets(st.integers(0, N - 1)),
    "allowed": st.none() | st.lists(st.booleans(), min_size=N, max_size=N) | st.just([False] * N),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(case=st.fixed_dictionaries(CASES))
def test_always_the_true_best_that_remain(release, case):
    allowed = None if case["allowed"] is None else np.array(case["allowed"])
    before = None if allowed is None else allowed.copy()
    found = find(release, asking(case["vector"], case["excluded"]), allowed, case["k"])
    scores = release.popularity if case["vector"] is None else whole_numbers(N) @ np.array(case["vector"], np.float32)
    rows, matches, available = best(scores.tolist(), case["k"], allowed, case["excluded"])
    assert found.rows.tolist() == rows
    assert found.scores.tolist() == scores[rows].tolist()
    assert (found.matches, found.available) == (matches, available)
    assert allowed is None or (allowed == before).all()
    if case["vector"] is None:
        assert found.path == "popular"
    elif available <= case["k"]:
        assert found.path == "all"
    elif allowed is not None or case["k"] + len(case["excluded"]) >= N / 4:
        assert found.path == "scan"
    else:
        assert found.path == "index"


@pytest.mark.parametrize(
    ("k", "excluded", "path"), [(1, [], "index"), (14, [], "index"), (15, [], "scan"), (N, [], "all")]
)
def test_every_k_from_1_to_the_whole_pool(release, k, excluded, path):
    found = find(release, asking([1, 2, -1, 0], excluded), None, k)
    assert (found.path, len(found.rows)) == (path, k)


@pytest.mark.parametrize("short", [0, 1, 4, 6])
def test_an_index_that_finds_too_few_ends_in_the_exact_scan(release, short):
    index = Recording(release.index, short)
    vector = [1.0, 2, -1, 3]
    scores = (whole_numbers(N) @ np.array(vector)).tolist()
    excluded = best(scores, 3, None, [])[0]  # what was seen is what is nearest
    found = find(replace(release, index=index), asking(vector, excluded), None, 4)
    assert index.asked == [(7, None)]  # asked for as many more as are excluded
    assert (found.path, found.effort) == ("scan", None)
    assert found.rows.tolist() == best(scores, 4, None, excluded)[0]


def test_the_index_is_searched_as_wide_as_the_curve_says(release):
    index = Recording(release.index)
    curve = type("Curve", (), {"at": staticmethod(lambda k: 10 * k)})()
    found = find(replace(release, index=index, effort=curve), asking([1, 0, 0, 0], [3, 5]), None, 6)
    assert index.asked == [(8, 80)]
    assert (found.path, found.effort, len(found.rows)) == ("index", 80, 6)


def test_a_graph_gives_k_of_the_best_and_none_that_is_excluded(release_of):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 8)).astype(np.float32)
    release = release_of(vectors, engine="hnsw")
    stored = release.index.vectors(np.arange(3000))
    hit = 0
    for _ in range(20):
        vector = rng.standard_normal(8).astype(np.float32)
        scores = stored @ vector
        excluded = np.argsort(-scores)[:50]
        found = find(release, asking(vector, excluded), None, 30)
        assert (found.path, len(set(found.rows.tolist()))) == ("index", 30)
        assert not np.isin(found.rows, excluded).any()
        np.testing.assert_allclose(found.scores, scores[found.rows], rtol=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        hit += len(np.intersect1d(found.rows, np.argsort(-scores)[50:80]))
    assert hit >= 0.95 * 20 * 30  # ANN recall


def test_nothing_to_fall_back_on_is_an_error(release):
    with pytest.raises(QueryError, match="no popularity to fall back on"):
        find(replace(release, popularity=None), asking(), None, 3)
