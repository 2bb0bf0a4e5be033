"""An engine that is one file and a line in `ENGINES`: published, opened, recalled, compacted, pruned, as any other."""

import numpy as np
import polars as pl
import pytest
from support.fake_engine import NAME, register

from vecall.errors import EngineUnavailableError, InvalidReleaseError, TooManyScansError
from vecall.index import timing
from vecall.index.builder import build_index
from vecall.index.engines import ENGINES
from vecall.index.settings import IndexSettings
from vecall.live.compaction import compact
from vecall.live.pruning import prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall import scan_limiter
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller
from vecall.recall.scan_limiter import ScanLimiter
from vecall.release.activation import activate_release
from vecall.release.golden import GoldenQueries
from vecall.release.release import open_release
from vecall.release.store import Store

N, D = 2000, 8
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((N, D)).astype(np.float32)
VECTORS[1000:1100] = VECTORS[:100]  # equal scores
QUERIES = RNG.standard_normal((40, D)).astype(np.float32)


@pytest.fixture
def server(monkeypatch):
    """A server whose engine is registered, and is cheaper than a scan."""
    return register(monkeypatch)


def publish(path, engine=NAME, name="one"):
    attributes = pl.DataFrame({"group": np.arange(N) % 3})
    index = IndexSettings(engine=engine, ks=(10, 50))
    publish_vectors(path, range(N), VECTORS, attributes=attributes, queries=QUERIES, index=index, name=name)


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)
    publish(tmp_path / "store")
    return Store.open(tmp_path / "store")


CHANGED = [{"id": row, "vector": (-VECTORS[row]).tolist(), "fields": {"group": 1}} for row in range(50)]
NEW = [{"id": N + row, "vector": vector.tolist(), "fields": {"group": 1}} for row, vector in enumerate(QUERIES[:20])]
DELETED = list(range(100, 180))
CONDITIONS = {
    "none": (),
    "a third": ({"field": "group", "op": "eq", "value": 1},),
    "nothing": ({"field": "group", "op": "eq", "value": 9},),
}


def change(recaller):
    recaller.upsert(CHANGED + NEW)
    recaller.delete(DELETED)


def make_queries():
    for vector in QUERIES[:6]:
        nearest = np.argsort(-(VECTORS @ vector))[:60].tolist()
        for where in CONDITIONS.values():
            for exclude in ((), nearest):
                for k in (1, 30, 300):
                    yield Query(vector=vector, k=k, where=where, exclude=exclude, explain=True)


@pytest.mark.parametrize("fault", [None, "short", "empty", "damaged"])
def test_recall_gives_the_scores_of_an_exact_engine(store, server, tmp_path, fault):
    """Before and after live changes, with filters and exclusions, whatever the server leaves out."""
    publish(tmp_path / "exact", engine="exact")
    server.fault = fault
    with open_recaller(store.path, writable=True) as remote, open_recaller(tmp_path / "exact", writable=True) as exact:
        server.searches.clear()
        for step in ("released", "changed"):
            if step == "changed":
                change(remote)
                change(exact)
            for query in make_queries():
                answer, expected = remote.recall(query), exact.recall(query)
                assert answer.scores == expected.scores
                assert answer.exhausted == expected.exhausted
                assert (answer.plan.matches, answer.plan.excluded) == (expected.plan.matches, expected.plan.excluded)
                assert len(set(answer.ids)) == len(answer.ids)
                assert not set(answer.ids) & set(query.exclude)
                assert step == "released" or not set(answer.ids) & set(DELETED)
    assert len(server.searches) > 20


def test_scans_that_complete_short_answers_are_limited_as_others_are(store, server, monkeypatch):
    monkeypatch.setattr(scan_limiter, "_LARGE_SCAN_ROWS", 1_000)
    limiter = ScanLimiter(1)
    with open_recaller(store.path) as opened:
        recaller = Recaller(opened.live_index, scan_limiter=limiter)
        query, filtered = (Query(vector=QUERIES[0], k=50, where=CONDITIONS[name]) for name in ("none", "a third"))
        with limiter.acquire(N):
            assert len(recaller.recall(query).ids) == 50
            server.fault = "short"
            with pytest.raises(TooManyScansError, match="scan of 2,000 items"):
                recaller.recall(query)
            assert len(recaller.recall(filtered).ids) == 50  # a scan of 666 rows
        assert len(recaller.recall(query).ids) == 50


def test_release_holds_vectors_and_no_index(store, server):
    manifest = store.verify()
    assert "vectors.npy" in manifest.files
    assert "index.faiss" not in manifest.files
    assert (manifest.index.engine, manifest.index.parameters["rows"]) == (NAME, N)
    assert list(server.collections) == [manifest.index.parameters["collection"]]
    assert [k for k, *_ in manifest.index.parameters["search_params"]] == [10, 50]
    assert open_release(store).search_param_curve.points


def test_server_that_does_not_answer_is_an_error_and_only_of_what_needs_it(store, server):
    with open_recaller(store.path) as recaller:
        server.fault = "down"
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            recaller.recall(Query(vector=QUERIES[0], k=10))
        assert recaller.recall(Query(vector=QUERIES[0], k=10, where=CONDITIONS["nothing"])).exhausted
        server.fault = None
        assert len(recaller.recall(Query(vector=QUERIES[0], k=10)).ids) == 10
    server.fault = "down"
    with open_recaller(store.path) as recaller:  # it recovers by itself
        with pytest.raises(EngineUnavailableError):
            recaller.recall(Query(vector=QUERIES[0], k=10))
        server.fault = None
        assert len(recaller.recall(Query(vector=QUERIES[0], k=10)).ids) == 10


def test_publish_that_fails_leaves_nothing_on_the_server(store, server, monkeypatch):
    collections = set(server.collections)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(GoldenQueries, "save", fail)
        with pytest.raises(Exception, match="No space"):
            publish(store.path, name="two")
    with monkeypatch.context() as patch:
        patch.setattr("vecall.index.builder.tune", fail)
        with pytest.raises(OSError, match="No space"):
            publish(store.path, name="two")
    assert set(server.collections) == collections
    assert [manifest.name for manifest in store.list_releases()] == ["one"]


def test_pruned_releases_are_dropped_and_others_are_not(store, server, caplog):
    for name in ("two", "three", "four"):
        publish(store.path, name=name)
    names = {manifest.name: manifest.index.parameters["collection"] for manifest in store.list_releases()}
    assert prune_store(store, 2).release_names == ["two", "one"]
    assert set(server.collections) == {names["three"], names["four"]}
    activate_release(store, "three")
    publish(store.path, name="five")
    server.fault = "down"
    assert prune_store(store, 1).release_names == ["four"]
    assert "could not be deleted: the fake server does not answer" in caplog.text
    server.fault = None
    assert open_release(store).name == "five"


def test_compaction_builds_a_collection_of_its_own(store, server):
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        change(recaller)
        before = recaller.recall(Query(vector=QUERIES[0], k=50))
    compacted = compact(store.path)
    assert len(server.collections) == 2
    with open_recaller(store.path) as recaller:
        after = recaller.recall(Query(vector=QUERIES[0], k=50))
    assert (after.release, after.scores) == (compacted, before.scores)


def test_release_without_its_collection_is_refused(store, server):
    server.collections.clear()
    with pytest.raises(InvalidReleaseError, match="has no collection"):
        open_recaller(store.path)


def test_release_of_an_engine_that_is_gone_is_refused_by_name(store, monkeypatch):
    monkeypatch.delitem(ENGINES, NAME)
    with pytest.raises(InvalidReleaseError, match=f"names the engine '{NAME}', and this version has exact, hnsw, ivf"):
        open_release(store)


def test_damaged_vectors_are_refused(store):
    path = store.get_release_dir("one") / "vectors.npy"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=r"vectors\.npy is damaged"):
        open_release(store)


def test_auto_chooses_no_remote_engine_and_unpublished_indexes_are_exact(server):
    assert build_index(VECTORS, QUERIES, IndexSettings(ks=(10,))).engine in {"hnsw", "ivf"}
    assert build_index(VECTORS, QUERIES, IndexSettings(engine=NAME)).engine == "exact"
    assert not server.collections
