"""Compaction: the next release holds the live items and is otherwise equal to its base."""

import re

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.errors import JournalCorruptedError, StoreError
from vecall.index.settings import IndexSettings
from vecall.live import snapshot_release
from vecall.live.compaction import compact
from vecall.live.journal import Journal
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.encoder import ITEM_ID_VECTORS_FILE
from vecall.release.file_io import map_array
from vecall.release.release import open_release

CHEAP = {"type": "kind 1", "price.eur": 3, "标签": ["红1", "all"], "text": "Word1", "title": "New", "year": 2030}


@pytest.fixture
def changed(shop):
    """The shop with items added, replaced and deleted, some of them in users' histories."""
    ids = [synthetic.make_item_id(row) for row in range(synthetic.ITEMS)]
    with open_recaller(shop.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert(
            [{"id": "a new one", "fields": CHEAP}, {"id": "zz", "fields": CHEAP}, {"id": "w", "fields": {}}]
        )
        recaller.upsert([{"id": ids[0], "fields": CHEAP}, {"id": ids[1], "fields": {"title": "Replaced"}}])
        recaller.upsert([{"id": ids[2], "fields": CHEAP}])
        recaller.delete([ids[2], ids[3], "w"])
        yield shop, recaller, ids


def recall_all(recaller, user_ids, history_ids):
    """Recall for known users, for histories of one item each, and for an unknown user."""
    queries = [Query(user_id=user_id, k=20) for user_id in user_ids]
    queries += [Query(history=[item_id], k=10, exclude_seen=False) for item_id in history_ids]
    is_new = {"field": "year", "op": "eq", "value": 2030}
    queries += [Query(user_id="nobody", k=60), Query(user_id=user_ids[0], k=9, where=[is_new])]
    return [recaller.recall(query) for query in queries]


def test_compacted_release_returns_bitwise_equal_results(changed):
    """Vectors are copied exactly, both from the base and from the delta."""
    shop, recaller, ids = changed
    before = recaller.live_index.snapshot
    release, history_ids = before.release, ["a new one", "zz", ids[0], ids[1], ids[4]]
    deleted_rows = release.item_ids.to_rows(ids[2:4])  # users with one of these in their history get another vector
    users = [u for u in range(synthetic.USERS) if not np.isin(release.users.histories[u], deleted_rows).any()]
    user_ids = release.users.ids.to_ids(np.array(users))
    results_before = recall_all(recaller, user_ids, history_ids)
    assert compact(shop.path, name="two", activate=False) == "two"
    assert shop.get_current().release == "tiny"
    recaller.activate("two")
    results_after, after = recall_all(recaller, user_ids, history_ids), recaller.live_index.snapshot
    assert len(user_ids) > 20
    replaced_rows = release.item_ids.to_rows(ids[:2])
    assert any(np.isin(release.users.histories[user], replaced_rows).any() for user in users)
    assert (after.delta.live_count, after.tombstone_count, len(after)) == (0, 0, len(before))
    assert len(before) == synthetic.ITEMS
    live_ids = before.to_ids(np.flatnonzero(before.is_live(np.arange(synthetic.ITEMS + len(before.delta)))))
    for item_id in live_ids:
        old_row, new_row = before.to_rows([item_id]), after.to_rows([item_id])
        assert before.get_vectors(old_row).tobytes() == after.get_vectors(new_row).tobytes()
        assert before.get_attributes(old_row).equals(after.get_attributes(new_row), null_equal=True)
    assert after.to_ids(np.arange(len(after))) == sorted(live_ids)
    for old, new in zip(results_before, results_after, strict=True):
        assert (old.fallback, old.exhausted, old.unknown) == (new.fallback, new.exhausted, new.unknown)
        if old.fallback != "popular":
            assert (old.ids, old.scores) == (new.ids, new.scores)


def test_compaction_keeps_users_popularity_towers_and_settings(changed):
    shop, recaller, ids = changed
    compact(shop.path, name="two")
    old, new = open_release(shop, "tiny"), open_release(shop, "two")
    new.check_golden_queries()
    manifest = new.manifest
    assert (manifest.parent, manifest.tables_seq) == ("tiny", 0)
    assert manifest.journal_seq == recaller.live_index.snapshot.seq
    assert (manifest.encoder, manifest.metrics) == (old.manifest.encoder, old.manifest.metrics)
    assert (manifest.index.settings, manifest.ann["queries"]) == (old.manifest.index.settings, synthetic.USERS)
    deleted_ids = {ids[2], ids[3]}
    for user in range(synthetic.USERS):
        history = old.item_ids.to_ids(old.users.histories[user])
        expected_history = [item_id for item_id in history if item_id not in deleted_ids]
        assert new.item_ids.to_ids(new.users.histories[user]) == expected_history
    assert new.users.ids.to_ids(np.arange(3)) == old.users.ids.to_ids(np.arange(3))
    assert new.users.features.equals(old.users.features, null_equal=True)
    kept_ids, new_ids = [item_id for item_id in ids if item_id not in deleted_ids], ["a new one", "zz"]
    old_rows, new_rows = old.item_ids.to_rows(kept_ids), new.item_ids.to_rows(kept_ids)
    assert old.popularity[old_rows].tolist() == new.popularity[new_rows].tolist()
    assert new.popularity[new.item_ids.to_rows(new_ids)].tolist() == [0, 0]
    old_table, new_table = (map_array(shop.get_release_dir(name) / ITEM_ID_VECTORS_FILE) for name in ("tiny", "two"))
    assert len(new_table) == new.vectors.size + 1
    assert new_table[new_rows].tolist() == old_table[old_rows].tolist()
    assert (new_table[new.item_ids.to_rows(new_ids)] == old_table[-1]).all()
    assert (new_table[-1] == old_table[-1]).all()


def test_compaction_keeps_the_neighbors_of_items_without_the_deleted(changed):
    shop, _, ids = changed
    compact(shop.path, name="two")
    old, new = open_release(shop, "tiny"), open_release(shop, "two")
    deleted_ids, n_neighbors = set(ids[2:4]), 0
    for item_id in new.item_ids.to_ids(np.arange(new.manifest.items)):
        expected = []
        if item_id in ids:
            rows, similarities = old.channels.similar.get_neighbors(int(old.item_ids.to_rows([item_id])[0]))
            pairs = zip(old.item_ids.to_ids(rows), similarities.tolist(), strict=True)
            expected = [pair for pair in pairs if pair[0] not in deleted_ids]
        rows, similarities = new.channels.similar.get_neighbors(int(new.item_ids.to_rows([item_id])[0]))
        assert list(zip(new.item_ids.to_ids(rows), similarities.tolist(), strict=True)) == expected
        n_neighbors += len(expected)
    assert n_neighbors > 100


def test_compacted_release_encodes_items_as_its_base(changed):
    shop, recaller, ids = changed
    fields = {"type": "kind 2", "price.eur": 9}
    items = [{"id": ids[5], "fields": fields}, {"id": "zz", "fields": fields}]
    recaller.upsert(items)
    snapshot = recaller.live_index.snapshot
    expected = snapshot.get_vectors(snapshot.to_rows([ids[5], "zz"]))
    compact(shop.path, name="two")
    recaller.activate("two")
    recaller.upsert(items)
    snapshot = recaller.live_index.snapshot
    assert snapshot.delta.live_count == 2
    assert snapshot.get_vectors(snapshot.to_rows([ids[5], "zz"])).tolist() == expected.tolist()


def test_writes_after_the_compaction_are_applied_on_activation(changed):
    shop, recaller, ids = changed
    compacted_seq = recaller.live_index.snapshot.seq
    assert compact(shop.path, name="two") == "two"
    recaller.delete([ids[6]])
    recaller.upsert([{"id": ids[3], "fields": CHEAP}])
    recaller.activate("two")
    snapshot = recaller.live_index.snapshot
    assert (snapshot.release.manifest.journal_seq, snapshot.seq) == (compacted_seq, compacted_seq + 2)
    assert snapshot.delta.live_count == 1
    assert snapshot.is_live(snapshot.to_rows([ids[3], ids[6], "zz"])).tolist() == [True, False, True]
    assert compact(shop.path, name="three") == "three"
    assert open_release(shop).item_ids.to_rows([ids[3], ids[6], "zz"])[1] == -1


def test_without_new_operations_the_base_is_returned(shop):
    assert compact(shop.path) == "tiny"
    with open_recaller(shop.path, writable=True) as recaller:
        assert compact(shop.path, name="two") == "tiny"
        recaller.delete(["unknown"])
        assert compact(shop.path, name="two") == "two"
        assert compact(shop.path, name="three") == "two"
    assert [manifest.name for manifest in shop.list_releases()] == ["two", "tiny"]


def test_compaction_of_a_release_without_towers_keeps_the_hnsw_settings(make_store):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    settings = IndexSettings(engine="hnsw", M=8, ks=(5, 20))
    store = make_store(
        range(300), vectors, queries=vectors[:50], index=settings, attributes=pl.DataFrame({"n": range(300)})
    )
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete(range(100))
        recaller.upsert([{"id": -1, "vector": vectors[0].tolist(), "fields": {"n": -1}}])
    compact(store.path, name="two")
    new = open_release(store)
    new.check_golden_queries()
    assert (new.manifest.index.engine, new.manifest.index.settings) == (
        "hnsw",
        settings.model_dump(exclude_unset=True, mode="json"),
    )
    assert new.item_ids.to_ids(np.arange(3)) == [-1, 100, 101]
    assert new.attributes["n"].to_list() == [-1, *range(100, 300)]
    assert (len(new.golden_queries.vectors), new.users, new.popularity, new.encoder) == (50, None, None, None)


def test_compaction_without_live_items_is_rejected(make_store):
    store = make_store([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([1, 2])
        assert recaller.recall(Query(vector=[1, 1])).ids == []
        with pytest.raises(StoreError, match="all items of release 'one' are deleted"):
            compact(store.path)
        recaller.upsert([{"id": 3, "vector": [1, 1]}])
        compact(store.path, name="two")
        recaller.activate("two")
        assert recaller.recall(Query(vector=[1, 1])).ids == [3]
    assert list(store.path.glob("tmp-*")) == []


def test_release_that_was_activated_meanwhile_stays_current(make_store, monkeypatch, caplog):
    store = make_store([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([1])
        publish_vectors(store.path, [1, 2], np.eye(2), name="other", activate=False)
        write_release = snapshot_release.write_release

        def activate_other_and_write(*args, **options):
            store.activate("other")
            return write_release(*args, **options)

        monkeypatch.setattr(snapshot_release, "write_release", activate_other_and_write)
        assert compact(store.path, name="two") == "two"
    assert store.get_current().release == "other"
    assert re.search(r"\btwo\b.*current.*\bother\b.*\bone\b", caplog.text)
    monkeypatch.undo()
    assert compact(store.path, name="of-one", release="one") == "of-one"
    assert store.get_current().release == "other"


def test_compaction_reports_taken_names_missing_releases_and_corruption(make_store):
    store = make_store([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([1])
        with pytest.raises(StoreError, match="already"):
            compact(store.path, name="one")
        with pytest.raises(StoreError, match="has no release"):
            compact(store.path, release="none")
    with pytest.raises(StoreError, match="is no store"):
        compact(store.path / "none")
    path = get_journal_path(store)
    content = path.read_bytes()
    assert content.count(b"delete") >= 1
    path.write_bytes(content.replace(b"delete", b"delate"))
    with pytest.raises(JournalCorruptedError):
        compact(store.path)


def test_operations_that_the_tables_contain_are_not_replayed_by_a_compaction(make_store):
    store = make_store([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.upsert([{"id": 3, "vector": [1, 1]}])
        publish_vectors(store.path, [1, 3], np.diag([1.0, 9.0]), name="two", journal_seq=1)
        recaller.delete([1])
    compact(store.path, name="three")
    with open_recaller(store.path) as recaller:
        result = recaller.recall(Query(vector=[1, 1]))
        assert (result.release, result.ids, result.scores) == ("three", [3], [9])
    manifests = store.list_releases()
    assert [(manifest.journal_seq, manifest.tables_seq) for manifest in manifests] == [(2, 1), (1, 1), (0, 0)]


def test_item_that_changes_during_a_compaction_is_in_it_as_it_was_before(changed, monkeypatch):
    shop, recaller, _ = changed
    read = Journal.read_operations

    def read_and_change(journal, *seqs):
        yield from list(read(journal, *seqs))
        recaller.upsert([{"id": "zz", "fields": {"title": "Later"}}])
        recaller.delete(["a new one"])

    monkeypatch.setattr(Journal, "read_operations", read_and_change)
    assert compact(shop.path, name="two", activate=False) == "two"
    monkeypatch.undo()
    release = open_release(shop, "two")
    rows = release.item_ids.to_rows(["a new one", "zz"])
    assert (rows >= 0).all()
    assert release.attributes["title"][rows].to_list() == ["New", "New"]
    assert release.item_features.take(rows)["text"].to_list() == ["Word1", "Word1"]
    recaller.activate("two")
    snapshot = recaller.live_index.snapshot
    assert snapshot.is_live(snapshot.to_rows(["a new one", "zz"])).tolist() == [False, True]
