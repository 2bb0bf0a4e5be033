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
from vecall.release.file_lock import file_lock
with file_lock(Path(sys.argv[1]), timeout=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_locked_error_names_holder_and_its_death_releases_the_lock(tmp_path):
    path = tmp_path / "store.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LockedError, match=f"process {holder.pid}") as caught, file_lock(path, timeout=0):
                pass
            assert (caught.value.pid, caught.value.path) == (holder.pid, path)
        finally:
            holder.kill()
    path.write_text("123456789012\n")  # a dead holder with a longer process id may have left this
    with file_lock(path, timeout=0):
        assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_lock_is_acquired_once_its_holder_releases_it(tmp_path):
    entered, order = threading.Event(), []

    def hold_for_a_moment():
        with file_lock(tmp_path / "lock", timeout=0):
            entered.set()
            time.sleep(0.1)
            order.append("first")

    thread = threading.Thread(target=hold_for_a_moment)
    thread.start()
    entered.wait()
    with file_lock(tmp_path / "lock", timeout=5):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_exception_inside_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), file_lock(tmp_path / "lock", timeout=0):
        raise KeyError
    with file_lock(tmp_path / "lock", timeout=0):
        pass
