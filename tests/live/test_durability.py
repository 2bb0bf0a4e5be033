"""What was acknowledged is there, and what was deleted is not, whichever release is served and however it was made."""

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

NEW = {"type": "kind 1", "标签": ["红1"], "text": "Word1", "year": 2030, "title": "New"}
GONE, REPLACED = synthetic.make_item_id(3), synthetic.make_item_id(4)


@pytest.fixture
def served(shop):
    with open_recaller(shop.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": "new", "fields": NEW}, {"id": REPLACED, "fields": NEW}])
        recaller.delete([GONE])
        yield shop, recaller


def check(recaller):
    """In answers, under filters, in histories and among exclusions."""
    everything = recaller.recall(Query(user={"type": "kind 1"}, k=1000))
    assert everything.exhausted
    assert len(everything.ids) == synthetic.ITEMS  # one more, one less
    assert {"new", REPLACED} <= set(everything.ids)
    assert GONE not in everything.ids
    where = [{"field": "year", "op": "eq", "value": 2030}]
    assert sorted(recaller.recall(Query(user={"type": "kind 1"}, k=9, where=where)).ids) == sorted([REPLACED, "new"])
    by_history = recaller.recall(Query(history=["new"], k=1000))
    assert "new" not in by_history.ids
    assert by_history.unknown.history == 0
    assert "new" in recaller.recall(Query(history=["new"], k=1000, exclude_seen=False)).ids
    assert "new" not in recaller.recall(Query(history=["new"], exclude=["new"], exclude_seen=False, k=1000)).ids
    assert set(recaller.candidates(Query(user={"type": "kind 1"}, k=9, where=where))["title"]) == {"New"}


def reopened(shop, release=None):
    with open_recaller(shop.path, release=release) as recaller:
        check(recaller)
        return recaller.live_index.snapshot


def test_compacted_then_rolled_back(served):
    shop, recaller = served
    check(recaller)
    compact(shop.path, name="two")
    recaller.activate("two")
    check(recaller)
    assert (recaller.live.snapshot.delta.count, reopened(shop).delta.live_count) == (0, 0)
    shop.rollback()
    assert reopened(shop).delta.live_count == 2
    recaller.activate("tiny")
    check(recaller)


def test_compacted_then_published_from_old_tables(served, published):
    shop, recaller = served
    compact(shop.path, name="two")
    recaller.activate("two")
    publish(published / "run", shop.path, name="three")  # with the deleted item, without the new one
    view = reopened(shop)
    assert (view.release.name, view.delta.live_count, view.tombstone_count) == ("three", 2, 2)
    recaller.activate("three")
    check(recaller)
    prune_store(shop, 0)
    check(open_recaller(shop.path))


def test_an_item_that_only_another_release_has_stays_deleted(served):
    shop, recaller = served
    recaller.delete([synthetic.make_item_id(5)])
    compact(shop.path, name="two")
    recaller.activate("two")
    assert recaller.live.delete([synthetic.make_item_id(5), synthetic.make_item_id(6)]).unknown == 1
    compact(shop.path, name="three")
    recaller.activate("three")
    for name in ("tiny", "two", "three"):
        recaller.activate(name)
        assert (
            recaller.live.snapshot.has(
                recaller.live.snapshot.rows([synthetic.make_item_id(5), synthetic.make_item_id(6)])
            ).sum()
            == 0
        )


def test_vectors_of_an_older_encoder_are_made_again(served):
    """As a release of a newly trained model finds them: cached vectors of another hash."""
    shop, recaller = served
    view = recaller.live.snapshot
    expected = view.vectors(view.rows(["new"]))[0]
    digest, wrong = view.release.manifest.encoder, np.full(8, 0.5, dtype=np.float32)
    recaller.close()
    with Journal.open(get_journal_path(shop), "string") as journal:
        journal.append(
            [
                Operation(
                    0,
                    "upsert",
                    "old",
                    NEW | {"no such": 1, "price.eur": "dear"},
                    wrong,
                    "ab",
                    has_external_vector=False,
                ),
                Operation(0, "upsert", "cached", {}, wrong, digest, has_external_vector=False),
                Operation(0, "upsert", "given", {}, wrong, digest, has_external_vector=True),
                Operation(0, "upsert", "refused", NEW, wrong, "ab", has_external_vector=True),
            ]
        )
    for name in ("tiny", compact(shop.path)):
        with open_recaller(shop.path, release=name) as reader:
            view = reader.live_index.snapshot
            rows = view.to_rows(["old", "cached", "given", "refused"])
            assert (rows >= 0).tolist() == [True, True, True, False]
            old, cached, given = view.get_vectors(rows[:3])
            np.testing.assert_array_equal(old, expected)  # the same fields and an unknown id; "dear" counts as missing
            assert cached.tolist() == given.tolist() == wrong.tolist()
            assert list(view.rejected_seqs) == (
                ["refused"] if name == "tiny" else []
            )  # what is compacted is of one encoder
            assert view.get_attributes(rows[:1])["year"].to_list() == [2030]


def test_a_deleted_item_speaks_in_histories_until_it_is_compacted_away(served):
    shop, recaller = served
    spoken = recaller.recall(Query(history=[GONE], k=5))
    assert (spoken.fallback, spoken.unknown.history) == (None, 0)
    recaller.delete(["new"])
    assert recaller.recall(Query(history=["new"], k=5)).unknown.history == 0
    compact(shop.path, name="two")
    recaller.activate("two")
    assert recaller.recall(Query(history=[GONE, "new"], k=5)).unknown.history == 2


def test_features_are_those_of_the_tower(served):
    """Guards the tests above: NEW says something to it."""
    _, recaller = served
    encoder = recaller.live.snapshot.release.encoder
    frame = to_feature_frame([{}, {"type": "kind 1"}], encoder.state.items.features)
    one, other = encoder.encode_items(frame, np.array([-1, -1]))
    assert np.abs(one - other).max() > 1e-3
