"""Memory that a second release needs: files that are read by rows or mapped take none."""

from types import SimpleNamespace

import pytest

from vecall.errors import StoreError
from vecall.live import memory


def make_manifest(**sizes):
    files = {name.replace("_", "."): SimpleNamespace(bytes=size) for name, size in sizes.items()}
    return SimpleNamespace(name="two", files=files)


def test_item_features_and_mapped_arrays_take_no_memory(monkeypatch):
    monkeypatch.setattr(memory, "get_free_memory_bytes", lambda: 1_000)
    manifest = make_manifest(features_arrow=10**9, vectors_npy=10**9, index_faiss=900)
    memory.check_memory(manifest)
    with pytest.raises(StoreError, match="needs about 1,980 bytes"):
        memory.check_memory(manifest, process_count=2)
