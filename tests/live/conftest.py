"""Fixtures: small stores to be changed."""

import shutil

import numpy as np
import pytest

from vecall.pipeline.publish_vectors import publish_vectors
from vecall.release.release import open_release
from vecall.release.store import Store


@pytest.fixture
def make_store(tmp_path):
    """Return a function that publishes release `one` of the given vectors, and returns the store."""

    def make(ids, vectors, **options):
        publish_vectors(tmp_path / "store", ids, np.asarray(vectors, dtype=np.float32), name="one", **options)
        return Store.open(tmp_path / "store")

    return make


@pytest.fixture
def make_release(make_store):
    """Return a function that publishes vectors as `make_store` does, and returns the opened release."""
    return lambda *args, **options: open_release(make_store(*args, **options))


@pytest.fixture
def shop(published, tmp_path):
    """A copy of the store with the release `tiny`, which has towers, users and popularity."""
    shutil.copytree(published / "store", tmp_path / "shop")
    return Store.open(tmp_path / "shop")
