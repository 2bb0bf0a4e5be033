import json

import numpy as np
import polars as pl
import pytest

from vecall.errors import EncoderMismatchError, QueryError
from vecall.live.item_parsing import parse_deletes, parse_upserts
from vecall.release.release import open_release

VECTOR = [0.25, -1, 3]


@pytest.fixture
def release(release_of):
    return release_of(
        [7, 8], np.eye(2, 3), attributes=pl.DataFrame({"year": [1990, None], "tags": [["a"], None], "title": "x"})
    )


@pytest.fixture
def towers(shop):
    return open_release(shop)


def test_vectors_of_ones_own(release):
    given = [
        {"id": np.int64(9), "vector": VECTOR, "fields": {"year": np.int16(3), "tags": ("a", "b")}},
        {"id": 7, "vector": np.array(VECTOR, dtype=np.float16), "encoder": None},
        {"id": 9, "vector": tuple(VECTOR), "fields": None},
        {"id": -(2**63), "vector": [np.float32(1), 65504, -65504.0]},
    ]
    made = parse_upserts(given, release)
    assert [(one.kind, one.id, one.fields, one.encoder_hash, one.has_external_vector) for one in made] == [
        ("upsert", 9, {}, None, True),  # the last of equal ids
        ("upsert", 7, {}, None, True),
        ("upsert", -(2**63), {}, None, True),
    ]
    assert [one.vector.tolist() for one in made] == [VECTOR, VECTOR, [1, 65504, -65504]]
    (first,) = parse_upserts(given[:1], release)
    assert json.dumps(first.fields) == '{"year": 3, "tags": ["a", "b"]}'
    assert (type(first.id), first.vector.dtype) == (int, np.float32)
    assert parse_upserts([], release) == parse_upserts((), release) == []


@pytest.mark.parametrize(
    ("item", "field", "message"),
    [
        ({"id": "7", "vector": VECTOR}, ".id", "ids here are of type integer, got '7'"),
        ({"id": True, "vector": VECTOR}, ".id", "ids here"),
        ({"vector": VECTOR}, ".id", "ids here"),
        ({"id": 2**63, "vector": VECTOR}, ".id", "an integer of 64 bits"),
        ({"id": 1, "vector": VECTOR, "colour": 3}, ".colour", "unknown key 'colour'; expected some of"),
        ({"id": 1, "vector": VECTOR, "fields": {"colour": 3}}, ".fields.colour", "no such column; expected some of"),
        ({"id": 1, "vector": VECTOR, "fields": {"year": "x"}}, ".fields.year", "expected an integer from .* got 'x'"),
        ({"id": 1, "vector": VECTOR, "fields": ["year"]}, ".fields", "expected an object of columns"),
        ({"id": 1, "fields": {"year": 3}}, ".vector", "release 'one' has no towers, so an item must bring"),
        ({"id": 1, "vector": VECTOR[:2]}, ".vector", "expected a list of 3 numbers"),
        ({"id": 1, "vector": np.ones((1, 3))}, ".vector", "expected a list of 3 numbers"),
        ({"id": 1, "vector": "abc"}, ".vector", "expected a list of 3 numbers"),
        ({"id": 1, "vector": [1, True, 1]}, ".vector", "expected a list of 3 numbers"),
        ({"id": 1, "vector": [1, None, 1]}, ".vector", "expected a list of 3 numbers"),
        ({"id": 1, "vector": [1, float("nan"), 1]}, ".vector", "finite numbers within ±65504"),
        ({"id": 1, "vector": [1, 65505, 1]}, ".vector", "finite numbers within ±65504"),
        ({"id": 1, "vector": [1, 10**400, 1]}, ".vector", "finite numbers within ±65504"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(release, item, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        parse_upserts([{"id": 1, "vector": VECTOR}, item], release)
    assert (caught.value.field, caught.value.code) == (f"items[1]{field}", "invalid")


@pytest.mark.parametrize("items", [None, {"id": 1}, "ab", b"ab", 3])
def test_items_are_a_list_of_objects(release, items):
    with pytest.raises(QueryError, match="items: expected a list") as caught:
        parse_upserts(items, release)
    assert caught.value.field == "items"
    with pytest.raises(QueryError, match=r"items\[0\]: expected \{id, fields\}"):
        parse_upserts([3], release)


def test_an_encoder_that_is_not_the_releases(release, towers):
    for one, item in (
        (release, {"id": 1, "vector": VECTOR, "encoder": "ab"}),
        (towers, {"id": "x", "vector": [1.0] * 8, "encoder": "ab"}),
        (towers, {"id": "x", "vector": [1.0] * 8}),
    ):
        with pytest.raises(EncoderMismatchError) as caught:
            parse_upserts([item], one)
        assert (caught.value.field, caught.value.code) == ("items[0].encoder", "encoder_mismatch")
        assert isinstance(caught.value, QueryError)


def test_fields_go_through_the_item_tower(towers, published):
    """As publishing encoded them: an item of the tables, given again, gets its own vector."""
    table = pl.read_csv(published / "items.csv")
    row = table.row(3, named=True)
    fields = {
        "type": row["type"],
        "price.eur": row["price.eur"],
        "标签": row["标签"],
        "look": None if row["look"] is None else [float(x) for x in row["look"].split()],
        "text": row["text"],
        "title": row["title"],
        "year": row["year"],
    }
    known, new, bare, given = parse_upserts(
        [
            {"id": row["id"], "fields": fields},
            {"id": "new", "fields": fields},
            {"id": "bare", "fields": {}},
            {"id": "given", "vector": [1.0] * 8, "encoder": towers.manifest.encoder, "fields": {"year": 5}},
        ],
        towers,
    )
    stored = towers.index.vectors(towers.items.rows([row["id"]]))[0]
    np.testing.assert_allclose(known.vector, stored, atol=1e-3)  # stored in half precision
    assert np.abs(new.vector - known.vector).max() > 1e-3  # an id that training did not know
    assert known.encoder_hash == new.encoder_hash == given.encoder_hash == towers.manifest.encoder
    assert [one.has_external_vector for one in (known, new, bare, given)] == [False, False, False, True]
    assert all(abs(np.linalg.norm(one.vector) - 1) < 1e-5 for one in (known, new, bare))
    assert known.fields == fields


@pytest.mark.parametrize(
    ("item", "field", "message"),
    [
        ({"id": "", "fields": {}}, ".id", "valid Unicode that is not empty"),
        ({"id": "\ud800", "fields": {}}, ".id", "valid Unicode"),
        ({"id": 3, "fields": {}}, ".id", "ids here are of type string"),
        ({"id": "x"}, ".fields", "expected fields, or a vector and its encoder"),
        ({"id": "x", "fields": {}, "encoder": "ab"}, ".vector", "goes with a vector"),
        ({"id": "x", "fields": {"price.eur": "dear"}}, ".fields.price.eur", "a finite number"),
        ({"id": "x", "fields": {"look": [1, 2]}}, ".fields.look", "a list of 3"),
        ({"id": "x", "fields": {"id": "x"}}, ".fields.id", "no such column"),
    ],
)
def test_what_is_wrong_with_fields(towers, item, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        parse_upserts([item], towers)
    assert caught.value.field == f"items[0]{field}"


def test_ids_to_delete(release, towers):
    distinct, made = parse_deletes([8, np.int64(9), 8, 2**70], release)
    assert (distinct, [one.id for one in made]) == ([8, 9, 2**70], [8, 9])  # no item can have 2**70
    assert {(one.kind, one.fields, one.has_external_vector) for one in made} == {("delete", None, False)}
    assert parse_deletes(["a", "", "\ud800"], towers)[0] == ["a", "", "\ud800"]
    assert len(parse_deletes(["a", "", "\ud800"], towers)[1]) == 1
    assert parse_deletes(np.array([3, 4]), release)[0] == [3, 4]
    for ids, field in (([8, "8"], r"ids[1]"), ([8, None], "ids[1]"), ([True], "ids[0]"), ("8", "ids"), (8, "ids")):
        with pytest.raises(QueryError) as caught:
            parse_deletes(ids, release)
        assert caught.value.field == field
