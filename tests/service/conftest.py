"""Stores, and services of them."""

import shutil

import numpy as np
import polars as pl
import pytest
from support import server

from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.index.settings import IndexSettings
from vecall.pipeline.publish import publish
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release

DEADLINE_MS = 5_000  # of requests whose time is not what is tested: on a busy machine the default may pass


@pytest.fixture
def shop(published, tmp_path):
    """A copy of the store with the release `tiny`, which has towers, users and popularity."""
    shutil.copytree(published / "store", tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def client(shop):
    with server.open_test_client(shop, deadline_ms=DEADLINE_MS) as client:
        yield client


@pytest.fixture
def index_shop(published_with_index, tmp_path):
    """A store whose recalls search the index; `shop` is so small that it is always scanned."""
    shutil.copytree(published_with_index, tmp_path / "indexed")
    return tmp_path / "indexed"


@pytest.fixture
def index_client(index_shop):
    with server.open_test_client(index_shop, deadline_ms=DEADLINE_MS) as client:
        yield client


@pytest.fixture(scope="module")
def readonly_shop(published, tmp_path_factory):
    """Like `shop`, for the tests of a module that change nothing."""
    return shutil.copytree(published / "store", tmp_path_factory.mktemp("readonly") / "shop")


@pytest.fixture(scope="module")
def readonly_client(readonly_shop):
    """Like `client`, for the tests of a module that change nothing: opening one takes longer than many requests."""
    with server.open_test_client(readonly_shop, deadline_ms=DEADLINE_MS) as client:
        yield client


@pytest.fixture(scope="module")
def readonly_index_client(published_with_index, tmp_path_factory):
    """Like `index_client`, for the tests of a module that change nothing."""
    store = shutil.copytree(published_with_index, tmp_path_factory.mktemp("readonly-indexed") / "indexed")
    with server.open_test_client(store, deadline_ms=DEADLINE_MS) as client:
        yield client


@pytest.fixture
def publish_users(tmp_path):
    """Factory of a store with twenty items and users with given integer ids, without towers."""

    def publish(ids):
        users = UserTable(
            build_id_map(pl.Series(ids), "integer"),
            pl.DataFrame(height=len(ids)),
            RaggedArray.from_lists([[0]] * len(ids)),
        )
        contents = ReleaseContents(
            item_ids=build_id_map(pl.Series(range(20)), "integer"),
            vectors=np.eye(20, 4, dtype=np.float32),
            attributes=pl.DataFrame(height=20),
            popularity=np.ones(20, dtype=np.float32),
            users=users,
        )
        store = Store.open_or_create(tmp_path / "users")
        with store.create_draft("first") as draft:
            draft.commit(write_release(draft.directory, contents, IndexSettings()), activate=True)
        return store.path

    return publish


@pytest.fixture
def publish_release(published):
    """Publish the same run into a store again, under another name."""
    return lambda store, name, *, activate: publish(published / "run", store, name=name, activate=activate)


@pytest.fixture
def start_server(tmp_path):
    """Factory of `vecall serve` processes, which are killed after the test."""
    servers = []

    def start(store, *options, **arguments):
        servers.append(server.ServerProcess(store, tmp_path / f"serve-{len(servers)}.log", *options, **arguments))
        return servers[-1]

    yield start
    for started in servers:
        started.stop()
