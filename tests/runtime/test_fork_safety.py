"""A forked child has none of its parent's threads: what would hang is an error, and locks are its parent's alone."""

import copy
import multiprocessing as mp
import os
import pickle
import time
import warnings

import numpy as np
import polars as pl
import pytest

from vecall.errors import ForkError, VecallError
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.file_lock import file_lock

QUERY = Query(vector=[1.0, 0.0, 0.0], k=2)


@pytest.fixture
def store(tmp_path):
    publish_vectors(tmp_path / "store", [1, 2, 3], np.eye(3), attributes=pl.DataFrame({"n": [1, 2, 3]}), name="one")
    return tmp_path / "store"


def in_a_fork(work):
    """What `work` raises in a forked child, by name; it must end soon."""
    receive, send = mp.Pipe(duplex=False)

    def run():
        try:
            work()
            send.send("nothing")
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
            send.send(f"{type(error).__name__}: {error}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking with threads is what is tried
        child = mp.get_context("fork").Process(target=run, daemon=True)
        child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    child.join()
    assert not alive, "it hangs"
    return receive.recv()


@pytest.mark.parametrize("name", ["recall", "filter", "candidates", "upsert", "delete", "activate", "open", "publish"])
def test_what_would_hang_in_a_fork_is_an_error_that_says_what_to_do(store, name):
    with open_recaller(store, writable=True, auto_compact=False) as recaller:
        recaller.recall(QUERY)
        work = {
            "recall": lambda: recaller.recall(QUERY),
            "filter": lambda: recaller.recall(Query(vector=[1, 0, 0], where=[{"field": "n", "op": "gt", "value": 1}])),
            "candidates": lambda: recaller.candidates(QUERY),
            "upsert": lambda: recaller.upsert([{"id": 4, "vector": [1, 1, 1]}]),
            "delete": lambda: recaller.delete([1]),
            "activate": lambda: recaller.activate("one"),
            "open": lambda: open_recaller(store).recall(QUERY),
            "publish": lambda: publish_vectors(store, [1], np.eye(1)),
        }[name]
        raised = in_a_fork(work)
        assert raised.startswith("ForkError: this process was forked from one that had used vecall")
        assert "spawn" in raised
        assert "--preload" in raised
        assert issubclass(ForkError, VecallError)
        assert recaller.recall(QUERY).ids == [1, 2]  # the parent goes on


def test_a_child_holds_no_lock_of_its_parent(store):
    """Not while it lives, and not when its parent has been killed."""
    recaller = open_recaller(store, writable=True, auto_compact=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = mp.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
        child.start()
    recaller.close()
    open_recaller(store, writable=True, auto_compact=False).close()
    child.kill()
    child.join()


def test_a_lock_that_is_shared_on_purpose_outlives_its_holder(tmp_path):
    with file_lock(tmp_path / "lock", timeout=0, shared=True) as descriptor:
        copied = os.dup(descriptor)
    with pytest.raises(VecallError, match="held"), file_lock(tmp_path / "lock", timeout=0):
        pass
    os.close(copied)
    with file_lock(tmp_path / "lock", timeout=0):
        pass


def test_a_fork_within_a_lock_lets_nothing_go(tmp_path):
    """The child unwinds its parent's stack: the parent's lock stays."""
    with file_lock(tmp_path / "lock", timeout=0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            os._exit(_leave(tmp_path))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(VecallError, match="held"), file_lock(tmp_path / "lock", timeout=0):
            pass


def _leave(folder):
    try:
        with pytest.raises(VecallError, match="held"), file_lock(folder / "lock", timeout=0):
            pass
    except BaseException:  # noqa: BLE001 - the child may not go on as the test
        return 1
    return 0


def test_a_recaller_is_not_pickled_or_copied(store):
    with open_recaller(store) as recaller:
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="call open_recaller in each"):
                make(recaller)
