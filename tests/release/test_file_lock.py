import os
import subprocess
import sys
import threading
import time

import pytest

from vecall.errors import LockedError
from vecall.release.file_lock import file_lock

HOLDER = """
import sys, time
from pathlib import Path
from vecall.release.locks import hold
with hold(Path(sys.argv[1]), timeout=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path):
    path = tmp_path / "store.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"process {holder.pid}") as locked, file_lock(path, timeout=0):
                pass
            assert (locked.value.pid, locked.value.path) == (holder.pid, path)
        finally:
            holder.kill()
    path.write_text("123456789012\n")  # what a holder with a longer number could have left
    with file_lock(path, timeout=0):
        assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_a_lock_is_waited_for(tmp_path):
    entered, order = threading.Event(), []

    def first():
        with file_lock(tmp_path / "lock", timeout=0):
            entered.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with file_lock(tmp_path / "lock", timeout=5):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(KeyError), file_lock(tmp_path / "lock", timeout=0):
        raise KeyError
    with file_lock(tmp_path / "lock", timeout=0):
        pass
