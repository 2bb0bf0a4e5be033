import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vecall.runtime.shared_memory import create_shared_file

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from vecall.runtime.shared_memory import SharedFile
SharedFile(**eval(sys.stdin.read())).map()[5] = 7
"""


def run_writer(file):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WRITER], input=repr(asdict(file)), text=True, env=environment, check=True)


def test_file_is_mapped_by_another_process_and_outlives_its_context():
    with create_shared_file(8) as file:
        memory = file.map()
        run_writer(file)
    assert memory[:] == bytes([0, 0, 0, 0, 0, 7, 0, 0])
    with pytest.raises(OSError):  # noqa: PT011 - of the system
        file.map()


def test_another_file_of_the_same_number_is_not_mapped():
    with create_shared_file(8) as file, pytest.raises(OSError, match="no such file"):
        replace(file, token=b"of another machine").map()


def test_file_has_no_name_and_takes_memory_only_where_it_is_written():
    with create_shared_file(2**40) as file:
        file.map()[2**39] = 1
        status = Path(f"/proc/self/fd/{file.descriptor}").stat()
        assert (status.st_nlink, status.st_size) == (0, 2**40 + 16)
        assert status.st_blocks * 512 <= 2**22


def test_system_without_anonymous_files_is_an_error(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="anonymous"), create_shared_file(8):
        pass
