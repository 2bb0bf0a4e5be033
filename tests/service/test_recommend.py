"""`POST /v1/recommend`, against `Recaller.recommend`; a slow or broken ranker harms nothing else."""

import threading
import time

import pytest
from support import synthetic
from support.server import open_test_client

from vecall.client import Client
from vecall.ranking.ranker import NamedRanker
from vecall.recall.recaller import open_recaller
from vecall.recall.recommend_query import RecommendRequest
from vecall.service import schemas
from vecall.service.auth import ApiKeys

READ_KEY, ADMIN_KEY = "read-key-0123456789", "admin-key-0123456789"


def rank_by_year(candidates):
    return candidates["year"].fill_null(-1)


def fail(candidates):
    raise RuntimeError("broken")


@pytest.fixture
def set_ranker(client):
    """Let the service of `client` have a ranker of its own."""

    def set_ranker(ranker):
        client.service.recaller._ranker = NamedRanker("mine", ranker)

    return set_ranker


def recommend(client, **request):
    response = client.post("/v1/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def parse_error(response):
    error = response.json()["error"]
    return response.status_code, error["code"], error["field"]


@pytest.mark.parametrize("ranker", [None, rank_by_year])
@pytest.mark.parametrize(
    "request_",
    [
        {"user_id": "user-3"},
        {"user_id": "user-3", "k": 5, "candidates": 9, "exclude_seen": False},
        {"user_id": "nobody", "k": 4, "where": [{"field": "year", "op": "lt", "value": 9}]},
        {"history": [synthetic.make_item_id(1), "unknown"], "k": 4, "diversity": {"by": "type", "max": 1}},
        {"user_id": "user-3", "k": 6, "diversity": {"mmr": 0.5}},
        {"vector": [0.5] * 8, "k": 100},
    ],
)
def test_service_answers_like_the_recaller(client, shop, set_ranker, ranker, request_):
    if ranker is not None:
        set_ranker(ranker)
    with open_recaller(shop, ranker=None if ranker is None else NamedRanker("mine", ranker)) as recaller:
        expected = recaller.recommend_with_trace(RecommendRequest.from_json(request_)).answer.as_json()
    answer = recommend(client, **request_)
    assert answer == expected
    assert answer["ranker"] == ("recall" if ranker is None else "mine")
    assert schemas.RecommendResponse.model_validate(answer, strict=True)


def test_live_items_are_ranked_and_deleted_ones_left_out(client, set_ranker):
    set_ranker(rank_by_year)
    fields = {"type": "kind 0", "title": "New", "year": 2000}
    assert client.post("/v1/items", json={"items": [{"id": "new", "fields": fields}]}).status_code == 200
    for diversity in (None, {"by": "year", "max": 1}, {"mmr": 0.9}):
        assert recommend(client, user_id="user-1", k=2, diversity=diversity)["ids"][0] == "new"
    client.post("/v1/items/delete", json={"ids": ["new"]})
    assert "new" not in recommend(client, user_id="user-1", k=36)["ids"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 11}, "k"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 11}, "candidates"),
        ({"exclude": ["a"] * 4}, "exclude"),
        ({"diversity": {"by": "colour", "max": 1}}, "diversity.by"),
        ({"diversity": {"by": "type", "max": 0}}, "diversity.max"),
        ({"diversity": {"mmr": 2}}, "diversity.mmr"),
        ({"deadline_ms": -1}, "deadline_ms"),
        ({"surprise": 1}, "surprise"),
        ({"channels": ["vector", "none"]}, "channels[1]"),
    ],
)
def test_error_names_the_field(shop, request_, field):
    with open_test_client(shop, limits={"max_k": 10, "max_exclude": 3}) as client:
        response = client.post("/v1/recommend", json={"user_id": "user-1", "k": 5, "candidates": 9} | request_)
        assert parse_error(response) == (422, "invalid", field)


def test_defaults_are_within_the_limits(shop):
    with open_test_client(shop, limits={"max_k": 10}) as client:
        for path in ("/v1/recall", "/v1/recommend"):
            assert len(client.post(path, json={"user_id": "user-1"}).json()["ids"]) == 10


def test_read_key_is_needed(shop):
    with open_test_client(shop, ApiKeys((READ_KEY.encode(),), (ADMIN_KEY.encode(),))) as client:
        for key, status in ((None, 401), (READ_KEY, 200), (ADMIN_KEY, 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert client.post("/v1/recommend", json={"user_id": "user-1"}, headers=headers).status_code == status


def test_broken_ranker_is_counted_and_the_order_of_recall_answers(client, set_ranker):
    set_ranker(fail)
    answer = recommend(client, user_id="user-1", k=5, explain=True)
    assert (answer["ranker"], answer["degraded"]) == ("recall", ["ranker"])
    assert list(answer["plan"]["ms"])[-1] == "rank"
    set_ranker(rank_by_year)
    recommend(client, user_id="user-1", k=5)
    text = client.get("/metrics").text
    for line in (
        'vecall_recommendations_total{ranker="recall"} 1.0',
        'vecall_recommendations_total{ranker="mine"} 1.0',
        'vecall_degraded_answers_total{part="ranker"} 1.0',
        'vecall_recall_stage_duration_seconds_count{stage="rank"} 2.0',
        'vecall_recall_stage_duration_seconds_count{stage="search"} 2.0',
        'vecall_http_requests_total{endpoint="/v1/recommend",status="200"} 2.0',
    ):
        assert line in text


def test_recalls_are_answered_while_a_ranker_is_busy(client, set_ranker):
    is_ranking, may_end = threading.Event(), threading.Event()

    def wait(candidates):
        is_ranking.set()
        may_end.wait(10)
        return rank_by_year(candidates)

    set_ranker(wait)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(recommend(client, user_id="user-1", k=3)))
    thread.start()
    assert is_ranking.wait(10)
    assert client.post("/v1/recall", json={"user_id": "user-1"}).status_code == 200
    assert not answers
    may_end.set()
    thread.join()
    assert answers[0]["ranker"] == "mine"


def test_recommendations_beyond_the_queue_are_rejected(shop):
    with open_test_client(shop, max_queue=0, max_concurrent_rankings=1) as client:
        is_ranking, may_end = threading.Event(), threading.Event()

        def wait(candidates):
            is_ranking.set()
            may_end.wait(10)
            return rank_by_year(candidates)

        client.service.recaller._ranker = NamedRanker("mine", wait)
        thread = threading.Thread(target=lambda: client.post("/v1/recommend", json={"user_id": "user-1"}))
        thread.start()
        assert is_ranking.wait(10)
        rejected = client.post("/v1/recommend", json={"user_id": "user-1"})
        may_end.set()
        thread.join()
        assert parse_error(rejected) == (503, "overloaded", None)
        assert rejected.headers["Retry-After"] == "1"


def test_short_recommendations_do_not_wait_for_long_ones(shop):
    """They run in the event loop, which must not wait for a slot."""
    with open_test_client(shop, max_concurrent_rankings=1) as client, client.service.recaller._ranking_slots:
        assert len(recommend(client, user_id="user-1", k=3)["ids"]) == 3


def test_deadline_counts_from_arrival_and_ranking_is_skipped(client, set_ranker):
    def sleep(candidates):
        time.sleep(0.03)
        return rank_by_year(candidates)

    set_ranker(sleep)
    assert recommend(client, user_id="user-1")["ranker"] == "mine"
    skipped = recommend(client, user_id="user-1", deadline_ms=25)
    assert (skipped["ranker"], skipped["degraded"]) == ("recall", ["ranker"])


def test_served_ranker_is_loaded_by_name_in_every_worker(shop, start_server, tmp_path, monkeypatch):
    (tmp_path / "own_rankers.py").write_text("def by_year(candidates):\n    return candidates['year'].fill_null(-1)\n")
    monkeypatch.chdir(tmp_path)
    server = start_server(shop, "--ranker", "own_rankers:by_year", "--workers", "2")
    with open_recaller(shop, ranker=rank_by_year) as recaller:
        expected = recaller.recommend(RecommendRequest.from_json({"user_id": "user-1"}).query, 5)
    for _ in range(4):  # each over a new connection, which any worker may accept
        with Client(server.url) as client:
            answer = client.recommend(user_id="user-1", k=5)
        assert (answer["ranker"], answer["ids"]) == ("by_year", expected.ids)
