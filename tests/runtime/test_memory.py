import os
from pathlib import Path

import pytest

from vecall.runtime import memory
from vecall.runtime.memory import available_memory_bytes, get_free_memory_bytes, peak_rss_bytes

NOWHERE = Path("/nowhere")


@pytest.fixture
def set_files(tmp_path, monkeypatch):
    """Function that replaces the files that are read: of the machine, and limit, usage and statistics of the cgroup."""

    def replace(meminfo, *cgroup):
        paths = []
        for number, content in enumerate((meminfo, *cgroup)):
            paths.append(NOWHERE if content is None else tmp_path / str(number))
            if content is not None:
                paths[-1].write_text(content)
        monkeypatch.setattr(memory, "_MEMINFO_PATH", paths[0])
        monkeypatch.setattr(memory, "_CGROUP_PATHS", (tuple(paths[1:]),) if cgroup else ())

    return replace


MEMINFO = "MemTotal: 9 kB\nMemAvailable:   4 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((MEMINFO, "5000\n", "2000\n", None), 3_000),
        ((MEMINFO, "5000\n", "2000\n", "anon 7\ninactive_file 500\n"), 3_500),
        ((MEMINFO, "5000\n", "2000\n", "inactive_file 1\ntotal_inactive_file 600\n"), 3_600),  # version 1
        ((MEMINFO, "max\n", "2000\n", None), 4_096),
        ((MEMINFO, "5000\n", "6000\n", None), 0),
        ((MEMINFO,), 4_096),
        ((None, "5000\n", "2000\n", None), 3_000),
        ((None,), None),
    ],
)
def test_free_memory_is_the_lesser_of_machine_and_cgroup(set_files, files, expected):
    set_files(*files)
    assert get_free_memory_bytes() == expected


def test_available_memory_is_the_physical_memory_where_the_free_one_is_unknown(set_files):
    assert 2**20 < available_memory_bytes() < 2**50
    set_files(None)
    assert available_memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("is_linux", [True, False])
def test_peak_memory_covers_what_is_held(monkeypatch, is_linux):
    if not is_linux:
        monkeypatch.setattr(memory, "_STATUS_PATH", NOWHERE)
    held = bytearray(b"x" * 2**26)
    peak = peak_rss_bytes()
    assert len(held) < peak < 2**50
    del held
    assert peak_rss_bytes() >= peak
