"""Base + delta - tombstones: nothing but the rows changes."""

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.errors import JournalCorruptedError, StoreError
from vecall.index.settings import IndexSettings
from vecall.live import compaction as compact_file
from vecall.live.compaction import compact
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.atomic_io import read_array
from vecall.release.encoder import ITEM_ID_VECTORS_FILE
from vecall.release.release import open_release

CHEAP = {"type": "kind 1", "price.eur": 3, "标签": ["红1", "all"], "text": "Word1", "title": "New", "year": 2030}


@pytest.fixture
def changed(shop):
    """The shop with changes: items added, replaced, deleted; users have histories of all kinds."""
    ids = [synthetic.make_item_id(row) for row in range(synthetic.ITEMS)]
    with open_recaller(shop.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert(
            [{"id": "a new one", "fields": CHEAP}, {"id": "zz", "fields": CHEAP}, {"id": "w", "fields": {}}]
        )
        recaller.upsert([{"id": ids[0], "fields": CHEAP}, {"id": ids[1], "fields": {"title": "Replaced"}}])
        recaller.upsert([{"id": ids[2], "fields": CHEAP}])
        recaller.delete([ids[2], ids[3], "w"])
        yield shop, recaller, ids


def answers(recaller, users, more):
    """What users are recalled, and strangers."""
    queries = [Query(user_id=user, k=20) for user in users]
    queries += [Query(history=[one], k=10, exclude_seen=False) for one in more]
    queries += [Query(user_id="nobody", k=60), Query(user_id=users[0], k=9, where=[_is("year", 2030)])]
    return [recaller.recall(query) for query in queries]


def _is(field, value):
    return {"field": field, "op": "eq", "value": value}


def test_answers_stay(changed):
    """To the bit: vectors are what they were, whether from the base or from the delta."""
    shop, recaller, ids = changed
    view = recaller.live.snapshot
    release, more = view.release, ["a new one", "zz", ids[0], ids[1], ids[4]]
    gone = release.items.rows(ids[2:4])  # who took these is known by fewer items afterwards
    kept = [user for user in range(synthetic.USERS) if not np.isin(release.users.histories[user], gone).any()]
    users = release.users.ids.ids(np.array(kept))
    before = answers(recaller, users, more)
    assert compact(shop.path, name="two", activate=False) == "two"
    assert shop.current().release == "tiny"
    recaller.activate("two")
    after, now = answers(recaller, users, more), recaller.live.snapshot
    assert len(users) > 20
    replaced = release.items.rows(ids[:2])
    assert any(np.isin(release.users.histories[user], replaced).any() for user in kept)
    assert (now.delta.count, now.tombstones, len(now)) == (0, 0, len(view)) == (0, 0, synthetic.ITEMS)
    alive = view.ids(np.flatnonzero(view.has(np.arange(synthetic.ITEMS + len(view.delta)))))
    for one in alive:
        assert view.vectors(view.rows([one])).tobytes() == now.vectors(now.rows([one])).tobytes()
        assert view.attributes(view.rows([one])).equals(now.attributes(now.rows([one])), null_equal=True)
    assert now.ids(np.arange(len(now))) == sorted(alive)
    for old, new in zip(before, after, strict=True):
        assert (old.fallback, old.exhausted, old.unknown) == (new.fallback, new.exhausted, new.unknown)
        if old.fallback != "popular":
            assert (old.ids, old.scores) == (new.ids, new.scores)


def test_what_else_moves_along(changed):
    shop, recaller, ids = changed
    compact(shop.path, name="two")
    old, new = open_release(shop, "tiny"), open_release(shop, "two")
    new.check_golden_queries()
    manifest = new.manifest
    assert (manifest.parent, manifest.journal_seq, manifest.tables_seq) == ("tiny", recaller.live.snapshot.seq, 0)
    assert (manifest.encoder, manifest.metrics) == (old.manifest.encoder, old.manifest.metrics)
    assert (manifest.index.settings, manifest.ann["queries"]) == (old.manifest.index.settings, synthetic.USERS)
    gone = {ids[2], ids[3]}
    for user in range(synthetic.USERS):
        before = old.item_ids.to_ids(old.users.histories[user])
        assert new.item_ids.to_ids(new.users.histories[user]) == [one for one in before if one not in gone]
    assert new.users.ids.to_ids(np.arange(3)) == old.users.ids.to_ids(np.arange(3))
    assert new.users.features.equals(old.users.features, null_equal=True)
    there = [one for one in ids if one not in gone]
    taken, takes = old.popularity[old.item_ids.to_rows(there)], new.popularity[new.item_ids.to_rows(there)]
    assert taken.tolist() == takes.tolist()
    assert new.popularity[new.item_ids.to_rows(["a new one", "zz"])].tolist() == [0, 0]
    table, moved = (read_array(shop.folder(name) / ITEM_ID_VECTORS_FILE) for name in ("tiny", "two"))
    assert len(moved) == new.index.size + 1
    assert moved[new.item_ids.to_rows(there)].tolist() == table[old.item_ids.to_rows(there)].tolist()
    assert (moved[new.item_ids.to_rows(["a new one", "zz"])] == table[-1]).all()
    assert (moved[-1] == table[-1]).all()


def test_an_item_is_encoded_by_the_next_release_as_by_the_last(changed):
    shop, recaller, ids = changed
    fields = {"type": "kind 2", "price.eur": 9}
    recaller.upsert([{"id": ids[5], "fields": fields}, {"id": "zz", "fields": fields}])
    view = recaller.live.snapshot
    expected = view.vectors(view.rows([ids[5], "zz"]))
    compact(shop.path, name="two")
    recaller.activate("two")
    recaller.upsert([{"id": ids[5], "fields": fields}, {"id": "zz", "fields": fields}])
    view = recaller.live.snapshot
    assert view.delta.count == 2
    assert view.vectors(view.rows([ids[5], "zz"])).tolist() == expected.tolist()


def test_later_writes_come_on_top(changed):
    shop, recaller, ids = changed
    cut = recaller.live.snapshot.seq
    assert compact(shop.path, name="two") == "two"
    recaller.delete([ids[6]])
    recaller.upsert([{"id": ids[3], "fields": CHEAP}])
    recaller.activate("two")
    view = recaller.live.snapshot
    assert (view.release.manifest.journal_seq, view.seq, view.delta.count) == (cut, cut + 2, 1)
    assert view.has(view.rows([ids[3], ids[6], "zz"])).tolist() == [True, False, True]
    assert compact(shop.path, name="three") == "three"
    assert open_release(shop).item_ids.to_rows([ids[3], ids[6], "zz"])[1] == -1


def test_nothing_to_do(shop):
    assert compact(shop.path) == "tiny"
    with open_recaller(shop.path, writable=True) as recaller:
        assert compact(shop.path, name="two") == "tiny"
        recaller.delete(["nobody's"])
        assert compact(shop.path, name="two") == "two"
        assert compact(shop.path, name="three") == "two"
    assert [one.name for one in shop.releases()] == ["two", "tiny"]


def test_own_vectors_with_a_graph(store_of):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    settings = IndexSettings(engine="hnsw", M=8, ks=(5, 20))
    store = store_of(
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


def test_nothing_left(store_of):
    store = store_of([1, 2], np.eye(2))
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


def test_who_was_activated_meanwhile_stays(store_of, monkeypatch, caplog):
    store = store_of([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([1])
        publish_vectors(store.path, [1, 2], np.eye(2), name="other", activate=False)
        write = compact_file.write_release

        def amid(*args, **options):
            store.activate("other")
            return write(*args, **options)

        monkeypatch.setattr(compact_file, "write_contents", amid)
        assert compact(store.path, name="two") == "two"
    assert store.current().release == "other"
    assert "two is not made current: other has taken the place of one" in caplog.text
    monkeypatch.undo()
    assert compact(store.path, name="of-one", release="one") == "of-one"
    assert store.current().release == "other"


def test_what_cannot_be_compacted(store_of):
    store = store_of([1, 2], np.eye(2))
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


def test_the_tables_word_stands_where_it_was_given(store_of):
    """What they were said to hold is not replayed onto them, by a compaction either."""
    store = store_of([1, 2], np.eye(2))
    with open_recaller(store.path, writable=True) as recaller:
        recaller.upsert([{"id": 3, "vector": [1, 1]}])
        publish_vectors(store.path, [1, 3], np.diag([1.0, 9.0]), name="two", journal_seq=1)
        recaller.delete([1])
    compact(store.path, name="three")
    with open_recaller(store.path) as recaller:
        answer = recaller.recall(Query(vector=[1, 1]))
        assert (answer.release, answer.ids, answer.scores) == ("three", [3], [9])
    assert [(one.journal_seq, one.declared_seq) for one in store.releases()] == [(2, 1), (1, 1), (0, 0)]
