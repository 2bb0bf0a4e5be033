"""When a compaction starts, and the process that does it."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from vecall.live import compactor as compaction_file
from vecall.live.compactor import should_compact
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

N = 1_200
VECTORS = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("due", "numbers"),
    [
        (False, {"held": 19_999}),
        (True, {"held": 20_000}),
        (False, {"held": 29_999, "arriving": 30_000.0}),  # or the next one would follow at once
        (True, {"held": 30_000, "arriving": 30_000.0}),
        (True, {"held": 50_000, "arriving": 1e9}),  # while there is room for what arrives
        (False, {"held": 499, "delta_max": 1_000}),
        (True, {"held": 500, "delta_max": 1_000}),
        (False, {"tombstones": 99_999}),
        (True, {"tombstones": 100_000}),
        (False, {"tombstones": 99, "base": 100}),
        (True, {"tombstones": 100, "base": 100}),
        (False, {"base": 1}),
    ],
)
def test_when_it_is_due(due, numbers):
    usual = {"held": 0, "tombstones": 0, "base": 1_000_000, "arriving": 0.0, "delta_max": 100_000}
    assert should_compact(**usual | numbers) == due


@pytest.fixture
def store(store_of):
    return store_of(range(N), VECTORS)


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_server_goes_over_to_what_was_compacted(store):
    with open_recaller(store.path, writable=True) as recaller:
        recaller.upsert([{"id": 5_000, "vector": [1, 1, 1, 1]}])
        recaller.delete(range(N // 10 - 1))
        assert recaller.live_index._compactor._thread is None
        recaller.delete([N - 1])  # the tenth of the base
        written = 0
        while recaller.release == "one":  # writes and reads go on
            recaller.upsert([{"id": 6_000 + written, "vector": [2, 2, 2, 2]}])
            written += 1
            assert len(recaller.recall(Query(vector=[1, 1, 1, 1], k=2_000)).ids) == N - N // 10 + 1 + written
            time.sleep(0.02)
        view = recaller.live_index.snapshot
        assert (store.current().release, view.tombstone_count, view.delta.live_count < written) == (
            recaller.release,
            0,
            True,
        )
        assert view.delta.live_count + view.release.index.size == N - N // 10 + 1 + written
        manifest = view.release.manifest
        assert (manifest.parent, manifest.journal_seq + view.delta.live_count) == ("one", view.seq)
        assert len(store.releases()) == 2


def test_a_compaction_that_fails_waits_for_more(store, monkeypatch, caplog):
    monkeypatch.setattr(compaction_file, "_TOMBSTONES_FROM", 10)
    monkeypatch.setattr(compaction_file, "_TOMBSTONE_SHARE", 0.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING, "vecall"), open_recaller(store.path, writable=True) as recaller:
        recaller.delete(range(10))
        compactor = recaller.live_index._compactor
        first = compactor._thread
        first.join()
        assert "compaction of release one failed, and waits for more changes: exit 1" in caplog.text
        recaller.delete([10])
        assert compactor._thread is first
        recaller.delete([11])  # a tenth more, and one
        assert compactor._thread is not first
        compactor._thread.join()
        assert recaller.release == "one"


def test_closing_ends_it(store, monkeypatch):
    monkeypatch.setattr(compaction_file, "_TOMBSTONES_FROM", 1)
    monkeypatch.setattr(compaction_file, "_TOMBSTONE_SHARE", 0.0)
    slow = store.path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    recaller = open_recaller(store.path, writable=True)
    recaller.delete([1])
    wait_for(lambda: recaller.live_index._compactor._child is not None)
    child = recaller.live_index._compactor._child
    assert child.poll() is None
    began = time.monotonic()
    recaller.close()
    assert child.poll() is not None
    assert not recaller.live_index._compactor._thread.is_alive()
    assert time.monotonic() - began < 5
    open_recaller(store.path, writable=True).close()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_ends_with_a_server_that_is_killed():
    child = "from vecall.live.compactor import end_with_parent; import time; end_with_parent(); print(1, flush=True)"
    server = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child + '; time.sleep(60)'!r}])"
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"1\n"
        killed.kill()
        began = time.monotonic()
        assert killed.stdout.read() == b""  # which the child holds open while it lives
        assert time.monotonic() - began < 30


def test_not_without_being_asked(store, monkeypatch):
    monkeypatch.setattr(compaction_file, "_TOMBSTONES_FROM", 1)
    monkeypatch.setattr(compaction_file, "_TOMBSTONE_SHARE", 0.0)
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete([1])
        assert recaller.live_index._compactor is None


def test_who_went_elsewhere_is_left_there(store):
    """The compaction of a release that is not served any more is not gone over to."""
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.live_index.switch_to_compacted("another", "one")
        recaller.live_index.switch_to_compacted("one", "one")
        assert recaller.release == "one"


def test_the_command(store):
    """A fresh interpreter, at low priority, and without torch."""
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([0])
        code = (
            "import sys, os; sys.argv = ['vecall', *sys.argv[1:]]; from vecall.cli.app import main; import faiss;"
            "import atexit;atexit.register(lambda: print(os.nice(0), faiss.omp_get_max_threads(), 'torch' in sys.modules, "
            "file=sys.stderr)); main()"
        )
        command = [sys.executable, "-c", code, "compact", "--store", store.path, "--name", "two", "--json"]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(made.stdout) == {
            "release": "two",
            "store": str(store.path),
            "items": N - 1,
            "dim": 4,
            "ann": None,
        }
        assert made.stderr.split()[-3:] == ["19", "1", "False"]
        assert store.current().release == "two"
        recaller.delete([1])
        command[-3:] = ["--no-activate"]
        assert "items of 4 dimensions" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert store.current().release == "two"
        assert [one.items for one in store.releases()] == [N - 2, N - 1, N]
