"""Recall while the server that holds the index does not answer."""

import json
import threading
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from support.fake_engine import NAME, register

from vecall.channels.merge_plan import MergePlan
from vecall.errors import EngineUnavailableError
from vecall.index.planner import CostModel
from vecall.live.live_index import LiveIndex
from vecall.recall import batch
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller

N = 60
VECTORS = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
CHEAP_INDEX = CostModel(fixed_ms=0.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=1.0)
BY_VECTOR = {"vector": [1.0, 2.0, -1.0, 0.5], "k": 5}


@pytest.fixture
def server(monkeypatch):
    return register(monkeypatch)


@pytest.fixture
def make_remote_recaller(server, make_release, make_encoder, monkeypatch):
    """Factory of recallers of a release whose index is on the server and is always cheaper than a scan."""

    def make(weights=None, popularity=range(N), **options):
        users = [("ann", {"age": 1.0}, [3, 5, 3, 8])]
        release = make_release(
            VECTORS,
            engine=NAME,
            popularity=popularity,
            users=users,
            encoder=make_encoder(),
            attributes=pl.DataFrame({"year": np.arange(N)}),
        )
        release = replace(release, cost_model=CHEAP_INDEX)
        if weights is not None:
            monkeypatch.setitem(release.manifest.__dict__, "merge", MergePlan(weights=weights))
        return Recaller(LiveIndex.from_release(release), **options)

    return make


def find_exact_ids(query):
    scores = VECTORS.astype(np.float16).astype(np.float32) @ np.array(query["vector"], dtype=np.float32)
    return (100 + np.argsort(-scores)[: query["k"]]).tolist()


def test_refused_request_raises_and_is_answered_after_recovery(make_remote_recaller, server):
    recaller = make_remote_recaller()
    server.set(fault="down")
    for _ in range(5):
        with pytest.raises(EngineUnavailableError):
            recaller.recall(Query(**BY_VECTOR))
        with pytest.raises(EngineUnavailableError):
            recaller.recommend(Query(**BY_VECTOR), candidates=20)
        with pytest.raises(EngineUnavailableError):
            recaller.recall(Query(user_id="ann", k=5, channels=["vector", "repeat"]))
    assert recaller.live_index.snapshot.release.remote_index.unavailable_reason is not None
    server.set(fault=None)
    answer = recaller.recall(Query(**BY_VECTOR))
    assert (answer.ids, answer.degraded, answer.fallback) == (find_exact_ids(BY_VECTOR), (), None)


@pytest.mark.parametrize("fault", ["short", "empty", "damaged"])
def test_rows_that_the_server_leaves_out_are_found_by_a_scan(make_remote_recaller, server, fault):
    recaller = make_remote_recaller()
    server.set(fault=fault)
    recalled = recaller.recall(Query(**BY_VECTOR, explain=True))
    assert recalled.ids == find_exact_ids(BY_VECTOR)
    assert recalled.plan.path == "index"


@pytest.mark.parametrize("when_down", ["refuse", "popular"])
def test_scanned_requests_and_other_channels_need_no_server(make_remote_recaller, server, when_down):
    recaller = make_remote_recaller()
    server.set(fault="down", when_down=when_down)
    few = recaller.recall(Query(**BY_VECTOR, where=[{"field": "year", "op": "lt", "value": 4}]))
    assert (set(few.ids), few.exhausted, few.degraded) == ({100, 101, 102, 103}, True, ())
    everything = recaller.recall(Query(**BY_VECTOR | {"k": N}))
    assert everything.ids == find_exact_ids(BY_VECTOR | {"k": N})
    repeats = recaller.recall(Query(user_id="ann", exclude_seen=False, channels=["repeat"], k=3))
    assert (repeats.ids, repeats.degraded) == ([103, 108, 105], ())
    assert not server.threads


def test_popular_items_replace_the_vectors(make_remote_recaller, server):
    recaller = make_remote_recaller()
    server.set(fault="down", when_down="popular")
    answer = recaller.recall(Query(user_id="ann", k=3, exclude=[158], explain=True))
    assert (answer.ids, answer.scores) == ([159, 157, 156], [59.0, 57.0, 56.0])
    assert (answer.fallback, answer.degraded, answer.plan.path) == ("popular", ("engine",), "popular")
    assert not answer.exhausted


def test_popular_items_fill_what_other_channels_lack(make_remote_recaller, server):
    recaller = make_remote_recaller({"vector": 1.0, "repeat": 1.0})
    server.set(fault="down", when_down="popular")
    answer = recaller.recall(Query(user_id="ann", k=6, exclude_seen=False, explain=True))
    assert answer.ids == [103, 108, 105, 159, 158, 157]
    assert answer.scores == sorted(answer.scores, reverse=True)
    assert (answer.fallback, answer.degraded) == ("popular", ("engine",))
    assert {name: facts["count"] for name, facts in answer.plan.channels.items()} == {"repeat": 3, "popular": 6}


def test_other_channels_alone_answer_if_they_have_enough(make_remote_recaller, server):
    recaller = make_remote_recaller({"vector": 1.0, "repeat": 1.0})
    server.set(fault="down", when_down="popular")
    answer = recaller.recall(Query(user_id="ann", k=2, exclude_seen=False))
    assert (answer.ids, answer.fallback, answer.degraded) == ([103, 108], None, ("engine",))


def test_popular_channel_of_the_plan_is_not_added_twice(make_remote_recaller, server):
    recaller = make_remote_recaller({"vector": 1.0, "popular": 1.0})
    server.set(fault="down", when_down="popular")
    answer = recaller.recall(Query(user_id="ann", k=3))
    assert (answer.ids, answer.fallback, answer.degraded) == ([159, 158, 157], "popular", ("engine",))


def test_release_without_popularity_is_refused(make_remote_recaller, server):
    recaller = make_remote_recaller(popularity=None)
    server.set(fault="down", when_down="popular")
    with pytest.raises(EngineUnavailableError, match="does not answer"):
        recaller.recall(Query(**BY_VECTOR))


def test_final_list_of_popular_items_says_so(make_remote_recaller, server):
    recaller = make_remote_recaller(ranker=lambda candidates: -candidates["year"])
    server.set(fault="down", when_down="popular")
    answer = recaller.recommend(Query(user_id="ann"), 3, candidates=10)
    assert (answer.ids, answer.channels) == ([150, 151, 152], [["popular"]] * 3)
    assert (answer.fallback, answer.degraded, answer.ranker) == ("popular", ("engine",), "<lambda>")


def test_query_says_before_its_work_that_it_may_wait(make_remote_recaller):
    announced = []
    recaller = make_remote_recaller(before_remote_search=lambda: announced.append(1))
    recaller.recall(Query(user_id="ann", channels=["repeat"]))
    assert not announced
    recaller.recall(Query(**BY_VECTOR))
    assert announced == [1]


@pytest.mark.parametrize("when_down", ["refuse", "popular"])
def test_batch_waits_for_the_server(make_remote_recaller, server, when_down, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_ENGINE_RETRY_SECONDS", 0.01)
    recaller, lines = make_remote_recaller(), tmp_path / "requests.jsonl"
    lines.write_text(json.dumps(BY_VECTOR))
    server.set(fault="down", when_down=when_down)
    threading.Timer(0.03, server.set, kwargs={"fault": None}).start()
    batch.recall_file(recaller, lines, tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["ids"].to_list() == [find_exact_ids(BY_VECTOR)]


@pytest.mark.parametrize("when_down", ["refuse", "popular"])
def test_batch_gives_up_after_a_while_and_writes_nothing(
    make_remote_recaller, server, when_down, tmp_path, monkeypatch
):
    monkeypatch.setattr(batch, "_ENGINE_WAIT_SECONDS", 0.0)
    recaller, lines = make_remote_recaller(), tmp_path / "requests.jsonl"
    lines.write_text(json.dumps(BY_VECTOR))
    server.set(fault="down", when_down=when_down)
    with pytest.raises(EngineUnavailableError, match=r"requests\.jsonl: line 1: the (fake )?server"):
        batch.recall_file(recaller, lines, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
