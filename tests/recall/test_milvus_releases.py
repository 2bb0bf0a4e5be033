"""Releases of the engine `milvus` in a store: publishing, crashes at any step, sweeping, pruning, copies of a store."""

import json
import shutil

import numpy as np
import pytest
from support.fake_milvus import FakeRpcError

from vecall.errors import ConfigError, EngineUnavailableError, InvalidReleaseError, StoreError
from vecall.index.milvus import ownership
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.settings import IndexSettings
from vecall.live.compaction import compact
from vecall.live.pruning import prune_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.release import open_release
from vecall.release.store import Store

N, D = 2000, 8
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((N, D)).astype(np.float32)
QUERIES = RNG.standard_normal((20, D)).astype(np.float32)
STEPS = (
    *("create_collection", "insert", "flush", "get_collection_stats", "create_index", "describe_index"),
    *("load_collection", "get_load_state", "query", "search"),
)


def publish(path, name, **settings):
    index = IndexSettings(engine="milvus", ks=(10,), milvus=MilvusSettings(**settings))
    publish_vectors(path, range(N), VECTORS, queries=QUERIES, index=index, name=name)


@pytest.fixture
def store(fake_milvus, tmp_path):
    publish(tmp_path / "store", "r1")
    return Store.open(tmp_path / "store")


def get_collection(store, name=None):
    return store.verify(name).index.parameters["collection"]


def test_release_names_its_collection_and_never_a_token(fake_milvus, store, monkeypatch):
    monkeypatch.setenv("VECALL_MILVUS_TOKEN", "root:hunter2")
    publish(store.path, "r2", timeout_ms=100)
    manifest = store.verify()
    parameters = manifest.index.parameters
    store_id = json.loads((store.path / "milvus_store.json").read_text())["store_id"]
    assert parameters["collection"].startswith(f"vecall_{store_id}_")
    assert (parameters["rows"], parameters["dim"], parameters["M"], parameters["ef_construction"]) == (N, D, 16, 200)
    assert manifest.index.settings["milvus"] == {"timeout_ms": 100}
    assert "vectors.npy" in manifest.files
    assert "hunter2" not in (store.get_release_dir("r2") / "manifest.json").read_text()
    assert set(fake_milvus.collections) == {get_collection(store, "r1"), parameters["collection"]}


@pytest.mark.parametrize("step", STEPS)
def test_publish_that_fails_at_any_step_leaves_nothing(fake_milvus, store, step):
    before = set(fake_milvus.collections)
    fake_milvus.failures[step] = FakeRpcError("UNAVAILABLE", "down")
    with pytest.raises(EngineUnavailableError):
        publish(store.path, "r2")
    assert set(fake_milvus.collections) == before
    assert [manifest.name for manifest in store.list_releases()] == ["r1"]
    assert not list(store.path.glob("tmp-*"))


@pytest.mark.parametrize("step", STEPS)
def test_what_a_crash_at_any_step_leaves_serves_nothing_and_is_swept_by_the_next_publish(fake_milvus, store, step):
    """A crash cannot drop the collection."""
    fake_milvus.failures = {step: FakeRpcError("UNAVAILABLE", "x"), "drop_collection": FakeRpcError("UNAVAILABLE", "x")}
    with pytest.raises(EngineUnavailableError):
        publish(store.path, "r2")
    assert [manifest.name for manifest in store.list_releases()] == ["r1"]
    fake_milvus.failures.clear()
    publish(store.path, "r3")
    assert set(fake_milvus.collections) == {get_collection(store, "r1"), get_collection(store, "r3")}


def test_collection_of_a_draft_that_is_being_written_is_not_swept(fake_milvus, store):
    store_id = ownership.read_store_id(store.path)
    with store.create_draft() as draft:
        name = ownership.make_draft_collection_name(store_id, draft.directory)
        fake_milvus.collections[name] = None
        publish(store.path, "r2")
        assert name in fake_milvus.collections
    publish(store.path, "r3")
    assert name not in fake_milvus.collections


def test_nothing_is_swept_while_a_manifest_cannot_be_read(fake_milvus, store, caplog):
    orphan = f"vecall_{ownership.read_store_id(store.path)}_{32 * 'a'}"
    fake_milvus.collections[orphan] = None
    damaged = store.path / "releases" / "damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    publish(store.path, "r2")
    assert orphan in fake_milvus.collections
    assert "none is dropped" in caplog.text
    with pytest.raises(StoreError, match="none is dropped"):
        ownership.list_orphans(fake_milvus.connect(), store.path)


def test_pruning_drops_collections_and_what_it_could_not_drop_is_swept_later(fake_milvus, store):
    for name in ("r2", "r3"):
        publish(store.path, name)
    first = get_collection(store, "r1")
    fake_milvus.failures["drop_collection"] = FakeRpcError("UNAVAILABLE", "x")
    assert prune_store(store, 1).release_names == ["r1"]
    assert first in fake_milvus.collections
    fake_milvus.failures.clear()
    publish(store.path, "r4")
    assert first not in fake_milvus.collections
    assert prune_store(store, 1).release_names == ["r2"]
    assert set(fake_milvus.collections) == {get_collection(store, "r3"), get_collection(store, "r4")}


def test_copy_of_a_store_drops_nothing_that_the_original_uses(fake_milvus, store, tmp_path, caplog):
    for name in ("r2", "r3"):
        publish(store.path, name)
    before = set(fake_milvus.collections)
    shutil.copytree(store.path, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    assert ownership.read_store_id(copy.path) != ownership.read_store_id(store.path)
    assert prune_store(copy, 1).release_names == ["r1"]
    assert "copied or moved from" in caplog.text
    publish(copy.path, "r4")
    assert before < set(fake_milvus.collections)


def test_store_keeps_its_id_when_it_is_renamed(fake_milvus, store, tmp_path):
    store_id = ownership.read_store_id(store.path)
    store.path.rename(tmp_path / "renamed")
    assert ownership.read_store_id(tmp_path / "renamed") == store_id


def test_release_opens_while_the_server_is_down_and_answers_once_it_is_up(fake_milvus, store):
    fake_milvus.is_down = True
    with open_recaller(store.path) as recaller:
        index = recaller.live_index.snapshot.release.index
        assert index.unavailable_reason is not None
        with pytest.raises(EngineUnavailableError):
            index.search(QUERIES[:1], 10)
        fake_milvus.is_down = False
        index.load()
        assert len(index.search(QUERIES[:1], 10).rows[0]) == 10
        assert len(recaller.recall(Query(vector=QUERIES[0], k=10)).ids) == 10


def test_compaction_gets_a_collection_of_its_own_and_keeps_the_settings(fake_milvus, store):
    publish(store.path, "r2", timeout_ms=77)
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete(list(range(50)))
    name = compact(store.path)
    manifest = store.verify(name)
    assert manifest.index.settings["milvus"] == {"timeout_ms": 77}
    assert (manifest.index.engine, manifest.index.parameters["rows"]) == ("milvus", N - 50)
    assert len(fake_milvus.collections) == 3


def test_parameters_that_milvus_never_builds_are_refused_before_anything_is_written(fake_milvus, store):
    index = IndexSettings(engine="milvus", M=3)
    with pytest.raises(ConfigError, match=r"index\.M: 3"):
        publish_vectors(store.path, range(N), VECTORS, queries=QUERIES, index=index, name="r2")
    assert not list(store.path.glob("tmp-*"))


@pytest.mark.parametrize("change", [{"collection": "docs"}, {"collection": None}])
def test_manifest_without_a_collection_of_vecall_is_refused(fake_milvus, store, change):
    release = open_release(store)
    info = release.manifest.index
    info = info.model_copy(update={"parameters": info.parameters | change})
    from vecall.index.engines import ENGINES

    with pytest.raises(InvalidReleaseError, match="expected vecall_<store>_<id>"):
        ENGINES["milvus"].open(store.get_release_dir("r1") / "vectors.npy", info)
