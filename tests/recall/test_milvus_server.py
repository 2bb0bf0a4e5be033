"""Releases on a real Milvus server through the store and the recaller: the promises of one machine hold there too."""

import threading
import time

import numpy as np
import polars as pl
import pytest

from vecall.errors import EngineUnavailableError
from vecall.index.milvus import client, collection, ownership
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.settings import IndexSettings
from vecall.live.compaction import compact
from vecall.live.pruning import prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.activation import activate_release
from vecall.release.store import Store

pytestmark = pytest.mark.milvus

N, D = 6000, 16
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((60, D))
CLUSTER = RNG.integers(60, size=N)
VECTORS = (CENTRES[CLUSTER] + 0.5 * RNG.standard_normal((N, D))).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
VECTORS[3000:3100] = VECTORS[:100]  # equal scores
QUERIES = (CENTRES[RNG.integers(60, size=40)] + 0.5 * RNG.standard_normal((40, D))).astype(np.float32)
ATTRIBUTES = pl.DataFrame({"share": RNG.random(N), "cluster": CLUSTER})
# Random filters that pass 1 %, 10 % and 50 %, and one that takes away half of the clusters.
CONDITIONS = {
    "none": (),
    "1 %": ({"field": "share", "op": "lt", "value": 0.01},),
    "10 %": ({"field": "share", "op": "lt", "value": 0.1},),
    "50 %": ({"field": "share", "op": "lt", "value": 0.5},),
    "half of the clusters": ({"field": "cluster", "op": "lt", "value": 30},),
    "nothing": ({"field": "share", "op": "gt", "value": 2},),
}
CHANGED = [{"id": row, "vector": (-VECTORS[row]).tolist(), "fields": {"share": 0.2, "cluster": 1}} for row in range(50)]
NEW = [
    {"id": N + row, "vector": vector.tolist(), "fields": {"share": 0.2, "cluster": 1}}
    for row, vector in enumerate(QUERIES[:20])
]
DELETED = list(range(100, 180))


def publish(path, engine="milvus", name="r1", **settings):
    index = IndexSettings(engine=engine, ks=(10, 50), milvus=MilvusSettings(build_stall_minutes=1, **settings))
    publish_vectors(path, range(N), VECTORS, attributes=ATTRIBUTES, queries=QUERIES, index=index, name=name)


@pytest.fixture
def connection(milvus_server):
    connection = client.acquire_connection(resolve_endpoint(MilvusSettings()))
    yield connection
    for name in connection.call("list_collections", timeout=30, action="cleaning up"):
        collection.drop(connection, name)
    client.release_connection(connection)


@pytest.fixture
def store(connection, tmp_path):
    publish(tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def no_scans(monkeypatch):
    """The planner finds the server cheap: a catalogue this small would be scanned."""
    from vecall.index import timing

    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)


def list_collections(connection, store):
    return collection.list_collections(connection, ownership.read_store_id(store.path))


def make_queries():
    for vector in QUERIES[:8]:
        nearest = np.argsort(-(VECTORS @ vector))[:60].tolist()
        for name, where in CONDITIONS.items():
            for exclude in ((), nearest):
                for k in (1, 50, 300):
                    yield name, Query(vector=vector, k=k, where=where, exclude=exclude, explain=True)


def test_recall_keeps_all_promises_of_one_machine(no_scans, store, tmp_path):
    """Exactly k, exhausted, where, exclusions, deletes and live upserts, scores and order, beside the exact engine."""
    publish(tmp_path / "exact", engine="exact")
    recalls, routes = {}, set()
    with open_recaller(store.path, writable=True) as remote, open_recaller(tmp_path / "exact", writable=True) as exact:
        for step in ("released", "changed"):
            if step == "changed":
                for recaller in (remote, exact):
                    recaller.upsert(CHANGED + NEW)
                    recaller.delete(DELETED)
            for name, query in make_queries():
                answer, expected = remote.recall(query), exact.recall(query)
                assert len(answer.ids) == len(expected.ids)
                assert answer.exhausted == expected.exhausted
                assert (answer.plan.matches, answer.plan.excluded) == (expected.plan.matches, expected.plan.excluded)
                assert len(set(answer.ids)) == len(answer.ids)
                assert not set(answer.ids) & set(query.exclude)
                assert step == "released" or not set(answer.ids) & set(DELETED)
                score_of = dict(zip(expected.ids, expected.scores, strict=True))
                assert all(score_of.get(i, s) == s for i, s in zip(answer.ids, answer.scores, strict=True))
                order = [(-s, i) for i, s in zip(answer.ids, answer.scores, strict=True)]
                assert order == sorted(order)
                if expected.ids:
                    found = sum(score >= expected.scores[-1] for score in answer.scores)
                    recalls.setdefault(name, []).append(found / len(expected.ids))
                routes.add(answer.plan.path)
    means = {name: round(float(np.mean(values)), 4) for name, values in recalls.items()}
    print("ANN recall by filter:", means, "routes:", routes)  # noqa: T201
    assert "index" in routes
    assert min(means.values()) >= 0.97


def test_releases_are_activated_compacted_rolled_back_and_pruned(connection, store):
    publish(store.path, name="r2", alias="vecall_alias_of_the_shop")
    assert len(list_collections(connection, store)) == 2
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete(DELETED)
        before = recaller.recall(Query(vector=QUERIES[0], k=50))
    compacted = compact(store.path)
    with open_recaller(store.path) as recaller:
        after = recaller.recall(Query(vector=QUERIES[0], k=50))
        assert after.release == compacted
        assert np.isin(after.ids, before.ids).mean() > 0.9
    activate_release(store, "r1")
    with open_recaller(store.path) as recaller:
        assert recaller.recall(Query(vector=QUERIES[0], k=50)).release == "r1"
    activate_release(store, compacted)
    assert set(prune_store(store, 1).release_names) == {"r1"}
    assert len(list_collections(connection, store)) == 2


def test_publish_during_which_the_server_dies_leaves_nothing_that_serves_and_is_swept(milvus_server, connection, store):
    """The server is killed while it builds, so that the collection cannot be dropped."""
    building = threading.Event()
    count = collection.count_flushed_rows

    def count_and_wait(*arguments):
        building.set()
        time.sleep(0.5)
        return count(*arguments)

    def kill():
        building.wait(60)
        milvus_server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "count_flushed_rows", count_and_wait)
        with pytest.raises(EngineUnavailableError):
            publish(store.path, name="r2")
    killer.join()
    assert [manifest.name for manifest in store.list_releases()] == ["r1"]
    assert not list(store.path.glob("tmp-*"))

    with open_recaller(store.path) as recaller:  # opens without the server, and answers by itself later
        index = recaller.live_index.snapshot.release.index
        assert index.unavailable_reason is not None
        milvus_server.start()
        deadline = time.monotonic() + 60
        while index.unavailable_reason is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(index.search(QUERIES[:1], 50).rows[0]) == 50
    assert len(list_collections(connection, store)) == 2
    publish(store.path, name="r3")
    used = {manifest.index.parameters["collection"] for manifest in store.list_releases()}
    assert set(list_collections(connection, store)) == used
    assert len(used) == 2
