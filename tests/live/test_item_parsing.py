"""Parsing of upserts and deletes: what becomes an operation, and what is rejected with which location."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from vecall.errors import EncoderMismatchError, QueryError
from vecall.live.item_parsing import parse_deletes, parse_upserts
from vecall.release.release import open_release

VECTOR = [0.25, -1, 3]


@pytest.fixture
def release(make_release):
    return make_release(
        [7, 8], np.eye(2, 3), attributes=pl.DataFrame({"year": [1990, None], "tags": [["a"], None], "title": "x"})
    )


@pytest.fixture
def release_with_towers(shop):
    return open_release(shop)


def test_items_with_vectors_become_upserts(release):
    items = [
        {"id": np.int64(9), "vector": VECTOR, "fields": {"year": np.int16(3), "tags": ("a", "b")}},
        {"id": 7, "vector": np.array(VECTOR, dtype=np.float16), "encoder": None},
        {"id": 9, "vector": tuple(VECTOR), "fields": None},
        {"id": -(2**63), "vector": [np.float32(1), 65504, -65504.0]},
    ]
    operations = parse_upserts(items, release)
    assert [
        (operation.kind, operation.id, operation.fields, operation.encoder_hash, operation.has_external_vector)
        for operation in operations
    ] == [
        ("upsert", 9, {}, None, True),  # the last of equal ids
        ("upsert", 7, {}, None, True),
        ("upsert", -(2**63), {}, None, True),
    ]
    assert [operation.vector.tolist() for operation in operations] == [VECTOR, VECTOR, [1, 65504, -65504]]
    (first,) = parse_upserts(items[:1], release)
    assert json.dumps(first.fields) == '{"year": 3, "tags": ["a", "b"]}'
    assert (type(first.id), first.vector.dtype) == (int, np.float32)
    assert parse_upserts([], release) == parse_upserts((), release) == []


def test_arrays_columns_and_tensors_are_read_as_lists(release):
    items = [
        {"id": 9, "vector": pl.Series(VECTOR), "fields": {"tags": np.array(["a", "b"])}},
        {"id": 7, "vector": torch.tensor(VECTOR), "fields": {"tags": pl.Series(["a"])}},
    ]
    operations = parse_upserts(items, release)
    assert [operation.vector.tolist() for operation in operations] == [VECTOR, VECTOR]
    assert [operation.fields for operation in operations] == [{"tags": ["a", "b"]}, {"tags": ["a"]}]
    with pytest.raises(QueryError, match="expected a list of 3 numbers"):
        parse_upserts([{"id": 1, "vector": torch.tensor(VECTOR, requires_grad=True)}], release)


@pytest.mark.parametrize(
    ("item", "field", "message"),
    [
        ({"id": "7", "vector": VECTOR}, ".id", "expected an id of type integer, got '7'"),
        ({"id": True, "vector": VECTOR}, ".id", "expected an id of type integer"),
        ({"vector": VECTOR}, ".id", "expected an id of type integer"),
        ({"id": 2**63, "vector": VECTOR}, ".id", "a 64-bit integer"),
        ({"id": 1, "vector": VECTOR, "colour": 3}, ".colour", "unknown key 'colour'; expected one of"),
        ({"id": 1, "vector": VECTOR, "fields": {"colour": 3}}, ".fields.colour", "no such column; expected one of"),
        ({"id": 1, "vector": VECTOR, "fields": {"year": "x"}}, ".fields.year", "expected an integer from .* got 'x'"),
        ({"id": 1, "vector": VECTOR, "fields": ["year"]}, ".fields", "expected an object of columns"),
        ({"id": 1, "fields": {"year": 3}}, ".vector", "release 'one' has no towers, so each item needs a `vector`"),
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
def test_invalid_item_is_rejected_with_its_location(release, item, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        parse_upserts([{"id": 1, "vector": VECTOR}, item], release)
    assert (caught.value.field, caught.value.code) == (f"items[1]{field}", "invalid")


@pytest.mark.parametrize("items", [None, {"id": 1}, "ab", b"ab", 3])
def test_anything_but_a_list_of_objects_is_rejected(release, items):
    with pytest.raises(QueryError, match="items: expected a list") as caught:
        parse_upserts(items, release)
    assert caught.value.field == "items"
    with pytest.raises(QueryError, match=r"items\[0\]: expected \{id, fields\}"):
        parse_upserts([3], release)


def test_vector_of_another_encoder_is_rejected(release, release_with_towers):
    for target, item in (
        (release, {"id": 1, "vector": VECTOR, "encoder": "ab"}),
        (release_with_towers, {"id": "x", "vector": [1.0] * 8, "encoder": "ab"}),
        (release_with_towers, {"id": "x", "vector": [1.0] * 8}),
    ):
        with pytest.raises(EncoderMismatchError) as caught:
            parse_upserts([item], target)
        assert (caught.value.field, caught.value.code) == ("items[0].encoder", "encoder_mismatch")
        assert isinstance(caught.value, QueryError)


def test_fields_are_encoded_by_the_item_tower_as_publishing_does(release_with_towers, published):
    """An item of the tables, upserted with its own fields, gets its own vector."""
    release = release_with_towers
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
    operations = parse_upserts(
        [
            {"id": row["id"], "fields": fields},
            {"id": "new", "fields": fields},
            {"id": "without fields", "fields": {}},
            {"id": "external", "vector": [1.0] * 8, "encoder": release.manifest.encoder, "fields": {"year": 5}},
        ],
        release,
    )
    known, new, _, external = operations
    stored = release.vectors.get_vectors(release.item_ids.to_rows([row["id"]]))[0]
    np.testing.assert_allclose(known.vector, stored, atol=1e-3)  # stored in half precision
    assert np.abs(new.vector - known.vector).max() > 1e-3  # the new id's vector is the unknown item's
    assert known.encoder_hash == new.encoder_hash == external.encoder_hash == release.manifest.encoder
    assert [operation.has_external_vector for operation in operations] == [False, False, False, True]
    assert all(abs(np.linalg.norm(operation.vector) - 1) < 1e-5 for operation in operations[:3])
    assert known.fields == fields


@pytest.mark.parametrize(
    ("item", "field", "message"),
    [
        ({"id": "", "fields": {}}, ".id", "valid Unicode that is not empty"),
        ({"id": "\ud800", "fields": {}}, ".id", "valid Unicode"),
        ({"id": 3, "fields": {}}, ".id", "expected an id of type string"),
        ({"id": "x"}, ".fields", "expected `fields`, or a `vector` and its `encoder`"),
        ({"id": "x", "fields": {}, "encoder": "ab"}, ".vector", "got an `encoder` without a `vector`"),
        ({"id": "x", "fields": {"price.eur": "dear"}}, ".fields.price.eur", "a finite number"),
        ({"id": "x", "fields": {"look": [1, 2]}}, ".fields.look", "a list of 3"),
        ({"id": "x", "fields": {"id": "x"}}, ".fields.id", "no such column"),
    ],
)
def test_invalid_item_for_towers_is_rejected_with_its_location(release_with_towers, item, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        parse_upserts([item], release_with_towers)
    assert caught.value.field == f"items[0]{field}"


def test_ids_become_deletes_if_an_item_can_have_them(release, release_with_towers):
    distinct, operations = parse_deletes([8, np.int64(9), 8, 2**70], release)
    assert (distinct, [operation.id for operation in operations]) == ([8, 9, 2**70], [8, 9])  # 2**70 is too large
    assert {(operation.kind, operation.fields, operation.has_external_vector) for operation in operations} == {
        ("delete", None, False)
    }
    distinct, operations = parse_deletes(["a", "", "\ud800"], release_with_towers)
    assert distinct == ["a", "", "\ud800"]
    assert len(operations) == 1
    assert parse_deletes(np.array([3, 4]), release)[0] == [3, 4]
    for ids, field in (
        ([8, "8"], r"ids[1]"),
        ([8, None], "ids[1]"),
        ([True], "ids[0]"),
        ("8", "ids"),
        (8, "ids"),
        (np.array(5), "ids"),
    ):
        with pytest.raises(QueryError) as caught:
            parse_deletes(ids, release)
        assert caught.value.field == field
