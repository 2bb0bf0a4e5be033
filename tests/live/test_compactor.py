"""Automatic compaction: when it starts, its child process, and the switch to the compacted release."""

import json
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.server import wait_until

from vecall.errors import StoreError
from vecall.live import compactor as compactor_module
from vecall.live import switching
from vecall.live.compactor import Compactor, should_compact
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller

N = 1_200
VECTORS = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("is_due", "numbers"),
    [
        (False, {"delta_items": 19_999}),
        (True, {"delta_items": 20_000}),
        (False, {"delta_items": 29_999, "expected_arrivals": 30_000.0}),  # otherwise the next one would follow at once
        (True, {"delta_items": 30_000, "expected_arrivals": 30_000.0}),
        (True, {"delta_items": 50_000, "expected_arrivals": 1e9}),  # half full: there is room for what arrives
        (False, {"delta_items": 499, "max_delta_items": 1_000}),
        (True, {"delta_items": 500, "max_delta_items": 1_000}),
        (False, {"tombstones": 99_999}),
        (True, {"tombstones": 100_000}),
        (False, {"tombstones": 99, "base_items": 100}),
        (True, {"tombstones": 100, "base_items": 100}),
        (False, {"base_items": 1}),
    ],
)
def test_compaction_is_due_from_a_number_of_changes(is_due, numbers):
    defaults = {
        "delta_items": 0,
        "tombstones": 0,
        "base_items": 1_000_000,
        "expected_arrivals": 0.0,
        "max_delta_items": 100_000,
    }
    assert should_compact(**defaults | numbers) == is_due


@pytest.fixture
def store(make_store):
    return make_store(range(N), VECTORS)


@pytest.fixture
def compact_early(monkeypatch):
    """Return a function that lets a compaction start at a number of tombstones."""

    def set_min_tombstones(count):
        monkeypatch.setattr(compactor_module, "_MIN_TOMBSTONES", count)
        monkeypatch.setattr(compactor_module, "_MAX_TOMBSTONE_SHARE", 0.0)

    return set_min_tombstones


def test_writer_switches_to_its_compaction_while_it_reads_and_writes(store):
    with open_recaller(store.path, writable=True) as recaller:
        is_notified = threading.Event()
        recaller.live_index.on_compaction_served = is_notified.set
        recaller.upsert([{"id": 5_000, "vector": [1, 1, 1, 1]}])
        recaller.delete(range(N // 10 - 1))
        assert recaller.live_index._compactor._thread is None
        recaller.delete([N - 1])  # now a tenth of the base is deleted
        written = 0
        while recaller.release == "one":
            recaller.upsert([{"id": 6_000 + written, "vector": [2, 2, 2, 2]}])
            written += 1
            assert len(recaller.recall(Query(vector=[1, 1, 1, 1], k=10**6)).ids) == N - N // 10 + 1 + written
            time.sleep(0.02)
        snapshot = recaller.live_index.snapshot
        assert store.get_current().release == recaller.release
        assert snapshot.tombstone_count == 0
        assert snapshot.delta.live_count < written
        assert snapshot.delta.live_count + snapshot.release.vectors.size == N - N // 10 + 1 + written
        manifest = snapshot.release.manifest
        assert (manifest.parent, manifest.journal_seq + snapshot.delta.live_count) == ("one", snapshot.seq)
        assert len(store.list_releases()) == 2
        assert is_notified.wait(10)


def test_after_a_failure_a_compaction_waits_for_more_changes(store, compact_early, monkeypatch, caplog):
    compact_early(10)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING, "vecall"), open_recaller(store.path, writable=True) as recaller:
        recaller.delete(range(10))
        compactor = recaller.live_index._compactor
        first = compactor._thread
        first.join()
        assert (
            "compaction of release one failed and waits for more changes: `vecall compact` exited with 1" in caplog.text
        )
        recaller.delete([10])
        assert compactor._thread is first
        recaller.delete([11])  # now there are more than 10 % more changes
        assert compactor._thread is not first
        compactor._thread.join()
        assert recaller.release == "one"
        compactor._retry_time = time.monotonic()  # as ten minutes later
        last = compactor._thread
        recaller.upsert([{"id": 5_000, "vector": [1, 1, 1, 1]}])
        assert compactor._thread is not last


def test_closing_terminates_a_running_compaction(store, compact_early, monkeypatch):
    compact_early(1)
    slow = store.path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    recaller = open_recaller(store.path, writable=True)
    recaller.delete([1])
    compactor = recaller.live_index._compactor
    wait_until(lambda: compactor._child is not None)
    child = compactor._child
    assert child.poll() is None
    start = time.monotonic()
    recaller.close()
    assert child.poll() is not None
    assert not compactor._thread.is_alive()
    assert time.monotonic() - start < 5
    open_recaller(store.path, writable=True).close()


def test_closed_compactor_starts_nothing(store, compact_early):
    """A write that ends while its recaller is closed may still ask for a compaction."""
    compact_early(1)
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete([1])
        compactor = Compactor(store.path, lambda *_: None, 100)
        compactor.close()
        compactor.maybe_start(recaller.live_index.snapshot)
        assert compactor._thread is None
        compactor.close()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl exists on Linux only")
def test_compaction_process_ends_when_its_server_is_killed():
    child = "from vecall.live.compactor import exit_with_parent; import time; exit_with_parent(); print(1, flush=True)"
    server = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child + '; time.sleep(60)'!r}])"
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        process.kill()
        start = time.monotonic()
        assert process.stdout.read() == b""  # the child keeps the pipe open while it lives
        assert time.monotonic() - start < 30


def test_no_compaction_starts_without_auto_compact(store, compact_early):
    compact_early(1)
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete([1])
        assert recaller.live_index._compactor is None


def test_compaction_of_a_release_that_is_not_served_is_not_switched_to(store):
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.live_index.switch_to_compacted("another", "one")
        recaller.live_index.switch_to_compacted("one", "one")
        assert recaller.release == "one"


def test_compact_command_runs_with_low_priority_and_without_torch(store):
    with open_recaller(store.path, writable=True) as recaller:
        recaller.delete([0])
        code = (
            "import atexit, faiss, os, sys; sys.argv = ['vecall', *sys.argv[1:]]; from vecall.cli.app import main;"
            "facts = lambda: print(os.nice(0), faiss.omp_get_max_threads(), 'torch' in sys.modules, file=sys.stderr);"
            "atexit.register(facts); main()"
        )
        command = [sys.executable, "-c", code, "compact", "--store", store.path, "--name", "two", "--json"]
        completed = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(completed.stdout) == {
            "release": "two",
            "store": str(store.path),
            "items": N - 1,
            "dim": 4,
            "ann": None,
        }
        assert completed.stderr.split()[-3:] == ["19", "1", "False"]
        assert store.get_current().release == "two"
        recaller.delete([1])
        command[-3:] = ["--no-activate"]
        assert "items of 4 dimensions" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert store.get_current().release == "two"
        assert [manifest.items for manifest in store.list_releases()] == [N - 2, N - 1, N]


@pytest.mark.parametrize("error", [StoreError("too little memory"), MemoryError()])
def test_compaction_that_does_not_fit_is_tried_again_before_another_is_written(
    store, compact_early, monkeypatch, error
):
    """Otherwise each would leave a release in the store, until the disk is full."""

    def refuse(*_args):
        raise error

    compact_early(10)
    with open_recaller(store.path, writable=True) as recaller:
        compactor = recaller.live_index._compactor

        def delete_and_wait(count):
            compactor._retry_time = time.monotonic()  # as long after a failure
            recaller.delete(range(count))
            compactor._thread.join()
            return recaller.release == "one", len(store.list_releases()), compactor._failure_count

        with monkeypatch.context() as patch:
            patch.setattr(switching, "check_memory", refuse)
            assert delete_and_wait(10) == (True, 2, 1)
            assert delete_and_wait(11) == (True, 2, 2)
            assert compactor._retry_time > time.monotonic() + 1.5 * compactor_module._RETRY_SECONDS
        assert delete_and_wait(12) == (False, 2, 0)
        assert (recaller.live_index.snapshot.tombstone_count, compactor._unserved) == (2, ("", ""))


def test_compaction_that_could_not_be_switched_to_and_was_pruned_is_written_again(store, compact_early, monkeypatch):
    compact_early(10)
    with open_recaller(store.path, writable=True) as recaller:
        compactor = recaller.live_index._compactor
        with monkeypatch.context() as patch:
            patch.setattr(switching, "check_memory", refuse)
            recaller.delete(range(10))
            compactor._thread.join()
        store.prune(0)
        compactor._retry_time = time.monotonic()
        recaller.delete([10])
        compactor._thread.join()
        assert (recaller.release == "one", compactor._failure_count) == (False, 0)


def test_writers_of_a_store_share_what_could_not_be_switched_to(store, tmp_path):
    def refuse_switch(*_args):
        raise StoreError("too little memory")

    lock_path, served = tmp_path / "writer.lock", []
    first, second = (
        Compactor(store.path, on_compacted, 100, write_lock_path=lock_path)
        for on_compacted in (refuse_switch, lambda *names: served.append(names))
    )
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.delete([1])
        first._run("one", 1, 1)
        (compacted, _) = store.list_releases()
        second._run("one", 1, 1)
        assert served == [("one", compacted.name)]
        assert len(store.list_releases()) == 2
        assert second._find_unserved("one") is None


def refuse(*_args):
    raise StoreError("too little memory")
