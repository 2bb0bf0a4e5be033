"""Small stores to be changed."""

import shutil

import numpy as np
import pytest

from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.release import open_release
from vecall.release.store import Store


@pytest.fixture
def store_of(tmp_path):
    """A store with one release, `one`, of own vectors; gives the store."""

    def make(ids, vectors, **options):
        publish_vectors(tmp_path / "store", ids, np.asarray(vectors, dtype=np.float32), name="one", **options)
        return Store.open(tmp_path / "store")

    return make


@pytest.fixture
def release_of(store_of):
    return lambda *args, **options: open_release(store_of(*args, **options))


@pytest.fixture
def shop(published, tmp_path):
    """A copy of the store with the release `tiny`, which has towers, users and popularity."""
    shutil.copytree(published / "store", tmp_path / "shop")
    return Store.open(tmp_path / "shop")
