"""Reindexing: the same release over an index of another engine."""

import json

import numpy as np
import polars as pl
import pytest
from support import synthetic
from support.cli import invoke
from support.fake_engine import NAME, register

from vecall.errors import ConfigError, EngineUnavailableError, StoreError
from vecall.index.settings import IndexSettings
from vecall.live import reindex as reindex_module
from vecall.live import snapshot_release
from vecall.live.reindex import reindex
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.release import open_release
from vecall.release.store import Store

N, D = 800, 8
RNG = np.random.default_rng(5)
VECTORS = RNG.standard_normal((N, D)).astype(np.float32)
QUERIES = RNG.standard_normal((30, D)).astype(np.float32)
NEW = [
    {"id": f"new {row}", "vector": vector.tolist(), "fields": {"group": 1}} for row, vector in enumerate(QUERIES[:9])
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store whose current release `one` has a graph, and a server that may have another index of it."""
    register(monkeypatch)
    publish_vectors(
        tmp_path / "store",
        [f"item {row}" for row in range(N)],
        VECTORS,
        attributes=pl.DataFrame({"group": np.arange(N) % 3}),
        queries=QUERIES,
        index=IndexSettings(engine="hnsw", M=12, ks=(10, 50)),
        name="one",
    )
    return Store.open(tmp_path / "store")


def recall_all(recaller):
    """Recall whatever passes the filter: all of it is scored, whatever the index."""
    queries = [
        Query(vector=vector, k=2 * N, where=where, exclude=exclude)
        for vector in QUERIES[:4]
        for where in ((), ({"field": "group", "op": "eq", "value": 1},))
        for exclude in ((), ("item 3", "new 2"))
    ]
    return [(answer.ids, answer.scores, answer.exhausted) for answer in map(recaller.recall, queries)]


@pytest.mark.parametrize("engine", ["exact", "ivf", NAME])
def test_release_of_another_engine_answers_alike_and_moves_back(store, engine):
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert(NEW)
        recaller.delete(["item 7"])
        before = recall_all(recaller)
        assert reindex(store.path, engine=engine, name="two") == "two"
        recaller.activate("two")
        assert recall_all(recaller) == before
        assert reindex(store.path, engine="hnsw", name="three") == "three"
        recaller.activate("three")
        assert recall_all(recaller) == before
    one, two, three = (open_release(store, name) for name in ("one", "two", "three"))
    assert [release.manifest.index.engine for release in (one, two, three)] == ["hnsw", engine, "hnsw"]
    assert one.vectors.half_vectors.tobytes() == two.vectors.half_vectors.tobytes()
    assert np.array_equal(one.golden_queries.vectors, two.golden_queries.vectors)
    assert (one.manifest.journal_seq, two.manifest.journal_seq) == (0, 0)
    two.check_golden_queries()


def test_settings_of_the_old_engine_are_left_and_the_others_kept(store):
    reindex(store.path, engine="ivf", name="two")
    assert open_release(store, "two").manifest.index.settings == {"engine": "ivf", "ks": [10, 50]}
    reindex(store.path, engine="hnsw", name="three", release="one")
    assert open_release(store, "three").manifest.index.settings == {"engine": "hnsw", "ks": [10, 50], "M": 12}


def test_towers_users_and_channels_are_carried_over(shop):
    before = open_release(shop)
    reindex(shop.path, engine="hnsw", name="two")
    after = open_release(shop, "two")
    assert after.manifest.index.engine == "hnsw"
    for field in ("encoder", "merge", "ranker", "metrics", "trained_settings", "items", "journal_seq", "tables_seq"):
        assert getattr(after.manifest, field) == getattr(before.manifest, field), field
    assert after.manifest.parent == before.name
    assert after.attributes.equals(before.attributes)
    old_files, new_files = ({path.name for path in shop.get_release_dir(name).rglob("*")} for name in ("tiny", "two"))
    assert old_files == new_files
    with open_recaller(shop.path, release="tiny") as old, open_recaller(shop.path, release="two") as new:
        for user_id in before.users.ids.to_ids(np.arange(4)):
            answers = [recaller.recall(Query(user_id=user_id, k=synthetic.ITEMS)) for recaller in (old, new)]
            assert (answers[0].ids, answers[0].scores) == (answers[1].ids, answers[1].scores)


def test_crash_while_writing_leaves_the_store_as_it_was(store, monkeypatch):
    files = sorted(path.name for path in store.path.rglob("*"))

    def fail(*_args, **_options):
        raise EngineUnavailableError("no answer")

    monkeypatch.setattr(snapshot_release, "write_release", fail)
    with pytest.raises(EngineUnavailableError, match="no answer"):
        reindex(store.path, engine="exact", name="two")
    assert sorted(path.name for path in store.path.rglob("*")) == files
    assert store.get_current().release == "one"


def test_what_cannot_be_reindexed_is_refused(store):
    with pytest.raises(ConfigError, match=r"'annoy'; choose auto, exact"):
        reindex(store.path, engine="annoy")
    with pytest.raises(StoreError, match="has no release"):
        reindex(store.path, engine="exact", release="none")
    with pytest.raises(StoreError, match="already"):
        reindex(store.path, engine="exact", name="one")


def test_command_prints_the_release_as_publish_does(store):
    result = invoke("reindex", "--store", store.path, "--engine", "exact", "--name", "two", "--json")
    assert result.exit_code == 0, result.output
    payload = json.loads(result.stdout)
    assert (payload["release"], payload["items"], payload["dim"]) == ("two", N, D)
    assert store.get_current().release == "two"
    assert invoke("reindex", "--store", store.path, "--engine", "annoy").exit_code == 2
    with pytest.raises(ConfigError, match="choose auto, exact"):
        reindex(store.path, engine="annoy")


def test_release_that_is_published_meanwhile_stays_current(store, monkeypatch):
    def write_and_publish(*args):
        publish_vectors(store.path, ["a", "b"], VECTORS[:2], name="nightly", allow_worse=True)
        return write_snapshot(*args)

    write_snapshot = reindex_module.write_snapshot
    monkeypatch.setattr(reindex_module, "write_snapshot", write_and_publish)
    assert reindex(store.path, engine="exact", name="two") == "two"
    assert store.get_current().release == "nightly"
    assert open_release(store, "two").manifest.index.engine == "exact"
