"""Forked children: what would deadlock in them raises an error, and they hold no lock of their parent."""

import copy
import multiprocessing as mp
import os
import pickle
import time
import warnings
from contextlib import contextmanager

import numpy as np
import polars as pl
import pytest

from vecall.data.table_encoder import TableEncoder
from vecall.errors import ForkError, VecallError
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.file_lock import file_lock
from vecall.schema import CategoryFeature

QUERY = Query(vector=[1.0, 0.0, 0.0], k=2)


@pytest.fixture
def store(tmp_path):
    publish_vectors(tmp_path / "store", [1, 2, 3], np.eye(3), attributes=pl.DataFrame({"n": [1, 2, 3]}), name="one")
    return tmp_path / "store"


@contextmanager
def allow_fork():
    """Silence the warning about forks of a process that has threads, which these tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_in_fork(work):
    """Run a function in a forked child; returns the text of the error that it raises, "none" without one."""
    receiver, sender = mp.Pipe(duplex=False)

    def run():
        try:
            work()
            sender.send("none")
        except BaseException as error:  # noqa: BLE001 - reported to the parent
            sender.send(f"{type(error).__name__}: {error}")

    with allow_fork():
        child = mp.get_context("fork").Process(target=run, daemon=True)
        child.start()
    child.join(20)
    is_alive = child.is_alive()
    child.kill()
    child.join()
    assert not is_alive, "the child hangs"
    return receiver.recv()


@pytest.mark.parametrize(
    "name", ["recall", "filter", "candidates", "upsert", "delete", "activate", "open", "publish", "encode"]
)
def test_operation_in_forked_child_raises_fork_error(store, name):
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        recaller.recall(QUERY)
        frame = pl.DataFrame({"c": ["a", "b"]})
        encoder = TableEncoder.fit({"c": CategoryFeature()}, frame)
        work = {
            "recall": lambda: recaller.recall(QUERY),
            "filter": lambda: recaller.recall(Query(vector=[1, 0, 0], where=[{"field": "n", "op": "gt", "value": 1}])),
            "candidates": lambda: recaller.candidates(QUERY),
            "upsert": lambda: recaller.upsert([{"id": 4, "vector": [1, 1, 1]}]),
            "delete": lambda: recaller.delete([1]),
            "activate": lambda: recaller.activate("one"),
            "open": lambda: open_recaller(store).recall(QUERY),
            "publish": lambda: publish_vectors(store, [1], np.eye(1)),
            "encode": lambda: encoder.encode(frame),  # in a worker of a DataLoader
        }[name]
        error = run_in_fork(work)
        assert error.startswith("ForkError: this process was forked from one that had used vecall")
        assert "spawn" in error
        assert "--preload" in error
        assert issubclass(ForkError, VecallError)
        assert recaller.recall(QUERY).ids == [1, 2]  # the parent still answers


def test_forked_child_holds_no_lock_of_its_parent(store):
    """The parent's writer lock is free once the parent closes it, while the child is still alive."""
    recaller = open_recaller(store, writable=True, auto_compact=False)
    with allow_fork():
        child = mp.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
        child.start()
    recaller.close()
    open_recaller(store, writable=True, auto_compact=False).close()
    child.kill()
    child.join()


def test_inheritable_lock_is_held_until_its_last_descriptor_is_closed(tmp_path):
    with file_lock(tmp_path / "lock", timeout=0, inheritable=True) as descriptor:
        duplicate = os.dup(descriptor)
    with pytest.raises(VecallError, match="held"), file_lock(tmp_path / "lock", timeout=0):
        pass
    os.close(duplicate)
    with file_lock(tmp_path / "lock", timeout=0):
        pass


def test_fork_within_a_lock_releases_nothing(tmp_path):
    """The child unwinds the parent's stack, but the parent keeps its lock."""
    with file_lock(tmp_path / "lock", timeout=0):
        with allow_fork():
            pid = os.fork()
        if pid == 0:
            os._exit(_check_lock_is_held(tmp_path))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(VecallError, match="held"), file_lock(tmp_path / "lock", timeout=0):
            pass


def _check_lock_is_held(directory):
    """Return the exit code of the child: 0 if the lock is held."""
    try:
        with pytest.raises(VecallError, match="held"), file_lock(directory / "lock", timeout=0):
            pass
    except BaseException:  # noqa: BLE001 - the child must not continue as the test
        return 1
    return 0


def test_recaller_cannot_be_pickled_or_copied(store):
    with open_recaller(store) as recaller:
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="call open_recaller in each"):
                duplicate(recaller)
