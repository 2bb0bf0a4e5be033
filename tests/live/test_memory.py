"""Memory that a second release needs: files that are read by rows or mapped take none, vectors of an index once."""

from types import SimpleNamespace

import pytest

from vecall.errors import StoreError
from vecall.live import memory


def make_manifest(engine="exact", **sizes):
    files = {name.replace("_", "."): SimpleNamespace(bytes=size) for name, size in sizes.items()}
    return SimpleNamespace(name="two", files=files, items=10, dim=20, index=SimpleNamespace(engine=engine))


def test_item_features_and_mapped_arrays_take_no_memory(monkeypatch):
    monkeypatch.setattr(memory, "get_free_memory_bytes", lambda: 1_000)
    manifest = make_manifest(features_arrow=10**9, vectors_npy=10**9, index_faiss=900)
    memory.check_memory(manifest)
    with pytest.raises(StoreError, match="needs about 1,980 bytes"):
        memory.check_memory(manifest, process_count=2)


@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_processes_share_the_vectors_of_a_mapped_index(engine, monkeypatch):
    monkeypatch.setattr(memory, "get_free_memory_bytes", lambda: 1_500)
    manifest = make_manifest(engine, index_faiss=900)  # 400 of them are vectors
    memory.check_memory(manifest, process_count=2)  # 2 × 1.1 × 500, and 400
    with pytest.raises(StoreError, match="needs about 2,050 bytes"):
        memory.check_memory(manifest, process_count=3)
