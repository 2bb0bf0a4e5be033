"""Exactly k of the true remaining best, by whichever path: held against a sort of everything."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.errors import QueryError
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.planner import CostModel
from vecall.index.search_params import SearchParamCurve
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterMask
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import search_snapshot
from vecall.release import release as release_module

N = 60
DEAR_SCAN, DEAR_INDEX = CostModel(0, 0, 0, 1), CostModel(1e9, 0, 0, 0)
EVERYTHING = SearchParamCurve([(1, SearchParams(1000, 1000))])  # an approximate index is exact with this effort


def whole_numbers(n, dim=4, seed=0):
    """Vectors whose products are exact in any order, with many ties."""
    return np.random.default_rng(seed).integers(-3, 4, (n, dim)).astype(np.float32)


def asking(vector=None, excluded=()):
    rows = np.array(sorted(excluded), dtype=np.int64)
    vector = None if vector is None else np.asarray(vector, dtype=np.float32)[None]
    return ResolvedQuery(vector, rows, None, UnknownInputs())


def upsert(one, vector):
    return Operation(0, "upsert", one, {}, np.asarray(vector, dtype=np.float32), None, has_external_vector=True)


def delete(one):
    return Operation(0, "delete", one, None, None, None, has_external_vector=False)


def best(scores, k, keep):
    """Rows by a sort of all there is."""
    return sorted(np.flatnonzero(keep).tolist(), key=lambda row: (-scores[row], row))[:k]


@pytest.fixture
def release(release_of):
    return release_of(whole_numbers(N), popularity=np.arange(N) // 7 % 5)


def name_of(number):
    """Even ones are of the base, in the order of rows; odd ones stand between them."""
    return f"{number:03}"


vectors = st.lists(st.integers(-3, 3), min_size=4, max_size=4)
numbers = st.integers(0, 2 * N + 10)
BATCHES = st.lists(st.lists(st.tuples(numbers, st.none() | vectors), min_size=1, max_size=12), max_size=4)
CASES = {
    "batches": BATCHES,
    "vector": st.none() | vectors,
    "k": st.integers(1, 20) | st.integers(1, 2 * N + 10),
    "excluded": st.sets(numbers, max_size=8) | st.sets(numbers),
    "passing": st.none()
    | st.sets(numbers)
    | st.just(set())
    | st.sets(numbers, max_size=5).map(set(range(131)).__sub__),
}


class Model:
    """What a view holds, as a dict: number of an item to its vector and how often it was taken."""

    def __init__(self, popularity):
        self.popularity = {2 * row: float(taken) for row, taken in enumerate(popularity)}
        self.items = {2 * row: vector for row, vector in enumerate(whole_numbers(N))}

    def change(self, number, vector):
        self.items.pop(number, None)
        if vector is not None:
            self.items[number] = np.array(vector, dtype=np.float32)

    def answer(self, case):
        """(ids, scores, matches, available)."""
        matching = [one for one in self.items if case["passing"] is None or one in case["passing"]]
        left = [one for one in matching if one not in case["excluded"]]
        if case["vector"] is None:
            scores = {one: self.popularity.get(one, 0.0) for one in left}
        else:
            scores = {one: float(self.items[one] @ np.array(case["vector"], np.float32)) for one in left}
        chosen = sorted(left, key=lambda one: (-scores[one], name_of(one)))[: case["k"]]
        return [name_of(one) for one in chosen], [scores[one] for one in chosen], len(matching), len(left)


def passing_of(marked, view):
    if marked is None:
        return None
    base = Bitmap.from_mask(np.array([2 * row in marked for row in range(N)]))
    return FilterMask(
        base, np.array([int(one) in marked for one in view.delta.slots.ids[: len(view.delta)]], dtype=bool)
    )


@pytest.mark.parametrize(
    ("engine", "costs"),
    [("exact", DEAR_SCAN), ("hnsw", DEAR_SCAN), ("cells", DEAR_SCAN), ("hnsw", DEAR_INDEX), ("cells", DEAR_INDEX)],
)
def test_always_the_true_best_that_remain(release_of, engine, costs, monkeypatch):
    monkeypatch.setattr(release_module, "_FIRST", 5 if engine == "cells" else N // 2 if engine == "hnsw" else N)
    popularity = np.arange(N) // 7 % 5
    names = [name_of(2 * row) for row in range(N)]
    release = release_of(whole_numbers(N), ids=names, popularity=popularity, engine=engine)
    release = replace(release, costs=costs, effort=None if engine == "exact" else EVERYTHING)

    @settings(max_examples=120)
    @given(case=st.fixed_dictionaries(CASES))
    def check(case):
        overlay, model = MemTable(release), Model(popularity)
        for batch in case["batches"]:
            made = [delete(name_of(one)) if new is None else upsert(name_of(one), new) for one, new in batch]
            overlay.apply(made, seq=1)
            for one, new in batch:
                model.change(one, new)
        view = overlay.snapshot
        rows = view.to_rows([name_of(one) for one in case["excluded"]])
        before = view.live_base_rows, view.delta.live_mask.copy()
        found = search_snapshot(
            view, asking(case["vector"], rows[rows >= 0]), passing_of(case["passing"], view), case["k"]
        )
        ids, scores, matches, available = model.answer(case)
        assert (view.to_ids(found.rows), found.scores.tolist()) == (ids, scores)
        assert (found.match_count, found.eligible_count) == (matches, available)
        assert view.live_base_rows is before[0]
        np.testing.assert_array_equal(view.delta.live_mask, before[1])
        if case["vector"] is None:
            assert found.route == "popular"
        elif available - found.delta_count <= case["k"]:  # of the base
            assert found.route == "all"
        else:
            assert found.route == ("scan" if engine == "exact" or costs is DEAR_INDEX else "index")
        assert (found.search_params is None) == (found.route != "index")

    check()


class Recording:
    """An index that notes how it was asked."""

    def __init__(self, index):
        self.index, self.asked = index, []

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, queries, k, *, search_params=None, allowed=None):
        self.asked.append(("search", k, search_params, allowed))
        return self.index.search(queries, k, effort=search_params, allowed=allowed)

    def search_exact(self, queries, k, *, allowed=None):
        self.asked.append(("exact", k, None, allowed))
        return self.index.search_exact(queries, k, allowed=allowed)


CURVE = SearchParamCurve([(10, SearchParams(20, 30)), (50, SearchParams(100, 110))])


@pytest.fixture
def recorded(release):
    index = Recording(release.index)
    return replace(release, index=index, effort=CURVE, costs=DEAR_SCAN), index


def test_the_index_is_asked_for_as_many_more_as_are_excluded(recorded):
    release, index = recorded
    found = search_snapshot(Snapshot.from_release(release), asking([1, 0, 0, 0], [3, 5]), None, 6)
    assert index.asked == [("search", 8, CURVE.look_up(8), None)]
    assert (found.route, found.search_params, len(found.rows), found.match_count, found.eligible_count) == (
        "index",
        (20, 30),
        6,
        60,
        58,
    )


def test_under_a_filter_it_looks_as_far_as_the_rank_says(recorded):
    release, index = recorded
    even = np.arange(N) % 2 == 0
    found = search_snapshot(
        Snapshot.from_release(release),
        asking([1, 0, 0, 0], [2, 3, 4]),
        FilterMask(Bitmap.from_mask(even), np.empty(0, bool)),
        7,
    )
    (asked,) = index.asked
    assert asked[:3] == ("search", 9, CURVE.look_up(9, rank=18))  # row 3 does not pass: it is none of the excluded
    assert (asked[3].mask() == even).all()
    assert (found.match_count, found.eligible_count) == (30, 28)


def test_deleted_items_ask_for_as_much_as_filtered_ones(recorded):
    release, index = recorded
    overlay = MemTable(release)
    overlay.apply([delete(100 + row) for row in range(40)], seq=1)
    found = search_snapshot(overlay.snapshot, asking([1, 0, 0, 0], [5, 50]), None, 4)  # row 5 is deleted
    (asked,) = index.asked
    assert asked[:3] == ("search", 5, CURVE.look_up(5, rank=15))
    assert np.flatnonzero(asked[3].mask()).tolist() == list(range(40, 60))
    assert (found.match_count, found.eligible_count, found.delta_count) == (20, 19, 0)


def test_a_filter_that_all_pass_is_none(recorded):
    release, index = recorded
    search_snapshot(
        Snapshot.from_release(release), asking([1, 0, 0, 0]), FilterMask(Bitmap.full(N), np.empty(0, bool)), 5
    )
    assert index.asked == [("search", 5, CURVE.look_up(5), None)]


def test_what_is_excluded_is_not_scanned(recorded):
    release, index = recorded
    search_snapshot(Snapshot.from_release(replace(release, costs=DEAR_INDEX)), asking([1, 0, 0, 0], [0, 59]), None, 5)
    search_snapshot(Snapshot.from_release(replace(release, costs=DEAR_INDEX)), asking([1, 0, 0, 0]), None, 5)
    assert [asked[:3] for asked in index.asked] == [("exact", 5, None)] * 2
    assert np.flatnonzero(index.asked[0][3].mask()).tolist() == list(range(1, 59))
    assert index.asked[1][3] is None


def test_a_base_of_which_nothing_remains_is_not_asked(recorded):
    release, index = recorded
    overlay = MemTable(release)
    overlay.apply([delete(100 + row) for row in range(N)], seq=1)
    assert search_snapshot(overlay.snapshot, asking([1, 0, 0, 0]), None, 5).rows.tolist() == []
    overlay.apply([upsert(7, [1, 0, 0, 0]), upsert(300, [2, 0, 0, 0]), upsert(110, [1, 5, 0, 0])], seq=2)
    found = search_snapshot(overlay.snapshot, asking([1, 0, 0, 0]), None, 5)
    assert overlay.snapshot.to_ids(found.rows) == [300, 7, 110]
    assert (found.route, found.match_count, found.delta_count) == ("all", 3, 3)
    assert index.asked == []


@pytest.mark.parametrize(("k", "path"), [(1, "index"), (14, "index"), (59, "index"), (N, "all"), (N + 1, "all")])
def test_every_k_from_1_to_more_than_the_whole_pool(recorded, k, path):
    found = search_snapshot(Snapshot.from_release(recorded[0]), asking([1, 2, -1, 0]), None, k)
    assert (found.route, len(found.rows)) == (path, min(k, N))


@pytest.mark.parametrize("engine", ["hnsw", "cells"])
def test_an_approximate_index_gives_k_of_the_best_and_none_that_may_not_be(release_of, engine):
    """Filter, exclusions of what is nearest, deletions and changes at once: ANN recall stays what was asked for."""
    rng = np.random.default_rng(0)
    release = release_of(rng.standard_normal((3000, 8)).astype(np.float32), engine=engine)
    release = replace(release, costs=DEAR_SCAN)  # else so few are scanned
    overlay = MemTable(release)
    changed = {100 + int(row): rng.standard_normal(8).astype(np.float32) for row in rng.choice(3000, 100)}
    changed |= {5000 + one: rng.standard_normal(8).astype(np.float32) for one in range(100)}
    gone = [100 + int(row) for row in rng.choice(3000, 200)]
    overlay.apply([*(upsert(*one) for one in changed.items()), *map(delete, gone)], seq=1)
    view = overlay.snapshot
    everything = np.arange(3000 + len(view.delta))
    stored, alive = view.get_vectors(everything), view.is_live(everything)
    passing = FilterMask(Bitmap.from_mask(rng.random(3000) < 0.4), rng.random(len(view.delta)) < 0.4)
    marked = np.concatenate([passing.base.to_mask(), passing.delta])
    hits, index_paths = 0, 0
    for turn in range(30):
        vector = rng.standard_normal(8).astype(np.float32)
        scores = stored @ vector
        keep = alive & marked if turn % 2 else alive
        excluded = best(scores, 50, keep)
        truth = best(scores, 80, keep)[50:]
        found = search_snapshot(view, asking(vector, excluded), passing if turn % 2 else None, 30)
        assert (len(set(found.rows.tolist())), found.match_count) == (30, int(keep.sum()))
        assert keep[found.rows].all()
        assert not np.isin(found.rows, excluded).any()
        np.testing.assert_allclose(found.scores, scores[found.rows], rtol=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        hits += len(np.intersect1d(found.rows, truth))
        index_paths += found.route == "index"
    assert index_paths == 30
    assert hits >= 0.96 * 30 * 30


def test_equal_scores_stand_by_id_across_base_and_delta(release_of):
    """Ids of the delta fall between those of the base, and place k cuts amid them."""
    release = release_of(np.ones((5, 4)), ids=["a", "c", "e", "g", "i"], popularity=[1] * 5)
    overlay = MemTable(release)
    overlay.apply([upsert(one, np.ones(4)) for one in ("h", "b", "z", "f", "c", "A")], seq=1)
    overlay.apply([delete("e"), upsert("b", np.ones(4)), upsert("é", np.ones(4))], seq=2)
    expected = ["A", "a", "b", "c", "f", "g", "h", "i", "z", "é"]
    for k in range(1, 12):
        found = search_snapshot(overlay.snapshot, asking([1, 1, 1, 1]), None, k)
        assert overlay.snapshot.to_ids(found.rows) == expected[:k]
    excluded = np.sort(overlay.snapshot.to_rows(["b", "A", "g"]))
    found = search_snapshot(overlay.snapshot, asking([1, 1, 1, 1], excluded), None, 4)
    assert overlay.snapshot.to_ids(found.rows) == ["a", "c", "f", "h"]


def test_changed_items_are_as_popular_as_they_were_and_new_ones_not_at_all(release_of):
    release = release_of(whole_numbers(4), ids=["a", "b", "c", "d"], popularity=[0, 5, 9, 2])
    overlay = MemTable(release)
    overlay.apply([upsert("c", np.ones(4)), upsert("0", np.ones(4)), delete("d"), upsert("z", np.ones(4))], seq=1)
    overlay.apply([delete("b")], seq=2)
    overlay.apply([upsert("b", np.ones(4))], seq=3)
    found = search_snapshot(overlay.snapshot, asking(), None, 9)
    assert (overlay.snapshot.to_ids(found.rows), found.scores.tolist()) == (["c", "b", "0", "a", "z"], [9, 5, 0, 0, 0])
    assert (found.route, found.match_count, found.delta_count) == ("popular", 5, 4)


def test_nothing_to_fall_back_on_is_an_error(release):
    with pytest.raises(QueryError, match="no popularity to fall back on"):
        search_snapshot(Snapshot.from_release(replace(release, popularity=None)), asking(), None, 3)
