"""A real Milvus server, one for all tests that are marked `milvus`."""

import pytest
from support.milvus_server import TOKEN, start_server

from vecall.index.milvus.client import acquire_connection, release_connection
from vecall.index.milvus.endpoint import MilvusEndpoint


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """The server; killed at the end."""
    server = start_server(tmp_path_factory.mktemp("milvus"))
    yield server
    server.kill()


@pytest.fixture
def milvus_connection(milvus_server):
    """A connection to it, without collections; those of the test are dropped afterwards."""
    connection = acquire_connection(MilvusEndpoint(milvus_server.uri, token=TOKEN))
    yield connection
    for name in connection.call("list_collections", timeout=30, action="cleaning up"):
        connection.call("drop_collection", name, timeout=30, action="cleaning up")
    release_connection(connection)
