"""Partial upserts: columns that are left out keep their values, whether these are in the base or in the journal."""

from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.errors import QueryError
from vecall.live.compaction import compact
from vecall.live.journal import Journal
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish import publish
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.store import Store

ATTRIBUTES = pl.DataFrame(
    {
        "n": pl.Series([2**62 + 1, 2], dtype=pl.Int64),
        "x": pl.Series([0.1, None], dtype=pl.Float32),
        "d": pl.Series([Decimal("1.25"), None], dtype=pl.Decimal(9, 2)),
        "at": pl.Series([1_893_499_200_000_005_007, None], dtype=pl.Int64).cast(pl.Datetime("ns")),
        "tags": pl.Series([["a", "b"], []], dtype=pl.List(pl.String)),
        "^flag$": pl.Series([True, None], dtype=pl.Boolean),
    }
)


@pytest.fixture
def store_dir(tmp_path):
    publish_vectors(tmp_path, [1, 2], np.eye(2, dtype=np.float32), attributes=ATTRIBUTES, name="one")
    return tmp_path


def read_attributes(recaller, item_id):
    """Return the attributes of an item, with `at` in nanoseconds."""
    snapshot = recaller.live_index.snapshot
    frame = snapshot.get_attributes(snapshot.to_rows([item_id])).with_columns(at=pl.col("at").to_physical())
    return frame.rows()[0]


def test_columns_and_vector_that_are_left_out_keep_their_values(store_dir):
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        before = read_attributes(writer, 1)
        assert writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True) == 1
        assert read_attributes(writer, 1) == (5, *before[1:])
        assert writer.recall(Query(vector=[1.0, 0.0], k=1)).ids == [1]  # its vector is unchanged
        # Items with the same id build on each other, and null is a value.
        writer.upsert([{"id": 1, "fields": {"tags": None}}, {"id": 1, "fields": {"x": 2}}], partial=True)
        changed = (5, 2.0, *before[2:4], None, before[5])
        assert read_attributes(writer, 1) == changed
        writer.upsert([{"id": 1, "vector": [0.0, 3.0]}], partial=True)
        assert read_attributes(writer, 1) == changed
        assert writer.recall(Query(vector=[0.0, 1.0], k=1)).ids == [1]
    with Journal.open(get_journal_path(Store.open(store_dir)), "integer") as journal:
        (operation,) = journal.read_operations(0)  # has all columns, so that it can be replayed onto any release
    assert operation.fields == {
        "n": 5,
        "x": 2,
        "d": 1.25,
        "at": "2030-01-01T12:00:00.000005007",
        "^flag$": True,
        "tags": None,
    }
    compact(store_dir, name="two")
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 1, "fields": {"n": 6}}], partial=True)
        assert read_attributes(writer, 1) == (6, *changed[1:])
        assert writer.recall(Query(vector=[0.0, 1.0], k=1)).ids == [1]


def test_partial_upsert_of_a_missing_item_or_an_invalid_value_is_rejected(store_dir):
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        writer.delete([2])
        for item_id in (2, 99):
            with pytest.raises(QueryError, match="no item has the id") as caught:
                writer.upsert([{"id": 1, "fields": {}}, {"id": item_id, "fields": {"n": 1}}], partial=True)
            assert caught.value.field == "items[1].id"
        with pytest.raises(QueryError) as caught:
            writer.upsert([{"id": 1, "fields": {"n": "x"}}], partial=True)
        assert caught.value.field == "items[0].fields.n"
        with pytest.raises(QueryError, match="give both or neither") as caught:
            writer.upsert([{"id": 1, "encoder": "x", "fields": {"n": 1}}], partial=True)
        assert caught.value.field == "items[0].encoder"
        assert writer.live_index.snapshot.seq == 1


def test_partial_upsert_of_an_item_with_a_value_without_json_form_is_rejected(tmp_path):
    attributes = pl.DataFrame({"span": pl.Series([5, None], dtype=pl.Duration("us")), "n": [1, 2]})
    publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=attributes)
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"fields.span: .*Duration.* cannot be written as JSON"):
            writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True)
        assert writer.upsert([{"id": 2, "fields": {"n": 5}}], partial=True) == 1


@pytest.mark.parametrize(
    "lists", [pl.Series([[1, None], [1]]), pl.Series([[0.5, float("nan")], [0.5]]), pl.Series([[None, "a"], ["a"]])]
)
def test_list_with_missing_elements_is_rejected_and_not_shortened(tmp_path, lists):
    publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=pl.DataFrame({"x": lists, "n": [1, 2]}))
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"fields.x: a list with missing elements"):
            writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True)
        assert writer.upsert([{"id": 2, "fields": {"n": 5}}], partial=True) == 1


def test_columns_that_a_later_release_lacks_are_no_obstacle(tmp_path):
    publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=pl.DataFrame({"old": [1, 2], "n": [1, 2]}))
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 1, "vector": [1.0, 0.0], "fields": {"old": 5, "n": 5}}])
        publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=pl.DataFrame({"n": [1, 2]}), name="two")
        writer.activate("two")
        assert writer.upsert([{"id": 1, "fields": {"n": 6}}], partial=True) == 1
        snapshot = writer.live_index.snapshot
        assert snapshot.get_attributes(snapshot.to_rows([1])).rows() == [(6,)]


def test_values_that_no_json_number_holds_are_kept_exactly(tmp_path):
    """A float has 15 digits, a decimal 38; Python's datetime has no nanoseconds."""
    attributes = pl.DataFrame(
        {
            "n": [1, 2],
            "d": pl.Series([Decimal("12345678901234567890.12"), None], dtype=pl.Decimal(38, 2)),
            "whole": pl.Series([Decimal(10**37 + 1), None], dtype=pl.Decimal(38, 0)),
            "prices": pl.Series(
                [[Decimal("0.10"), Decimal("99999999999999999999.99")], []], dtype=pl.List(pl.Decimal(38, 2))
            ),
            "at": pl.Series([[1_893_499_200_000_005_007], []]).cast(pl.List(pl.Datetime("ns"))),
        }
    )
    publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=attributes)
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True)
        writer.upsert([{"id": 1, "fields": {"n": 6}}], partial=True)  # reads what the first one wrote
    with open_recaller(tmp_path) as recaller:
        snapshot = recaller.live_index.snapshot
        kept = snapshot.get_attributes(snapshot.to_rows([1]))
    assert kept.equals(attributes.head(1).with_columns(n=pl.lit(6, dtype=pl.Int64)))


def test_partial_upsert_does_not_turn_an_infinite_number_into_null(tmp_path):
    attributes = pl.DataFrame({"n": [1, 2, 3], "x": [float("inf"), float("nan"), 1.5]})
    publish_vectors(tmp_path, [1, 2, 3], np.eye(3), attributes=attributes)
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"fields\.x: an infinite number cannot be .*: give the complete item"):
            writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True)
        assert writer.upsert([{"id": item_id, "fields": {"n": 5}} for item_id in (2, 3)], partial=True) == 2


@pytest.fixture
def store_dir_with_towers(published, tmp_path):
    publish(published / "run", tmp_path, name="one")
    return tmp_path


def get_vectors(recaller, *ids):
    snapshot = recaller.live_index.snapshot
    return snapshot.get_vectors(snapshot.to_rows(list(ids)))


def test_partially_upserted_item_is_encoded_from_all_its_features(store_dir_with_towers):
    """Including the features that are not attributes, without which it would get another vector."""
    known_id, external_id = synthetic.make_item_id(3), synthetic.make_item_id(4)
    with open_recaller(store_dir_with_towers, writable=True, auto_compact=False) as writer:
        before = get_vectors(writer, known_id)
        writer.upsert([{"id": known_id, "fields": {"year": 1999}}], partial=True)
        np.testing.assert_allclose(get_vectors(writer, known_id), before, atol=2e-3)  # year is not a feature
        writer.upsert([{"id": known_id, "fields": {"year": 1999}}])
        assert np.abs(get_vectors(writer, known_id) - before).max() > 0.05  # now all features are missing
        writer.upsert([{"id": "new", "fields": {"type": "kind 2", "标签": ["红2"], "text": "Word2"}}])
        new_vector = get_vectors(writer, "new")
        writer.upsert([{"id": "new", "fields": {"year": 5}}], partial=True)
        np.testing.assert_array_equal(get_vectors(writer, "new"), new_vector)
        encoder_hash = writer.live_index.snapshot.release.manifest.encoder
        writer.upsert([{"id": external_id, "vector": [0.5] * 8, "encoder": encoder_hash}])
    compact(store_dir_with_towers, name="two")
    with open_recaller(store_dir_with_towers, writable=True, auto_compact=False) as writer:
        items = [{"id": "new", "fields": {"year": 6}}, {"id": external_id, "fields": {"year": 7}}]
        writer.upsert(items, partial=True)
        np.testing.assert_array_equal(get_vectors(writer, "new"), new_vector)
        assert get_vectors(writer, external_id).tolist() == [[0.5] * 8]  # external vectors are not computed again
        release = writer.live_index.snapshot.release
        assert release.external_vector_rows.tolist() == release.item_ids.to_rows([external_id]).tolist()
