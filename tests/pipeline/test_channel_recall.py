"""Channels asked for held-out cases: as a service would, and of tables that know nothing of what is held out."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelsSettings
from vecall.config import parse_config
from vecall.data.dataset import read_dataset
from vecall.evaluation.compare import ServedModel
from vecall.index.exact import ExactIndex
from vecall.index.planner import DEFAULT_COSTS
from vecall.pipeline import channel_recall
from vecall.pipeline.channel_evaluation import evaluate_channels
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.rank_table import RankTable
from vecall.recall import channel_search
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channel_search import search_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.channels.repeat import recall_repeats
from vecall.recall.result_order import rank_by_score_and_id

ITEMS, USERS, LATE_ITEM = 30, 12, 30
VECTORS = np.random.default_rng(0).integers(1, 6, (ITEMS + 1, 4)).astype(np.float32)
VECTORS[LATE_ITEM] = 0  # behind all others


@pytest.fixture
def shop(tmp_path):
    """Users of random items; the last one of each is an item that nobody took before. One has the test item alone."""
    rng = np.random.default_rng(1)
    log = [(user, item, time) for user in range(USERS) for time, item in enumerate(rng.permutation(ITEMS)[:8])]
    log += [(user, LATE_ITEM, 100) for user in range(USERS)]
    log += [(USERS, LATE_ITEM, 100)]
    pl.DataFrame(log, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
    config = parse_config(
        {
            "data": {
                "interactions": str(tmp_path / "log.csv"),
                "split": "global_time",
                "valid_from": 6,
                "test_from": 100,
            },
            "schema": {
                "interactions": {"user": "user", "item": "item", "time": "time"},
                "items": {"id": "item", "id_type": "integer"},
                "users": {"id": "user", "id_type": "integer"},
            },
        }
    )
    dataset = read_dataset(config.data, config.schema_)
    return dataset, dataset.split(config.data)


@pytest.fixture
def served_model():
    def encode_users(cases):
        sums = [VECTORS[cases.histories[case]].sum(axis=0) for case in range(len(cases))]
        return np.array(sums, dtype=np.float32)

    return ServedModel(
        encode_users=encode_users,
        index=ExactIndex.build(VECTORS),
        search_param_curve=None,
        engine="exact",
        cost_model=DEFAULT_COSTS,
        has_features_by_user=np.zeros(USERS + 1, dtype=bool),
        reads_history=True,
    )


def recall_even_rows(query, n):
    """A channel that returns the eligible even rows, the lower the better."""
    rows = np.arange(0, ITEMS, 2)
    rows = rows[query.candidates.row_filter.mark(rows)]
    return rank_by_score_and_id(query.snapshot, rows, (100 - rows).astype(np.float32), n)


@pytest.fixture
def recaller(shop, served_model, monkeypatch):
    """With two channels beside the vectors."""
    channels = {"similar": recall_even_rows, "repeat": recall_repeats}
    for module in (channel_recall, channel_search):
        monkeypatch.setattr(module, "CHANNELS", channels)
    monkeypatch.setattr(channel_recall, "list_available_channels", lambda _release: ("vector", *channels))
    return ChannelRecaller.build(ChannelsSettings(), *shop, served_model)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("method", ["rrf", "quota"])
def test_merged_rankings_are_the_answers_of_the_service(recaller, shop, method, exclude_seen):
    cases, k = shop[1].test, 7
    plan = MergePlan(method=method, weights={"vector": 1.0, "similar": 0.5, "repeat": 2.0}, depth=9)
    merged = RankTable(recaller.rank(cases, 9, exclude_seen=exclude_seen).rows).merge(plan, k)
    queries = recaller.build_queries(cases, exclude_seen=exclude_seen)
    assert [query.fallback for query in queries] == [None] * USERS + ["popular"]
    for query, rows in zip(queries, merged, strict=True):
        candidates = build_candidate_set(recaller.snapshot, query.excluded_rows, None)
        answer = search_channels(ChannelQuery(recaller.snapshot, query, candidates), plan, k)
        if query.fallback is None:
            assert rows.tolist() == answer.rows.tolist()
        else:
            assert set(answer.hits) == {"popular", "similar", "repeat"}


def test_vectors_are_searched_among_unseen_items(recaller, shop):
    cases = shop[1].test
    rankings = recaller.rank(cases, 5, exclude_seen=True)
    for case in range(USERS):
        seen = cases.histories[case]
        scores = VECTORS @ VECTORS[seen].sum(axis=0)
        expected = [row for row in np.argsort(-scores, kind="stable").tolist() if row not in seen]
        assert rankings.rows["vector"][case].tolist() == expected[:5]
    assert (rankings.rows["repeat"] == -1).all()
    assert all((milliseconds > 0).all() for milliseconds in rankings.milliseconds.values())


def test_popular_items_are_recalled_for_users_without_a_vector_but_merged_once(shop, served_model):
    recaller = ChannelRecaller.build(ChannelsSettings(), *shop, served_model)
    rankings = recaller.rank(shop[1].test, 5, exclude_seen=True)
    assert rankings.has_vector.tolist() == [True] * USERS + [False]
    assert (rankings.rows["popular"][-1] >= 0).any()
    with_vector = rankings.select_rows_to_merge(MergePlan(weights={"vector": 1.0, "popular": 0.5}))
    assert (with_vector["popular"][-1] == -1).all()
    assert np.array_equal(with_vector["popular"][:-1], rankings.rows["popular"][:-1])
    assert rankings.select_rows_to_merge(MergePlan(weights={"popular": 1.0})) is rankings.rows


def test_channels_that_are_turned_off_are_not_asked(shop, served_model):
    recaller = ChannelRecaller.build(ChannelsSettings(similar=False, popular=False, repeat=False), *shop, served_model)
    assert recaller.channels == ("vector",)


def test_no_channel_knows_what_is_held_out(shop, served_model):
    """The item that everybody takes in the test is the most popular and the nearest of all, but not before."""
    dataset, split = shop
    recaller = ChannelRecaller.build(ChannelsSettings(), dataset, split, served_model)
    weights = dict.fromkeys(recaller.channels, 1.0)
    evaluation = evaluate_channels(recaller, split.test, MergePlan(weights=weights), (5,))
    assert evaluation.merged[0]["recall@5"] == 0
    assert {name: result.seen_excluded["recall@5"] for name, result in evaluation.channels.items()} == dict.fromkeys(
        recaller.channels, 0
    )
    leaking = dataclasses.replace(split, positive_parts=np.zeros_like(split.positive_parts), train=dataset.histories)
    leaky = ChannelRecaller.build(ChannelsSettings(), dataset, leaking, served_model)
    results = evaluate_channels(leaky, split.test, MergePlan(weights=weights), (5,)).channels
    assert results["vector"].seen_excluded["recall@5"] > 0  # the user without history gets popular items
