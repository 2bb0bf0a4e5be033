"""Partial upserts: a column that is left out keeps its value, wherever the item was last written."""

from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.errors import QueryError
from vecall.live.compaction import compact
from vecall.live.journal import Journal
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.store import Store

KEPT = pl.DataFrame(
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
def store(tmp_path):
    publish_vectors(tmp_path, [1, 2], np.eye(2, dtype=np.float32), attributes=KEPT, name="one")
    return tmp_path


def row_of(recaller, one):
    view = recaller.live.snapshot
    table = view.attributes(view.rows([one])).with_columns(at=pl.col("at").to_physical())
    return table.rows()[0]


def test_a_column_that_is_left_out_keeps_its_value_and_so_does_a_vector(store):
    with open_recaller(store, writable=True, auto_compact=False) as writer:
        before = row_of(writer, 1)
        assert writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True) == 1
        assert row_of(writer, 1) == (5, *before[1:])
        assert writer.recall(Query(vector=[1.0, 0.0], k=1)).ids == [1]  # as it was: its own vector
        writer.upsert([{"id": 1, "fields": {"tags": None}}, {"id": 1, "fields": {"x": 2}}], partial=True)
        assert row_of(writer, 1) == (
            5,
            2.0,
            *before[2:4],
            None,
            before[5],
        )  # one builds upon the other; null is a value
        writer.upsert([{"id": 1, "vector": [0.0, 3.0]}], partial=True)
        assert row_of(writer, 1) == (5, 2.0, *before[2:4], None, before[5])
        assert writer.recall(Query(vector=[0.0, 1.0], k=1)).ids == [1]
    with Journal.open(get_journal_path(Store.open(store)), "integer") as journal:
        (operation,) = journal.read_operations(0)  # whole, so that it can be brought onto any release
    assert operation.fields == {
        "n": 5,
        "x": 2,
        "d": 1.25,
        "at": "2030-01-01T12:00:00.000005007",
        "^flag$": True,
    } | {"tags": None}
    compact(store, name="two")
    with open_recaller(store, writable=True, auto_compact=False) as writer:
        writer.upsert([{"id": 1, "fields": {"n": 6}}], partial=True)
        assert row_of(writer, 1) == (6, 2.0, *before[2:4], None, before[5])
        assert writer.recall(Query(vector=[0.0, 1.0], k=1)).ids == [1]


def test_only_items_that_are_there_can_be_changed_in_part(store):
    with open_recaller(store, writable=True, auto_compact=False) as writer:
        writer.delete([2])
        for one in (2, 99):
            with pytest.raises(QueryError, match="no item has the id") as caught:
                writer.upsert([{"id": 1, "fields": {}}, {"id": one, "fields": {"n": 1}}], partial=True)
            assert caught.value.field == "items[1].id"
        with pytest.raises(QueryError) as caught:
            writer.upsert([{"id": 1, "fields": {"n": "x"}}], partial=True)
        assert caught.value.field == "items[0].fields.n"
        assert writer.live_index.snapshot.seq == 1


def test_a_column_that_json_cannot_say_is_not_lost_in_silence(tmp_path):
    spans = pl.DataFrame({"span": pl.Series([5, None], dtype=pl.Duration("us")), "n": [1, 2]})
    publish_vectors(tmp_path, [1, 2], np.eye(2), attributes=spans)
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"fields.span: .*Duration.* cannot be written down as JSON"):
            writer.upsert([{"id": 1, "fields": {"n": 5}}], partial=True)
        assert writer.upsert([{"id": 2, "fields": {"n": 5}}], partial=True) == 1


@pytest.fixture
def shop(published, tmp_path):
    """A store with towers, of its own."""
    from vecall.pipeline.publish import publish

    publish(published / "run", tmp_path, name="one")
    return tmp_path


def vectors(recaller, *ids):
    view = recaller.live.snapshot
    return view.vectors(view.rows(list(ids)))


def test_an_item_is_encoded_of_all_its_features(shop):
    """Also of those that are no attributes: without them it would become another item in silence."""
    known = synthetic.make_item_id(3)
    with open_recaller(shop, writable=True, auto_compact=False) as writer:
        before = vectors(writer, known)
        writer.upsert([{"id": known, "fields": {"year": 1999}}], partial=True)
        np.testing.assert_allclose(vectors(writer, known), before, atol=2e-3)  # year is no feature
        writer.upsert([{"id": known, "fields": {"year": 1999}}])
        assert np.abs(vectors(writer, known) - before).max() > 0.05  # whole: everything else is missing
        writer.upsert([{"id": "new", "fields": {"type": "kind 2", "标签": ["红2"], "text": "Word2"}}])
        whole = vectors(writer, "new")
        writer.upsert([{"id": "new", "fields": {"year": 5}}], partial=True)
        np.testing.assert_array_equal(vectors(writer, "new"), whole)
        given = {
            "id": synthetic.make_item_id(4),
            "vector": [0.5] * 8,
            "encoder": writer.live_index.snapshot.release.manifest.encoder,
        }
        writer.upsert([given])
    compact(shop, name="two")
    with open_recaller(shop, writable=True, auto_compact=False) as writer:
        writer.upsert(
            [{"id": "new", "fields": {"year": 6}}, {"id": synthetic.make_item_id(4), "fields": {"year": 7}}],
            partial=True,
        )
        np.testing.assert_array_equal(vectors(writer, "new"), whole)
        assert vectors(writer, synthetic.make_item_id(4)).tolist() == [[0.5] * 8]  # given, and stays
        assert (
            writer.live_index.snapshot.release.external_vector_rows.tolist()
            == writer.live_index.snapshot.release.item_ids.to_rows([synthetic.make_item_id(4)]).tolist()
        )
