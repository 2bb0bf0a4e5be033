"""The cache of compiled kernels: one process at a time reads or writes it."""

import fcntl
import importlib.util
import os
from threading import Thread

from vecall.runtime.numba_cache import compile_cached


def load_kernel(directory):
    source = directory / "doubled.py"
    source.write_text("def double(value):\n    return 2 * value\n")
    spec = importlib.util.spec_from_file_location("doubled", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return compile_cached()(module.double)


def test_kernel_waits_while_another_process_has_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    results = []
    other = os.open(cache, os.O_RDONLY)  # its lock is apart from the kernel's, as that of another process
    fcntl.flock(other, fcntl.LOCK_EX)
    kernel = load_kernel(tmp_path)
    thread = Thread(target=lambda: results.append(kernel(1.5)))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    assert not list(cache.glob("*.nb?"))
    os.close(other)
    thread.join(60.0)
    assert results == [3.0]
    assert list(cache.glob("*.nbi"))
    assert kernel.stats.cache_misses
    again = load_kernel(tmp_path)
    assert (again(2.5), len(again.stats.cache_hits)) == (5.0, 1)


def test_kernel_runs_where_the_directory_of_its_cache_is_gone(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    kernel = load_kernel(tmp_path)
    for path in (tmp_path / "__pycache__").glob("*"):
        path.unlink()
    (tmp_path / "__pycache__").rmdir()
    assert kernel(2) == 4
