"""Requests for final lists: what is accepted, and which field an error names."""

import pytest

from vecall.errors import QueryError
from vecall.recall.diversity import MarginalRelevance
from vecall.recall.query import Query
from vecall.recall.recommend_query import RecommendRequest


def test_defaults_and_json_agree():
    assert RecommendRequest.from_json({"user_id": 7}) == RecommendRequest(Query(user_id=7), 20, 500, None, None)
    request = RecommendRequest.from_json(
        {"history": [1], "k": 3, "candidates": 9, "diversity": {"mmr": 0.5}, "deadline_ms": 5, "explain": True}
    )
    assert request == RecommendRequest(Query(history=[1], explain=True), 3, 9, MarginalRelevance(0.5), 5)


@pytest.mark.parametrize(("k", "candidates", "expected"), [(20, 500, 500), (20, 5, 20), (7, 7, 7)])
def test_at_least_k_candidates_are_recalled(k, candidates, expected):
    query = RecommendRequest(Query(user_id=7, k=3, exclude=[1]), k, candidates).to_candidate_query()
    assert query == Query(user_id=7, k=expected, exclude=[1])


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ([], None),
        ({}, None),
        ({"k": 5}, None),
        ({"user_id": 7, "k": 0}, "k"),
        ({"user_id": 7, "k": None}, "k"),
        ({"user_id": 7, "k": "5"}, "k"),
        ({"user_id": 7, "candidates": 0}, "candidates"),
        ({"user_id": 7, "candidates": True}, "candidates"),
        ({"user_id": 7, "candidates": 5.0}, "candidates"),
        ({"user_id": 7, "deadline_ms": 0}, "deadline_ms"),
        ({"user_id": 7, "deadline_ms": "5"}, "deadline_ms"),
        ({"user_id": 7, "deadline_ms": float("inf")}, "deadline_ms"),
        ({"user_id": 7, "diversity": "genres"}, "diversity"),
        ({"user_id": 7, "diversity": {"by": "genres", "max": 0}}, "diversity.max"),
        ({"user_id": 7, "surprise": 1}, "surprise"),
        ({"user_id": 7, "where": [1]}, "where[0]"),
    ],
)
def test_error_names_the_field(request_, field):
    with pytest.raises(QueryError) as caught:
        RecommendRequest.from_json(request_)
    assert caught.value.field == field
