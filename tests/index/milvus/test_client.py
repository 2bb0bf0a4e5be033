import builtins
import re

import pytest
from support.fake_milvus import FakeMilvus, FakeMilvusError, FakeRpcError

from vecall.errors import ConfigError, EngineUnavailableError
from vecall.index.milvus import client, collection
from vecall.index.milvus.endpoint import MilvusEndpoint
from vecall.index.milvus.error_texts import describe_failure


@pytest.fixture
def server():
    return FakeMilvus()


@pytest.fixture
def opened(monkeypatch, server):
    """The endpoints that a new connection was opened to."""
    endpoints = []

    def connect(endpoint):
        endpoints.append(endpoint)
        return server.connect()

    monkeypatch.setattr(client, "_connect", connect)
    monkeypatch.setattr(client, "_pool", client._ConnectionPool())
    return endpoints


def test_users_of_one_endpoint_share_a_connection_until_the_last_gives_it_up(server, opened):
    endpoint = MilvusEndpoint("http://127.0.0.1:19530")
    connections = [client.acquire_connection(endpoint) for _ in range(3)]
    assert len(opened) == 1
    assert connections[0] is connections[1] is connections[2]
    for connection in connections[:2]:
        client.release_connection(connection)
    assert server.called() == []
    client.release_connection(connections[2])
    client.release_connection(connections[2])  # once too often
    assert server.called() == ["close"]
    client.acquire_connection(endpoint)
    assert len(opened) == 2


def test_endpoints_that_differ_in_the_token_have_connections_of_their_own(opened):
    for token in ("a", "b"):
        client.acquire_connection(MilvusEndpoint("http://127.0.0.1:19530", token=token))
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (FakeRpcError("UNAVAILABLE", "connection refused"), "UNAVAILABLE", "check that the server runs"),
        (FakeRpcError("DEADLINE_EXCEEDED", "Deadline Exceeded"), "DEADLINE_EXCEEDED", "raise index.milvus.timeout_ms"),
        (FakeRpcError("UNAUTHENTICATED", "auth check failure"), "UNAUTHENTICATED", "check VECALL_MILVUS_TOKEN"),
        (FakeMilvusError(65535, "auth check failure, please check"), "65535", "check VECALL_MILVUS_TOKEN"),
        (FakeMilvusError(2, "Fail connecting to server on h:1"), "2", "check that the server runs"),
        (FakeMilvusError(101, "collection not loaded"), "101", "the server loads it"),
        (FakeMilvusError(100, "can't find collection"), "100", "activate or publish another release"),
        (FakeMilvusError(65535, "no space left on device"), "65535", "look at the server's log"),
    ],
)
def test_failures_say_what_came_what_was_expected_and_what_to_do(server, error, code, advice):
    server.failures["flush"] = error
    with pytest.raises(EngineUnavailableError) as error_info:
        collection.flush(server.connect(), "vecall_x", timeout=3)
    text = str(error_info.value)
    assert re.search(
        rf"Milvus at http://127.0.0.1:19530: flushing collection vecall_x failed after 0\.\d\d s \({code}: .*\); "
        r"expected an answer within 3 s: ",
        text,
    )
    assert advice in text


def test_reason_why_connecting_failed_is_told():
    error = FakeMilvusError(2, "Fail connecting to server, illegal connection params or server unavailable")
    error.__cause__ = FakeRpcError("UNAUTHENTICATED", "auth check failure, please check username")
    text = describe_failure(error, "connecting", MilvusEndpoint("http://127.0.0.1:1"), timeout=5)
    assert text.endswith(
        "(UNAUTHENTICATED: auth check failure, please check username); expected an answer within 5 s: "
        "check VECALL_MILVUS_TOKEN, and that its user may use this database"
    )


def test_long_texts_of_the_server_are_cut_and_the_token_is_left_out(server):
    server.failures["flush"] = FakeMilvusError(1, "user root:hunter2 with hunter2\n" + "x in [" + "1," * 10_000)
    with pytest.raises(EngineUnavailableError) as error_info:
        collection.flush(server.connect(token="root:hunter2"), "c", timeout=3)
    assert len(str(error_info.value)) < 700
    assert "hunter2" not in str(error_info.value)
    assert "\n" not in str(error_info.value)
    assert error_info.value.__cause__ is None


def test_mistakes_of_the_caller_are_not_taken_for_failures_of_the_server(server):
    server.failures["flush"] = TypeError("a bug")
    with pytest.raises(TypeError):
        collection.flush(server.connect(), "c", timeout=3)


def test_missing_package_is_reported_with_the_extra_that_has_it(monkeypatch):
    real_import = builtins.__import__

    def fail(name, *arguments, **options):
        if name.partition(".")[0] == "pymilvus":
            raise ModuleNotFoundError("No module named 'pymilvus'", name="pymilvus")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ConfigError, match=r"index\.engine: engine 'milvus' requires pymilvus.*vecall\[milvus\]"):
        client.acquire_connection(MilvusEndpoint("http://127.0.0.1:1"))
