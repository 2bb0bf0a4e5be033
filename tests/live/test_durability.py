"""Durability: acknowledged changes are visible whichever release is served, and however it was made."""

import numpy as np
import pytest
from support import synthetic

from vecall.data.request_features import to_feature_frame
from vecall.live.compaction import compact
from vecall.live.journal import Journal
from vecall.live.operations import Operation
from vecall.live.pruning import get_journal_path, prune_store
from vecall.pipeline.publish import publish
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.activation import roll_back

NEW_FIELDS = {"type": "kind 1", "标签": ["红1"], "text": "Word1", "year": 2030, "title": "New"}
DELETED, REPLACED = synthetic.make_item_id(3), synthetic.make_item_id(4)


@pytest.fixture
def served(shop):
    """The shop and a recaller that has added, replaced and deleted an item."""
    with open_recaller(shop.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": "new", "fields": NEW_FIELDS}, {"id": REPLACED, "fields": NEW_FIELDS}])
        recaller.delete([DELETED])
        yield shop, recaller


def check_changes_visible(recaller):
    """Check the changes of `served` in results, filters, histories, exclusions and attributes."""
    everything = recaller.recall(Query(user={"type": "kind 1"}, k=1000))
    assert everything.exhausted
    assert len(everything.ids) == synthetic.ITEMS  # an item was added, another deleted
    assert {"new", REPLACED} <= set(everything.ids)
    assert DELETED not in everything.ids
    where = [{"field": "year", "op": "eq", "value": 2030}]
    assert sorted(recaller.recall(Query(user={"type": "kind 1"}, k=9, where=where)).ids) == sorted([REPLACED, "new"])
    by_history = recaller.recall(Query(history=["new"], k=1000))
    assert "new" not in by_history.ids
    assert by_history.unknown.history == 0
    assert "new" in recaller.recall(Query(history=["new"], k=1000, exclude_seen=False)).ids
    assert "new" not in recaller.recall(Query(history=["new"], exclude=["new"], exclude_seen=False, k=1000)).ids
    assert set(recaller.candidates(Query(user={"type": "kind 1"}, k=9, where=where))["title"]) == {"New"}


def check_reopened(shop, release=None):
    with open_recaller(shop.path, release=release) as recaller:
        check_changes_visible(recaller)
        return recaller.live_index.snapshot


def test_changes_survive_compaction_and_rollback(served):
    shop, recaller = served
    check_changes_visible(recaller)
    compact(shop.path, name="two")
    recaller.activate("two")
    check_changes_visible(recaller)
    assert (recaller.live_index.snapshot.delta.live_count, check_reopened(shop).delta.live_count) == (0, 0)
    roll_back(shop)
    assert check_reopened(shop).delta.live_count == 2
    recaller.activate("tiny")
    check_changes_visible(recaller)


def test_changes_survive_publishing_from_older_tables_and_pruning(served, published):
    shop, recaller = served
    compact(shop.path, name="two")
    recaller.activate("two")
    publish(published / "run", shop.path, name="three")  # with the deleted item, without the new one
    snapshot = check_reopened(shop)
    assert (snapshot.release.name, snapshot.delta.live_count, snapshot.tombstone_count) == ("three", 2, 2)
    recaller.activate("three")
    check_changes_visible(recaller)
    prune_store(shop, 0)
    check_changes_visible(open_recaller(shop.path))


def test_deleted_item_stays_deleted_in_releases_that_have_it(served):
    shop, recaller = served
    deleted_ids = [synthetic.make_item_id(5), synthetic.make_item_id(6)]
    recaller.delete(deleted_ids[:1])
    compact(shop.path, name="two")
    recaller.activate("two")
    assert recaller.live_index.delete(deleted_ids).unknown == 1
    compact(shop.path, name="three")
    recaller.activate("three")
    for name in ("tiny", "two", "three"):
        recaller.activate(name)
        snapshot = recaller.live_index.snapshot
        assert not snapshot.is_live(snapshot.to_rows(deleted_ids)).any()


def test_vectors_of_an_older_encoder_are_computed_again(served):
    """The journal holds cached vectors of another encoder hash, as a release of a newly trained model finds them."""
    shop, recaller = served
    snapshot = recaller.live_index.snapshot
    expected = snapshot.get_vectors(snapshot.to_rows(["new"]))[0]
    encoder_hash, cached_vector = snapshot.release.manifest.encoder, np.full(8, 0.5, dtype=np.float32)
    recaller.close()
    old_fields = NEW_FIELDS | {"no such": 1, "price.eur": "dear"}
    with Journal.open(get_journal_path(shop), "string") as journal:
        journal.append(
            [
                Operation(0, "upsert", "old", old_fields, cached_vector, "ab", has_external_vector=False),
                Operation(0, "upsert", "cached", {}, cached_vector, encoder_hash, has_external_vector=False),
                Operation(0, "upsert", "external", {}, cached_vector, encoder_hash, has_external_vector=True),
                Operation(0, "upsert", "rejected", NEW_FIELDS, cached_vector, "ab", has_external_vector=True),
            ]
        )
    for name in ("tiny", compact(shop.path)):
        with open_recaller(shop.path, release=name) as reader:
            snapshot = reader.live_index.snapshot
            rows = snapshot.to_rows(["old", "cached", "external", "rejected"])
            assert (rows >= 0).tolist() == [True, True, True, False]
            old, cached, external = snapshot.get_vectors(rows[:3])
            np.testing.assert_array_equal(old, expected)  # equal fields and an unknown id; "dear" counts as missing
            assert cached.tolist() == external.tolist() == cached_vector.tolist()
            assert list(snapshot.rejected_seqs) == ["rejected"]  # the compacted release lacks the item, too
            assert snapshot.get_attributes(rows[:1])["year"].to_list() == [2030]


def test_deleted_item_counts_in_histories_until_a_compaction(served):
    shop, recaller = served
    result = recaller.recall(Query(history=[DELETED], k=5))
    assert (result.fallback, result.unknown.history) == (None, 0)
    recaller.delete(["new"])
    assert recaller.recall(Query(history=["new"], k=5)).unknown.history == 0
    compact(shop.path, name="two")
    recaller.activate("two")
    assert recaller.recall(Query(history=[DELETED, "new"], k=5)).unknown.history == 2


def test_item_features_change_the_vector(served):
    """Guards the tests above: the item tower reads what NEW_FIELDS has."""
    _, recaller = served
    encoder = recaller.live_index.snapshot.release.encoder
    frame = to_feature_frame([{}, {"type": "kind 1"}], encoder.state.items.features)
    empty_vector, vector = encoder.encode_items(frame, np.array([-1, -1]))
    assert np.abs(empty_vector - vector).max() > 1e-3
