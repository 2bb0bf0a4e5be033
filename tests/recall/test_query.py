import numpy as np
import polars as pl
import pytest
import torch

from vecall.errors import QueryError
from vecall.recall.query import ExecutionPlan, Query, Recalled, UnknownInputs, parse_id


def test_absent_keys_take_defaults():
    query = Query.from_json({"user_id": 7})
    assert query == Query(user_id=7, k=100, where=(), exclude=(), exclude_seen=True, explain=False)


def test_every_key_is_read_from_json():
    request = {
        "user_id": "u",
        "user": {"age": 3},
        "history": ["a"],
        "recent": ["c"],
        "vector": [1, 2.5],
        "k": 5,
        "where": [{"field": "year", "op": "gt", "value": 3}],
        "exclude": ["b"],
        "exclude_seen": False,
        "explain": True,
    }
    query = Query.from_json(request)
    assert {name: getattr(query, name) for name in request} == request


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("user_id", value) for value in (1.5, True, ["a"], {})],
        *[("user", value) for value in ("a", [], 3)],
        *[("recent", value) for value in ("abc", 3, [1.5], [None])],
        *[("history", value) for value in ("abc", b"abc", 3, [1.5], [None], [True], {"a": 1})],
        *[("vector", value) for value in ("12", 3, [[1.0]], ["1"], [True], [None], [float("nan")], [10**400])],
        *[("vector", np.array(value)) for value in (["1"], [True], [1j], [None])],
        *[("k", value) for value in (0, -1, 1.0, True, "5", None)],
        *[("where", value) for value in ({"field": "a"}, "abc", ["abc"], None, [None])],
        *[("exclude", value) for value in ("abc", [1.5], None, [False])],
        *[("exclude_seen", value) for value in (0, 1, "true", None)],
        *[("explain", value) for value in (0, 1, None)],
    ],
)
def test_invalid_value_error_names_its_field(field, value):
    with pytest.raises(QueryError) as caught:
        Query.from_json({"user_id": "u", field: value})
    is_element = isinstance(value, list) and field not in ("user_id", "user")
    location = f"{field}[0]" if is_element else field
    assert (caught.value.field, caught.value.code) == (location, "invalid")
    assert str(caught.value).startswith(f"{location}: expected ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("request_", [{}, {"k": 3}, {"user_id": None, "user": None, "history": None, "vector": None}])
def test_query_without_any_user_input_is_refused(request_):
    with pytest.raises(QueryError, match="at least one of user_id, user, history, recent and vector") as caught:
        Query.from_json(request_)
    assert caught.value.code == "empty_query"


def test_empty_values_count_as_given():
    for part in ({"user": {}}, {"history": []}, {"vector": []}, {"user_id": ""}):
        Query.from_json(part)


@pytest.mark.parametrize(("request_", "code", "field"), [([], "invalid", None), ({"K": 3}, "invalid", "K")])
def test_non_object_and_unknown_key_are_refused(request_, code, field):
    with pytest.raises(QueryError, match="expected") as caught:
        Query.from_json(request_)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_numpy_polars_and_torch_values_are_converted():
    query = Query(
        user_id=np.int64(3),
        history=np.array([1, 2]),
        vector=np.ones(3, np.float16),
        k=np.int8(100),
        exclude=pl.Series([3]),
        exclude_seen=np.bool_(False),
        recent=np.array([4], dtype=np.int8),
    )
    assert 10 * query.k == 1000  # an int8 would overflow
    assert [type(item_id) for ids in (query.history, query.recent, query.exclude) for item_id in ids] == [int] * 4
    tensor = torch.ones(3, requires_grad=True)
    assert Query(vector=tensor.detach()).vector.tolist() == [1, 1, 1]
    with pytest.raises(QueryError, match=r"vector: expected a list of finite numbers, got Tensor: .*detach"):
        Query(vector=tensor)


def test_answer_as_json_has_the_public_keys():
    answer = Recalled("r", [3, 1], [0.5, 0.25], exhausted=False, fallback=None, unknown=UnknownInputs(history=2))
    assert answer.as_json() == {
        "release": "r",
        "ids": [3, 1],
        "scores": [0.5, 0.25],
        "exhausted": False,
        "fallback": None,
        "unknown": {"user": False, "history": 2, "exclude": 0},
        "degraded": [],
    }
    plan = ExecutionPlan("index", matches=9, excluded=1, delta=0, effort=64, ms={"encode": 0.1}, channels={})
    explained = Recalled("r", [], [], exhausted=True, fallback="popular", unknown=UnknownInputs(), plan=plan).as_json()
    assert explained["plan"] == {
        "path": "index",
        "matches": 9,
        "excluded": 1,
        "delta": 0,
        "effort": 64,
        "ms": {"encode": 0.1},
        "channels": {},
    }


@pytest.mark.parametrize("text", ["1_0", "１０", " 1", "1.0", "", "0x1", "9" * 5_000])
def test_text_that_is_no_integer_is_no_integer_id(text):
    with pytest.raises(QueryError, match="user_id: ids here are integers"):
        parse_id("user_id", text, "integer")
    assert parse_id("user_id", text, "string") == text


def test_integer_ids_are_parsed_from_text():
    assert [parse_id("id", text, "integer") for text in ("-7", "+7", "007", str(2**63))] == [-7, 7, 7, 2**63]


def test_ids_may_come_as_arrays_columns_and_tensors():
    for ids in (np.array([1, 2], dtype=np.int8), pl.Series([1, 2]), torch.tensor([1, 2])):
        query = Query(history=ids, recent=ids, exclude=ids)
        assert query.history == query.recent == query.exclude == [1, 2]
