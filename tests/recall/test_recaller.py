from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from vecall.errors import QueryError, StoreError
from vecall.recall.query import Query, UnknownInputs
from vecall.recall.recaller import Recaller, open_recaller

YEARS = [1990 + row % 30 if row % 7 else None for row in range(200)]
ATTRIBUTES = {"title": [f"t{row}" for row in range(200)], "year": YEARS}


def make_vectors(n=200, dim=4):
    return np.random.default_rng(0).integers(-3, 4, (n, dim)).astype(np.float32)


@pytest.fixture
def recaller(make_recaller, make_encoder):
    users = [("ann", {"age": 1}, [3, 5, 8, 13]), ("bob", {}, [])]
    return make_recaller(
        make_vectors(), attributes=ATTRIBUTES, popularity=range(200), users=users, encoder=make_encoder()
    )


def rank_by_sorting(vector, k, excluded=(), keep=None):
    """(ids, scores) of the k best rows, by score, then id."""
    scores = make_vectors() @ np.asarray(vector, dtype=np.float32)
    rows = [row for row in range(200) if row not in excluded and (keep is None or keep(row))]
    rows = sorted(rows, key=lambda row: (-scores[row], row))[:k]
    return [100 + row for row in rows], scores[rows].tolist()


@pytest.mark.parametrize("k", [1, 10, 45, 60, 199, 200, 500])
def test_exact_top_k_for_k_from_1_to_beyond_the_item_count(recaller, k):
    answer = recaller.recall(Query(vector=[1, 2, -1, 3], k=k))
    assert (answer.ids, answer.scores) == rank_by_sorting([1, 2, -1, 3], k)
    assert answer.exhausted == (k >= 200)
    assert (answer.release, answer.fallback, answer.unknown, answer.plan) == (
        recaller.release,
        None,
        UnknownInputs(),
        None,
    )
    assert all(type(item_id) is int for item_id in answer.ids)


def test_seen_and_excluded_items_are_replaced_by_the_next_best(recaller):
    vector = make_vectors()[[5, 8, 13]].sum(axis=0) + np.eye(4)[0]  # the three newest items, and the age
    seen = recaller.recall(Query(user_id="ann", k=20, exclude_seen=False))
    assert (seen.ids, seen.scores) == rank_by_sorting(vector, 20)
    unseen = recaller.recall(Query(user_id="ann", k=20, exclude=[*seen.ids[:6], 9999]))
    assert (unseen.ids, unseen.scores) == rank_by_sorting(
        vector, 20, excluded=[3, 5, 8, 13, *(item_id - 100 for item_id in seen.ids[:6])]
    )
    assert unseen.unknown == UnknownInputs(exclude=1)


def test_exhausted_only_if_every_match_is_returned(recaller):
    where = [{"field": "year", "op": "lt", "value": 1993}]
    matching = [row for row, year in enumerate(YEARS) if year is not None and year < 1993]
    n = len(matching)
    for k, exclude in ((n - 1, []), (n, []), (n + 1, []), (n, matching[:3]), (n - 4, matching[:3])):
        answer = recaller.recall(
            Query(vector=[0, 1, 1, 0], k=k, where=where, exclude=[100 + row for row in exclude], explain=True)
        )
        assert (answer.ids, answer.scores) == rank_by_sorting(
            [0, 1, 1, 0], k, excluded=exclude, keep=lambda row: row in matching
        )
        assert answer.exhausted == (k >= n - len(exclude))
        assert (answer.plan.matches, answer.plan.excluded, answer.plan.delta) == (n, len(exclude), 0)
        assert answer.plan.path == ("all" if answer.exhausted else "scan")
        assert list(answer.plan.ms) == ["encode", "plan", "search", "merge"]


def test_answer_without_eligible_items_is_empty_and_exhausted(recaller):
    everything = list(range(100, 300))
    unsatisfiable = [{"field": "year", "op": "in", "value": []}]
    for query in (
        Query(vector=[1, 1, 1, 1], exclude=everything),
        Query(vector=[1, 1, 1, 1], where=unsatisfiable),
        Query(user_id="nobody", exclude=everything),
    ):
        answer = recaller.recall(query)
        assert (answer.ids, answer.scores, answer.exhausted) == ([], [], True)
        assert recaller.candidates(query).columns[:4] == ["id", "score", "rank", "channels"]
        assert recaller.candidates(query).columns[-3:] == ["history.difference.year", "title", "year"]
        assert recaller.candidates(query).schema["id"] == pl.Int64


def test_unknown_user_gets_popular_items(recaller):
    answer = recaller.recall(Query(user_id="nobody", k=3, exclude=[298]))
    assert (answer.ids, answer.scores) == ([299, 297, 296], [199, 197, 196])
    assert (answer.fallback, answer.unknown.user, answer.exhausted) == ("popular", True, False)
    assert set(recaller.candidates(Query(user_id="nobody", k=3))["channels"].explode()) == {"popular"}


def test_candidates_are_the_answer_with_attributes_in_the_same_order(recaller):
    query = Query(user_id="ann", k=30, where=[{"field": "year", "op": "gt", "value": 1995}])
    answer, table = recaller.recall(query), recaller.candidates(query)
    assert table.columns == [
        *("id", "score", "rank", "channels", "vector.score", "vector.rank"),
        *("user.age", "user.town", "user.taste", "item.popularity", "item.age_days"),
        *("history.length", "history.cosine_last", "history.cosine_max", "history.cosine_mean"),
        *("history.share.title", "history.share.year", "history.difference.year", "title", "year"),
    ]
    assert (table["id"].to_list(), table["score"].to_list()) == (answer.ids, answer.scores)
    assert table["rank"].to_list() == list(range(1, 31))
    assert table["channels"].to_list() == [["vector"]] * 30
    assert (table["vector.score"].to_list(), table["vector.rank"].to_list()) == (answer.scores, list(range(1, 31)))
    assert table["item.popularity"].to_list() == [item_id - 100 for item_id in answer.ids]
    assert table["title"].to_list() == [f"t{item_id - 100}" for item_id in answer.ids]
    assert table["year"].to_list() == [YEARS[item_id - 100] for item_id in answer.ids]


def test_release_with_string_ids_and_without_attributes(make_recaller):
    recaller = make_recaller([[1, 0], [1, 0], [2, 0]], ids=["9", "10", "é"])
    answer = recaller.recall(Query(vector=[1, 0], k=3))
    assert (answer.ids, answer.scores) == (["é", "10", "9"], [2, 1, 1])  # ties by UTF-8 bytes
    table = recaller.candidates(Query(vector=[1, 0], k=2))
    assert table["item.popularity"].null_count() == 2
    assert table.schema["id"] == pl.String


def test_invalid_query_error_names_its_field(recaller):
    for query, field in (
        ({"vector": [1, 2, 3, 4], "where": [{"field": "year", "op": "like", "value": 3}]}, "where[0].op"),
        ({"vector": [1, 2]}, "vector"),
        ({"history": ["x"]}, "history"),
        ({"user_id": 3}, "user_id"),
    ):
        for method in (recaller.recall, recaller.candidates):
            with pytest.raises(QueryError) as caught:
                method(Query(**query))
            assert caught.value.field == field


def test_user_id_text_is_parsed_into_the_id_type_of_the_release(recaller, make_recaller):
    assert recaller.parse_user_id("007") == "007"
    with_integer_ids = make_recaller(make_vectors(), users=[(7, {}, [])])
    assert with_integer_ids.parse_user_id("007") == 7
    with pytest.raises(QueryError, match="ids here are integers, got 'x'"):
        with_integer_ids.parse_user_id("x")


def test_concurrent_recalls_equal_sequential_ones(recaller):
    rng = np.random.default_rng(1)
    queries = [
        Query(
            user_id=["ann", "bob", "nobody"][i % 3],
            vector=None if i % 2 else rng.integers(-3, 4, 4).tolist(),
            k=1 + i * 3,
            exclude=rng.integers(100, 300, i).tolist(),
            where=[{"field": "year", "op": "gt", "value": 1990 + i % 20}] if i % 5 == 0 else (),
        )
        for i in range(40)
    ]
    sequential = [recaller.recall(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(recaller.recall, queries * 5)) == sequential * 5


def test_open_recaller_opens_the_current_or_a_named_release(make_recaller, tmp_path):
    published = make_recaller([[1, 0], [0, 1]])
    with (
        open_recaller(tmp_path / "store") as recaller,
        open_recaller(str(tmp_path / "store"), release=published.release) as by_name,
    ):
        assert isinstance(recaller, Recaller)
        assert recaller.release == by_name.release == published.release
        assert recaller.recall(Query(vector=[0, 1], k=1)).ids == [101]
    with pytest.raises(StoreError, match="has no release 'other'"):
        open_recaller(tmp_path / "store", release="other")
    with pytest.raises(StoreError, match="is no store"):
        open_recaller(tmp_path / "elsewhere")


@pytest.mark.parametrize("method", ["recall", "candidates", "recommend"])
def test_request_that_is_no_query_is_an_error(recaller, method):
    for request in ({"vector": [1, 2, -1, 3]}, None):
        with pytest.raises(QueryError, match=r"expected a vecall\.Query, got (dict|NoneType); Query\.from_json reads"):
            getattr(recaller, method)(request)
