"""The final list: recalled candidates, ranked, made diverse, cut to k."""

import time

import numpy as np
import polars as pl
import pytest

from vecall.channels.merge_plan import MergePlan
from vecall.errors import QueryError
from vecall.live.live_index import LiveIndex
from vecall.ranking.ranker import NamedRanker
from vecall.recall import channel_search
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller

N = 40
ATTRIBUTES = {
    "price": [float(n * 7 % 40) for n in range(N)],
    "kind": [None if n % 5 == 0 else f"kind {n % 5}" for n in range(N)],
    "tags": [["red", "new"] if n % 3 else [] for n in range(N)],
}
ANN = Query(user_id="ann", k=1, exclude_seen=False)


def rank_by_price(candidates):
    return candidates["price"]


@pytest.fixture
def release(make_release, make_encoder):
    vectors = np.random.default_rng(0).integers(-3, 4, (N, 4)).astype(np.float32)
    users = [("ann", {"age": 1.0}, [3, 5, 3, 8]), ("bob", {}, [])]
    return make_release(
        vectors, popularity=np.arange(N), users=users, encoder=make_encoder(), attributes=pl.DataFrame(ATTRIBUTES)
    )


@pytest.fixture
def make_recommender(release, monkeypatch):
    """Factory of a recaller of the release, which was tuned to two channels, with a ranker."""
    monkeypatch.setitem(release.manifest.__dict__, "merge", MergePlan(weights={"vector": 1.0, "repeat": 2.0}))
    return lambda ranker=None: Recaller(LiveIndex.from_release(release), ranker=ranker)


def test_candidates_are_ordered_by_the_ranker(make_recommender):
    recaller = make_recommender(rank_by_price)
    answer = recaller.recommend(ANN, 6, candidates=15)
    table = recaller.candidates(Query(user_id="ann", k=15, exclude_seen=False))
    expected = table.sort("price", descending=True, maintain_order=True).head(6)
    assert answer.ids == expected["id"].to_list()
    assert answer.scores == expected["price"].to_list()
    assert answer.channels == expected["channels"].to_list()
    assert (answer.ranker, answer.degraded, answer.exhausted) == ("rank_by_price", (), False)
    assert (answer.release, answer.fallback, answer.plan) == (recaller.release, None, None)


def test_without_a_ranker_the_order_of_recall_answers(make_recommender):
    recaller = make_recommender()
    answer = recaller.recommend(ANN, 6, candidates=15)
    recalled = recaller.recall(Query(user_id="ann", k=15, exclude_seen=False))
    assert (answer.ids, answer.scores) == (recalled.ids[:6], recalled.scores[:6])
    assert (answer.ranker, answer.degraded) == ("recall", ())


def test_equal_scores_keep_the_order_of_recall(make_recommender):
    constant = make_recommender(lambda candidates: np.zeros(len(candidates)))
    assert constant.recommend(ANN, 9).ids == make_recommender().recommend(ANN, 9).ids


@pytest.mark.parametrize(
    "ranker",
    [
        lambda candidates: 1 / 0,
        lambda candidates: candidates["price"].head(3),
        lambda candidates: [np.nan] * len(candidates),
        lambda candidates: candidates["tags"],
        lambda candidates: None,
    ],
    ids=["raises", "short", "nan", "not numbers", "nothing"],
)
def test_order_of_recall_answers_for_a_ranker_that_fails(make_recommender, caplog, ranker):
    answer, expected = (
        make_recommender(NamedRanker("mine", ranker)).recommend(ANN, 6),
        make_recommender().recommend(ANN, 6),
    )
    assert (answer.ids, answer.scores, answer.ranker) == (expected.ids, expected.scores, "recall")
    assert answer.degraded == ("ranker",)
    assert "ranker mine of release" in caplog.text


def test_ranker_of_the_caller_goes_before_that_of_the_release(make_recommender, release, monkeypatch):
    monkeypatch.setitem(release.__dict__, "ranker", NamedRanker("lightgbm", lambda candidates: -candidates["price"]))
    assert make_recommender().recommend(ANN, 6).ranker == "lightgbm"
    assert make_recommender(rank_by_price).recommend(ANN, 6).ranker == "rank_by_price"


def test_nothing_to_rank_is_no_failure(make_recommender):
    nothing = [{"field": "price", "op": "in", "value": []}]
    answer = make_recommender(rank_by_price).recommend(Query(user_id="ann", where=nothing))
    assert (answer.ids, answer.scores, answer.channels, answer.degraded) == ([], [], [], ())
    assert answer.exhausted


def test_all_matching_items_are_exhausted(make_recommender):
    answer = make_recommender(rank_by_price).recommend(ANN, N + 5, candidates=3)
    assert (len(answer.ids), answer.exhausted) == (N, True)


def test_filters_exclusions_and_fallback_hold(make_recommender):
    where = [{"field": "price", "op": "lt", "value": 10}]
    answer = make_recommender(rank_by_price).recommend(Query(user_id="nobody", where=where, exclude=[139]), 20)
    expected = [100 + n for n in range(N) if ATTRIBUTES["price"][n] < 10 and n != 39]
    assert sorted(answer.ids) == expected
    assert (answer.fallback, answer.unknown.user) == ("popular", True)
    assert {name for names in answer.channels for name in names} == {"popular"}


def test_cap_holds_and_the_list_may_be_short(make_recommender):
    recaller = make_recommender(rank_by_price)
    ranked = recaller.recommend(ANN, N).ids
    capped = recaller.recommend(ANN, 20, diversity={"by": "kind", "max": 2})
    kinds = [ATTRIBUTES["kind"][item_id - 100] for item_id in capped.ids]
    assert all(kinds.count(kind) == 2 for kind in set(kinds) - {None})
    assert kinds.count(None) == 8  # without a value they are unlimited
    assert (len(capped.ids), capped.exhausted) == (16, False)
    assert capped.ids == sorted(capped.ids, key=ranked.index)
    assert capped.scores == sorted(capped.scores, reverse=True)
    tagged = recaller.recommend(ANN, 40, diversity={"by": "tags", "max": 1})
    assert sum((item_id - 100) % 3 != 0 for item_id in tagged.ids) == 1


def test_cap_of_an_unknown_attribute_is_an_error(make_recommender):
    with pytest.raises(QueryError, match="expected one of the attributes") as caught:
        make_recommender().recommend(ANN, diversity={"by": "colour", "max": 1})
    assert caught.value.field == "diversity.by"


@pytest.mark.parametrize("ranker", [None, rank_by_price])
def test_mmr_of_1_is_the_order_of_scores_and_0_spreads(make_recommender, ranker):
    recaller = make_recommender(ranker)
    plain = recaller.recommend(ANN, 6, candidates=15)
    assert recaller.recommend(ANN, 6, candidates=15, diversity={"mmr": 1}).ids == plain.ids
    spread = recaller.recommend(ANN, 6, candidates=15, diversity={"mmr": 0})
    assert spread.ids[0] == plain.ids[0]
    assert set(spread.ids) != set(plain.ids)
    assert len(set(spread.ids)) == 6
    all_scores = recaller.recommend(ANN, 15, candidates=15)
    by_id = dict(zip(all_scores.ids, all_scores.scores, strict=True))
    assert spread.scores == [by_id[item_id] for item_id in spread.ids]


def test_ranking_is_skipped_when_the_deadline_has_passed(make_recommender, monkeypatch):
    recaller = make_recommender(rank_by_price)
    answer = recaller.recommend(ANN, 6, deadline_ms=1e-6)
    assert answer.ranker == "recall"
    assert answer.degraded == ("repeat", "ranker")  # the first channel is asked in any case
    assert len(answer.ids) == 6


def test_ranking_that_would_not_end_in_time_is_skipped(make_recommender):
    times = iter([0.05, 0.0, 0.0])

    def sleep(candidates):
        time.sleep(next(times))
        return candidates["price"]

    recaller = make_recommender(NamedRanker("slow", sleep))
    late = recaller.recommend(ANN, 6, deadline_ms=20)
    assert (late.ranker, late.degraded) == ("slow", ())  # nothing was known of it; what came is used
    assert recaller.recommend(ANN, 6, deadline_ms=20).degraded == ("ranker",)
    assert recaller.recommend(ANN, 6, deadline_ms=20).ranker == "slow"  # tried again
    assert recaller.recommend(ANN, 6).ranker == "slow"


def test_failed_channel_and_failed_ranker_are_both_named(make_recommender, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(channel_search, "CHANNELS", {"repeat": fail})
    assert make_recommender(fail).recommend(ANN, 6).degraded == ("repeat", "ranker")


def test_plan_has_the_stage_of_ranking(make_recommender):
    plan = make_recommender(rank_by_price).recommend(Query(user_id="ann", explain=True)).plan
    assert list(plan.ms) == ["encode", "plan", "search", "merge", "rank"]


def test_answer_as_json_has_the_fields_of_the_interface(make_recommender):
    answer = make_recommender(rank_by_price).recommend(ANN, 2).as_json()
    assert list(answer) == [
        *("release", "ids", "scores", "channels", "ranker", "degraded", "exhausted", "fallback", "unknown"),
    ]
    assert answer["unknown"] == {"user": False, "history": 0, "exclude": 0}


def test_diversity_by_values_that_cannot_be_counted_is_refused(make_release):
    vectors = np.eye(4, dtype=np.float32)
    attributes = pl.DataFrame({"size": [{"width": n} for n in range(4)], "grid": [[[n]] for n in range(4)]})
    recaller = Recaller(LiveIndex.from_release(make_release(vectors, attributes=attributes)))
    for name in attributes.columns:
        with pytest.raises(QueryError, match="single values or of lists of such") as error:
            recaller.recommend(Query(vector=[1.0, 0, 0, 0], k=1), 2, diversity={"by": name, "max": 1})
        assert error.value.field == "diversity.by"
