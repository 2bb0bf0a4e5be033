"""Fixtures that tests of several directories share, made once per session."""

import logging
import signal

import pytest
from hypothesis import HealthCheck, settings

# On a loaded machine examples are slow, and the first one of a process may wait for an import.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _restore_logging():
    """Commands that are run in this process configure the loggers; neither this test nor the next must notice.

    Also a fixture of a larger scope may have run a command: the levels are set before the test, not remembered.
    """
    root, package = logging.getLogger(), logging.getLogger("vecall")

    def set_default_levels():
        root.setLevel(logging.WARNING)
        package.setLevel(logging.NOTSET)

    set_default_levels()
    handlers = list(root.handlers)
    yield
    set_default_levels()
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def _keep_priority():
    """`vecall compact` lowers the priority of its process, which here is that of all tests to come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.nice", lambda _: 0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _receive_hangups():
    """Under nohup the processes that tests start would ignore the signal of a closed terminal."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A directory with the synthetic tables, a finished run of them in `run` and its release `tiny` in `store`."""
    from support import synthetic

    from vecall.pipeline.fit import fit
    from vecall.pipeline.publish import publish

    directory = tmp_path_factory.mktemp("published")
    synthetic.write_tables(directory)
    config = synthetic.make_config(directory)
    fit(config, directory / "run")
    publish(directory / "run", directory / "store", name="tiny")
    return directory


@pytest.fixture(scope="session")
def published_with_index(published, tmp_path_factory):
    """A store of the same run whose recalls search an index; a catalogue this small would normally be scanned."""
    import json
    import shutil

    from vecall.index import tuning
    from vecall.index.planner import CostModel
    from vecall.pipeline.publish import publish

    directory = tmp_path_factory.mktemp("published-with-index")
    shutil.copytree(published / "run", directory / "run")
    config = json.loads((directory / "run" / "config.json").read_text())
    config["index"] |= {"engine": "hnsw"}
    (directory / "run" / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuning,
            "_fit_cost_model",
            lambda *_: CostModel(fixed_ms=0.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=1.0),
        )
        publish(directory / "run", directory / "store", name="tiny")
    return directory / "store"


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """A real Milvus server, one for all tests that are marked `milvus`; the environment names it."""
    from support.milvus_server import TOKEN, start_server

    server = start_server(tmp_path_factory.mktemp("milvus"))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VECALL_MILVUS_URI", server.uri)
            patch.setenv("VECALL_MILVUS_TOKEN", TOKEN)
            yield server
    finally:
        server.kill()


@pytest.fixture
def fake_milvus(monkeypatch):
    """A fake Milvus server that every connection of this test reaches."""
    from support.fake_milvus import FakeMilvus

    from vecall.index.milvus import client, collection, hnsw_index

    server = FakeMilvus()
    monkeypatch.setattr(client, "_connect", server.connect_to)
    monkeypatch.setattr(client, "_pool", client._ConnectionPool())
    monkeypatch.setattr(hnsw_index, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(collection, "_LOAD_POLL_SECONDS", 0.001)
    return server
