"""Search by several channels: what is asked, what the answer says of it, and what happens when a channel fails."""

from dataclasses import replace

import numpy as np
import pytest

from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.merge_plan import MergePlan
from vecall.channels.popular_items import PopularItems
from vecall.errors import QueryError
from vecall.recall import channel_search
from vecall.recall.channels.available import list_available_channels
from vecall.recall.merging import merge_rankings
from vecall.recall.query import Query

N = 40


@pytest.fixture
def recaller(make_recaller, make_encoder):
    vectors = np.random.default_rng(0).integers(-3, 4, (N, 4)).astype(np.float32)
    users = [("ann", {"age": 1.0}, [3, 5, 3, 8]), ("bob", {}, [])]
    return make_recaller(vectors, popularity=np.arange(N), users=users, encoder=make_encoder())


@pytest.fixture
def set_plan(monkeypatch):
    """Let a recaller's release have been tuned to a plan."""

    def set_plan(recaller, **weights):
        manifest = recaller.live_index.snapshot.release.manifest
        monkeypatch.setitem(manifest.__dict__, "merge", MergePlan(weights=weights))

    return set_plan


def test_vectors_alone_answer_where_nothing_was_tuned(recaller):
    default, vector = (recaller.recall(Query(user_id="ann", k=9, channels=names)) for names in (None, ["vector"]))
    assert (default.ids, default.scores, default.degraded) == (vector.ids, vector.scores, ())


def test_single_channel_has_its_own_scores(recaller):
    answer = recaller.recall(Query(user_id="ann", k=9, exclude_seen=False, channels=["repeat"]))
    assert answer.ids == [103, 108, 105]
    assert answer.scores == pytest.approx([0.98 + 0.98**3, 1, 0.98**2])
    assert not answer.exhausted


def test_plan_of_the_release_holds_for_requests_that_name_no_channel(recaller, set_plan):
    set_plan(recaller, vector=1.0, repeat=2.0)
    query = {"user_id": "ann", "k": 9, "exclude_seen": False}
    answer = recaller.recall(Query(**query, explain=True))
    assert answer.ids == recaller.recall(Query(**query, channels=["repeat", "vector"])).ids
    assert answer.ids != recaller.recall(Query(**query, channels=["vector"])).ids
    assert len(answer.ids) == 9
    assert set(answer.plan.channels) == {"vector", "repeat"}
    assert (answer.plan.channels["repeat"]["count"], answer.plan.channels["vector"]["count"]) == (3, 9)
    vector = recaller.live_index.snapshot.get_vectors(np.array([1]))[0]
    by_vector = recaller.recall(Query(vector=vector, k=9, explain=True))
    assert set(by_vector.plan.channels) == {"vector"}


def test_candidates_tell_rank_and_score_of_each_channel(recaller, set_plan):
    set_plan(recaller, vector=1.0, repeat=2.0)
    query = Query(user_id="ann", k=9, exclude_seen=False)
    table = recaller.candidates(query)
    repeats = recaller.recall(Query(user_id="ann", k=9, exclude_seen=False, channels=["repeat"]))
    expected = dict(zip(repeats.ids, repeats.scores, strict=True))
    for row in table.iter_rows(named=True):
        assert row["repeat.score"] == (pytest.approx(expected[row["id"]]) if row["id"] in expected else None)
        assert row["repeat.rank"] == (repeats.ids.index(row["id"]) + 1 if row["id"] in expected else None)
        assert ("repeat" in row["channels"]) == (row["id"] in expected)
        assert ("vector" in row["channels"]) == (row["vector.rank"] is not None)


def test_user_without_vector_gets_popular_items(recaller, set_plan):
    set_plan(recaller, vector=1.0, repeat=1.0)
    answer = recaller.recall(Query(user_id="nobody", k=3))
    assert (answer.ids, answer.fallback) == ([139, 138, 137], "popular")
    assert set(recaller.candidates(Query(user_id="nobody", k=3))["channels"].explode()) == {"popular"}


def test_popular_items_in_place_of_the_vector_have_its_weight(recaller, set_plan):
    set_plan(recaller, vector=60.0, repeat=20.0)
    answer = recaller.recall(Query(user_id="nobody", k=3, channels=["vector", "repeat"]))
    plan = MergePlan(weights={"popular": 60.0, "repeat": 20.0})
    scores = merge_rankings({"popular": np.arange(3)}, plan)[1]
    assert answer.scores == pytest.approx(scores.tolist())


def test_user_without_vector_gets_what_is_popular_lately_where_it_is_known(recaller, make_recaller, make_encoder):
    counts = np.arange(N, dtype=np.float32)[::-1].copy()
    lately = make_recaller(
        np.eye(N, 4),
        popularity=np.arange(N),
        encoder=make_encoder(),
        channels=ChannelTables(popular=PopularItems(counts)),
    )
    answer = lately.recall(Query(user_id="nobody", k=3))
    assert (answer.ids, answer.scores, answer.fallback) == ([100, 101, 102], [39.0, 38.0, 37.0], "popular")
    assert recaller.recall(Query(user_id="nobody", k=3)).ids == [139, 138, 137]


def test_channel_without_vectors_needs_no_tower(make_recaller):
    recaller = make_recaller(np.eye(4), users=[("ann", {}, [2, 1])])
    assert recaller.recall(Query(user_id="ann", exclude_seen=False, channels=["repeat"])).ids == [101, 102]
    with pytest.raises(QueryError, match="no towers"):
        recaller.recall(Query(user_id="ann"))


def test_repeats_are_not_recalled_where_users_hardly_take_items_again(recaller):
    release = recaller.live_index.snapshot.release
    once = replace(release, channels=ChannelTables(facts=ChannelFacts(repeat=False)))
    assert list_available_channels(release) == ("vector", "popular", "repeat")
    assert list_available_channels(once) == ("vector", "popular")


@pytest.mark.parametrize("names", [["vector", "no"], ["fresh"]])
def test_channel_that_the_release_does_not_have_is_refused(recaller, names):
    with pytest.raises(QueryError, match=r"expected one of \['vector', 'popular', 'repeat'\]") as caught:
        recaller.recall(Query(user_id="ann", channels=names))
    assert caught.value.field == f"channels[{len(names) - 1}]"


def test_channel_that_fails_is_left_out_and_named(recaller, set_plan, monkeypatch, caplog):
    def fail(_query, _n):
        raise RuntimeError("broken")

    set_plan(recaller, vector=1.0, repeat=2.0)
    expected = recaller.recall(Query(user_id="ann", k=9, channels=["vector"]))
    monkeypatch.setattr(channel_search, "CHANNELS", {"repeat": fail})
    answer = recaller.recall(Query(user_id="ann", k=9))
    assert (answer.ids, answer.degraded) == (expected.ids, ("repeat",))
    assert "channel repeat" in caplog.text
    with pytest.raises(RuntimeError, match="broken"):  # nobody answered
        recaller.recall(Query(user_id="ann", k=9, channels=["repeat"]))


def test_channels_after_the_deadline_are_left_out(recaller, set_plan):
    set_plan(recaller, vector=1.0, repeat=2.0)
    answer = recaller.recall_with_trace(Query(user_id="ann", k=9), deadline=0.0).answer
    assert (len(answer.ids), answer.degraded) == (9, ("repeat",))


def test_several_channels_are_asked_deeper_than_the_request(recaller, monkeypatch):
    manifest = recaller.live_index.snapshot.release.manifest
    plan = MergePlan(weights={"vector": 1.0, "repeat": 2.0}, depth=20)
    monkeypatch.setitem(manifest.__dict__, "merge", plan)
    answer = recaller.recall(Query(user_id="ann", k=9, explain=True))
    assert (len(answer.ids), answer.plan.channels["vector"]["count"]) == (9, 20)
    alone = recaller.recall(Query(user_id="ann", k=9, channels=["vector"], explain=True))
    assert alone.plan.channels["vector"]["count"] == 9
    assert (plan.get_channel_k(9), plan.get_channel_k(50)) == (20, 50)
