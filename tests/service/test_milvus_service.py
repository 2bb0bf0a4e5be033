"""`vecall serve` with a real Milvus server: what a client sees while that server is frozen, killed and restarted."""

import os
import time

import numpy as np
import pytest
from support.server import ServerProcess, wait_until

from vecall.index import timing
from vecall.index.milvus import client, collection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.settings import IndexSettings
from vecall.pipeline.publish_vectors import publish_vectors

pytestmark = pytest.mark.milvus

N, D = 5000, 16
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((N, D)).astype(np.float32)
REQUEST = {"vector": RNG.standard_normal(D).tolist(), "k": 50, "explain": True}


@pytest.fixture
def service(milvus_server, tmp_path, monkeypatch):
    # The planner finds the server cheap: a catalogue this small would be scanned.
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)
    index = IndexSettings(engine="milvus", ks=(50,), milvus=MilvusSettings(build_stall_minutes=1))
    publish_vectors(tmp_path / "store", range(N), VECTORS, queries=VECTORS[:40], index=index)
    service = ServerProcess(tmp_path / "store", tmp_path / "log", environment=dict(os.environ))
    yield service
    service.drain()
    connection = client.acquire_connection(resolve_endpoint(MilvusSettings()))
    for name in connection.call("list_collections", timeout=30, action="cleaning up"):
        collection.drop(connection, name)
    client.release_connection(connection)


def recall(service):
    start = time.monotonic()
    status, answer = service.request("/v1/recall", REQUEST)
    return status, answer, time.monotonic() - start


def test_outages_are_answered_within_the_deadline_and_end_by_themselves(milvus_server, service):
    status, expected, _ = recall(service)
    assert (status, expected["plan"]["path"], len(expected["ids"])) == (200, "index", 50)

    milvus_server.freeze()
    try:
        for _ in range(6):
            status, answer, seconds = recall(service)
            assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
            assert seconds < 0.5
        assert service.request("/healthz")[0] == 200
    finally:
        milvus_server.thaw()
    wait_until(lambda: recall(service)[0] == 200, 30)

    milvus_server.kill()
    for _ in range(10):
        status, answer, seconds = recall(service)
        assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
        assert seconds < 0.5
    milvus_server.start()
    wait_until(lambda: recall(service)[0] == 200, 60)
    assert recall(service)[1]["ids"] == expected["ids"]
    assert service.request("/readyz")[0] == 200
