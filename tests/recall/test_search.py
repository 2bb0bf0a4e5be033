"""Search of a snapshot returns exactly the k best eligible items by every route, compared with sorting all items."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.errors import QueryError
from vecall.index.base import SearchParams
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
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
EXPENSIVE_SCAN, EXPENSIVE_INDEX = CostModel(0, 0, 0, 1), CostModel(1e9, 0, 0, 0)
EXHAUSTIVE = SearchParamCurve([(1, SearchParams(1000, 1000))])  # with these an approximate index is exact


def make_integer_vectors(n, dim=4, seed=0):
    """Vectors whose products are exact in any order of summation, with many ties."""
    return np.random.default_rng(seed).integers(-3, 4, (n, dim)).astype(np.float32)


def make_resolved_query(vector=None, excluded=()):
    rows = np.array(sorted(excluded), dtype=np.int64)
    vector = None if vector is None else np.asarray(vector, dtype=np.float32)[None]
    return ResolvedQuery(vector, rows, None, UnknownInputs())


def make_upsert(item_id, vector):
    return Operation(0, "upsert", item_id, {}, np.asarray(vector, dtype=np.float32), None, has_external_vector=True)


def make_delete(item_id):
    return Operation(0, "delete", item_id, None, None, None, has_external_vector=False)


def rank_by_sorting(scores, k, keep):
    return sorted(np.flatnonzero(keep).tolist(), key=lambda row: (-scores[row], row))[:k]


@pytest.fixture
def release(make_release):
    return make_release(make_integer_vectors(N), popularity=np.arange(N) // 7 % 5)


def to_id(number):
    """Even numbers are items of the base, in the order of rows; odd ones sort between them."""
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


class ReferenceModel:
    """Contents of a snapshot as dicts by an item's number: its vector and its popularity."""

    def __init__(self, popularity):
        self.popularity = {2 * row: float(count) for row, count in enumerate(popularity)}
        self.items = {2 * row: vector for row, vector in enumerate(make_integer_vectors(N))}

    def apply(self, number, vector):
        self.items.pop(number, None)
        if vector is not None:
            self.items[number] = np.array(vector, dtype=np.float32)

    def search(self, case):
        """(ids, scores, number of matches, number of eligible items)."""
        matching = [number for number in self.items if case["passing"] is None or number in case["passing"]]
        eligible = [number for number in matching if number not in case["excluded"]]
        if case["vector"] is None:
            scores = {number: self.popularity.get(number, 0.0) for number in eligible}
        else:
            vector = np.array(case["vector"], np.float32)
            scores = {number: float(self.items[number] @ vector) for number in eligible}
        best = sorted(eligible, key=lambda number: (-scores[number], to_id(number)))[: case["k"]]
        return [to_id(number) for number in best], [scores[number] for number in best], len(matching), len(eligible)


def make_filter_mask(passing, snapshot):
    if passing is None:
        return None
    base = Bitmap.from_mask(np.array([2 * row in passing for row in range(N)]))
    slot_ids = snapshot.delta.slots.ids[: len(snapshot.delta)]
    return FilterMask(FilterProfile(base), np.array([int(item_id) in passing for item_id in slot_ids], dtype=bool))


@pytest.mark.parametrize(
    ("engine", "cost_model"),
    [
        ("exact", EXPENSIVE_SCAN),
        ("hnsw", EXPENSIVE_SCAN),
        ("ivf", EXPENSIVE_SCAN),
        ("hnsw", EXPENSIVE_INDEX),
        ("ivf", EXPENSIVE_INDEX),
    ],
)
def test_search_returns_the_best_eligible_items(make_release, engine, cost_model, monkeypatch):
    popular_rows = {"ivf": 5, "hnsw": N // 2, "exact": N}[engine]
    monkeypatch.setattr(release_module, "_POPULAR_CACHE_ROWS", popular_rows)
    popularity = np.arange(N) // 7 % 5
    ids = [to_id(2 * row) for row in range(N)]
    release = make_release(make_integer_vectors(N), ids=ids, popularity=popularity, engine=engine)
    release = replace(release, cost_model=cost_model, search_param_curve=None if engine == "exact" else EXHAUSTIVE)

    @settings(max_examples=120)
    @given(case=st.fixed_dictionaries(CASES))
    def check(case):
        memtable, model = MemTable(release), ReferenceModel(popularity)
        for batch in case["batches"]:
            memtable.apply(
                [
                    make_delete(to_id(number)) if vector is None else make_upsert(to_id(number), vector)
                    for number, vector in batch
                ],
                seq=1,
            )
            for number, vector in batch:
                model.apply(number, vector)
        snapshot = memtable.snapshot
        rows = snapshot.to_rows([to_id(number) for number in case["excluded"]])
        before = snapshot.live_base_rows, snapshot.delta.live_mask.copy()
        result = search_snapshot(
            snapshot,
            make_resolved_query(case["vector"], rows[rows >= 0]),
            make_filter_mask(case["passing"], snapshot),
            case["k"],
        )
        ids, scores, match_count, eligible_count = model.search(case)
        assert (snapshot.to_ids(result.rows), result.scores.tolist()) == (ids, scores)
        assert (result.match_count, result.eligible_count) == (match_count, eligible_count)
        assert snapshot.live_base_rows is before[0]
        np.testing.assert_array_equal(snapshot.delta.live_mask, before[1])
        if case["vector"] is None:
            assert result.route == "popular"
        elif eligible_count - result.eligible_delta_count <= case["k"]:  # eligible items of the base
            assert result.route == "all"
        else:
            assert result.route == ("scan" if engine == "exact" or cost_model is EXPENSIVE_INDEX else "index")
        assert (result.search_params is None) == (result.route != "index")

    check()


class RecordingIndex:
    """Index that records the arguments of its searches."""

    def __init__(self, index):
        self.index, self.calls = index, []

    @property
    def vectors(self):
        return self

    def __getattr__(self, name):
        return getattr(self.index if hasattr(self.index, name) else self.index.vectors, name)

    def search(self, queries, k, *, search_params=None, allowed=None, lists=None):
        self.calls.append(("search", k, search_params, allowed))
        return self.index.search(queries, k, search_params=search_params, allowed=allowed, lists=lists)

    def search_exact(self, queries, k, *, allowed=None):
        self.calls.append(("exact", k, None, allowed))
        return self.index.vectors.search_exact(queries, k, allowed=allowed)


CURVE = SearchParamCurve([(10, SearchParams(20, 30)), (50, SearchParams(100, 110))])


@pytest.fixture
def recorded(release):
    """A release that prefers its index, and the index, which records its searches."""
    index = RecordingIndex(release.index)
    return replace(release, index=index, search_param_curve=CURVE, cost_model=EXPENSIVE_SCAN), index


def test_index_is_searched_for_k_plus_the_excluded_rows(recorded):
    release, index = recorded
    result = search_snapshot(Snapshot.from_release(release), make_resolved_query([1, 0, 0, 0], [3, 5]), None, 6)
    assert index.calls == [("search", 8, CURVE.look_up(8), None)]
    assert (result.route, result.search_params, len(result.rows)) == ("index", SearchParams(20, 30), 6)
    assert (result.match_count, result.eligible_count) == (60, 58)


def test_filtered_search_uses_the_search_params_of_the_expected_rank(recorded):
    release, index = recorded
    is_even = np.arange(N) % 2 == 0
    result = search_snapshot(
        Snapshot.from_release(release),
        make_resolved_query([1, 0, 0, 0], [2, 3, 4]),
        FilterMask(FilterProfile(Bitmap.from_mask(is_even)), np.empty(0, bool)),
        7,
    )
    (call,) = index.calls
    # Row 3 does not pass, so it is not counted as excluded.
    assert call[:3] == ("search", 9, CURVE.look_up(9, expected_rank=18))
    assert (call[3].to_mask() == is_even).all()
    assert (result.match_count, result.eligible_count) == (30, 28)


def test_deleted_items_count_like_filtered_ones(recorded):
    release, index = recorded
    memtable = MemTable(release)
    memtable.apply([make_delete(100 + row) for row in range(40)], seq=1)
    query = make_resolved_query([1, 0, 0, 0], [5, 50])  # row 5 is deleted
    result = search_snapshot(memtable.snapshot, query, None, 4)
    (call,) = index.calls
    assert call[:3] == ("search", 5, CURVE.look_up(5, expected_rank=15))
    assert np.flatnonzero(call[3].to_mask()).tolist() == list(range(40, 60))
    assert (result.match_count, result.eligible_count, result.eligible_delta_count) == (20, 19, 0)


def test_filter_that_all_items_pass_is_dropped(recorded):
    release, index = recorded
    filter_mask = FilterMask(FilterProfile(Bitmap.full(N)), np.empty(0, bool))
    search_snapshot(Snapshot.from_release(release), make_resolved_query([1, 0, 0, 0]), filter_mask, 5)
    assert index.calls == [("search", 5, CURVE.look_up(5), None)]


def test_excluded_rows_are_not_scanned(recorded):
    release, index = recorded
    snapshot = Snapshot.from_release(replace(release, cost_model=EXPENSIVE_INDEX))
    search_snapshot(snapshot, make_resolved_query([1, 0, 0, 0], [0, 59]), None, 5)
    search_snapshot(snapshot, make_resolved_query([1, 0, 0, 0]), None, 5)
    assert [call[:3] for call in index.calls] == [("exact", 5, None)] * 2
    assert np.flatnonzero(index.calls[0][3].to_mask()).tolist() == list(range(1, 59))
    assert index.calls[1][3] is None


def test_base_without_live_rows_is_not_searched(recorded):
    release, index = recorded
    memtable = MemTable(release)
    memtable.apply([make_delete(100 + row) for row in range(N)], seq=1)
    query = make_resolved_query([1, 0, 0, 0])
    assert search_snapshot(memtable.snapshot, query, None, 5).rows.tolist() == []
    upserts = [make_upsert(7, [1, 0, 0, 0]), make_upsert(300, [2, 0, 0, 0]), make_upsert(110, [1, 5, 0, 0])]
    memtable.apply(upserts, seq=2)
    result = search_snapshot(memtable.snapshot, query, None, 5)
    assert memtable.snapshot.to_ids(result.rows) == [300, 7, 110]
    assert (result.route, result.match_count, result.eligible_delta_count) == ("all", 3, 3)
    result = search_snapshot(memtable.snapshot, query, None, 2)  # "all" says nothing of the delta
    assert (result.route, memtable.snapshot.to_ids(result.rows)) == ("all", [300, 7])
    assert index.calls == []


@pytest.mark.parametrize(("k", "route"), [(1, "index"), (14, "index"), (59, "index"), (N, "all"), (N + 1, "all")])
def test_exactly_k_rows_for_k_from_1_to_beyond_the_item_count(recorded, k, route):
    result = search_snapshot(Snapshot.from_release(recorded[0]), make_resolved_query([1, 2, -1, 0]), None, k)
    assert (result.route, len(result.rows)) == (route, min(k, N))


@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_approximate_index_keeps_its_recall_under_filters_exclusions_and_changes(make_release, engine):
    """All at once: a filter, exclusion of the nearest items, deletions and changes."""
    rng = np.random.default_rng(0)
    release = make_release(rng.standard_normal((3000, 8)).astype(np.float32), engine=engine)
    release = replace(release, cost_model=EXPENSIVE_SCAN)  # else so few items would be scanned
    memtable = MemTable(release)
    changed = {100 + int(row): rng.standard_normal(8).astype(np.float32) for row in rng.choice(3000, 100)}
    changed |= {5000 + number: rng.standard_normal(8).astype(np.float32) for number in range(100)}
    deleted = [100 + int(row) for row in rng.choice(3000, 200)]
    memtable.apply([*(make_upsert(*item) for item in changed.items()), *map(make_delete, deleted)], seq=1)
    snapshot = memtable.snapshot
    all_rows = np.arange(3000 + len(snapshot.delta))
    item_vectors, is_live = snapshot.get_vectors(all_rows), snapshot.is_live(all_rows)
    profile = release.index.profile_filter(Bitmap.from_mask(rng.random(3000) < 0.4))
    filter_mask = FilterMask(profile, rng.random(len(snapshot.delta)) < 0.4)
    passes = np.concatenate([filter_mask.matching_base_rows.to_mask(), filter_mask.matching_slot_mask])
    hits, index_searches = 0, 0
    for turn in range(30):
        vector = rng.standard_normal(8).astype(np.float32)
        scores = item_vectors @ vector
        keep = is_live & passes if turn % 2 else is_live
        excluded = rank_by_sorting(scores, 50, keep)
        exact_rows = rank_by_sorting(scores, 80, keep)[50:]
        query = make_resolved_query(vector, excluded)
        result = search_snapshot(snapshot, query, filter_mask if turn % 2 else None, 30)
        assert (len(set(result.rows.tolist())), result.match_count) == (30, int(keep.sum()))
        assert keep[result.rows].all()
        assert not np.isin(result.rows, excluded).any()
        np.testing.assert_allclose(result.scores, scores[result.rows], rtol=1e-5)
        assert (np.diff(result.scores) <= 0).all()
        hits += len(np.intersect1d(result.rows, exact_rows))
        index_searches += result.route == "index"
    assert index_searches == 30
    assert hits >= 0.96 * 30 * 30


def test_equal_scores_are_ordered_by_id_across_base_and_delta(make_release):
    """Ids of the delta sort between those of the base, and the cut at k falls among equal scores."""
    release = make_release(np.ones((5, 4)), ids=["a", "c", "e", "g", "i"], popularity=[1] * 5)
    memtable = MemTable(release)
    memtable.apply([make_upsert(item_id, np.ones(4)) for item_id in ("h", "b", "z", "f", "c", "A")], seq=1)
    memtable.apply([make_delete("e"), make_upsert("b", np.ones(4)), make_upsert("é", np.ones(4))], seq=2)
    expected = ["A", "a", "b", "c", "f", "g", "h", "i", "z", "é"]
    for k in range(1, 12):
        result = search_snapshot(memtable.snapshot, make_resolved_query([1, 1, 1, 1]), None, k)
        assert memtable.snapshot.to_ids(result.rows) == expected[:k]
    excluded = np.sort(memtable.snapshot.to_rows(["b", "A", "g"]))
    result = search_snapshot(memtable.snapshot, make_resolved_query([1, 1, 1, 1], excluded), None, 4)
    assert memtable.snapshot.to_ids(result.rows) == ["a", "c", "f", "h"]


def test_changed_items_keep_their_popularity_and_new_ones_have_none(make_release):
    release = make_release(make_integer_vectors(4), ids=["a", "b", "c", "d"], popularity=[0, 5, 9, 2])
    memtable = MemTable(release)
    upserts = [make_upsert(item_id, np.ones(4)) for item_id in ("c", "0", "z")]
    memtable.apply([*upserts[:2], make_delete("d"), upserts[2]], seq=1)
    memtable.apply([make_delete("b")], seq=2)
    memtable.apply([make_upsert("b", np.ones(4))], seq=3)
    snapshot = memtable.snapshot
    result = search_snapshot(snapshot, make_resolved_query(), None, 9)
    assert (snapshot.to_ids(result.rows), result.scores.tolist()) == (["c", "b", "0", "a", "z"], [9, 5, 0, 0, 0])
    assert (result.route, result.match_count, result.eligible_delta_count) == ("popular", 5, 4)


def test_popular_search_without_popularity_is_an_error(release):
    snapshot = Snapshot.from_release(replace(release, popularity=None))
    with pytest.raises(QueryError, match="no popularity to fall back on"):
        search_snapshot(snapshot, make_resolved_query(), None, 3)
