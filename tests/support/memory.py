"""Peak memory of a piece of code, measured in a child process.

The child is forked: starting an interpreter and importing torch anew would take longer than most of what is measured.
Parallel regions of OpenMP would wait for threads that a forked child lacks, so the code must run on one thread.
"""

import ctypes
import gc
import os
import pickle
import re
import traceback
import warnings
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt; a threshold that is set no longer grows


def read_memory_bytes(field):
    """Memory of this process: `field` is "VmRSS" for the resident memory now, "VmHWM" for its peak."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def _return_freed_memory():
    """Give the system what earlier tests have freed: the code would take it again, and its peak seem lower."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    # Without it the allocator keeps ever larger arrays for reuse, so that a peak depends on the tests before.
    libc.mallopt(_M_MMAP_THRESHOLD, 2**20)


def reset_peak():
    """Let the peak of this process start at its present memory; one process's peak also includes its parent's."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_peak_bytes(run, prepare=lambda: None):
    """Peak memory of `run(prepare())` beyond the memory before, with files that are mapped, in a child process.

    Args:
        run: called with the result of `prepare`.
        prepare: its result does not count; called in the child.

    Raises:
        AssertionError: the child failed.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks where there are threads
        pid = os.fork()
    if pid == 0:
        _measure_and_exit(run, prepare, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child failed with status {status}; its error is on stderr"
    return pickle.loads(result)


def _measure_and_exit(run, prepare, writer):
    status = 1
    try:
        import torch

        torch.set_num_threads(1)
        _return_freed_memory()
        prepared = prepare()
        reset_peak()
        before = read_memory_bytes("VmRSS")
        run(prepared)
        os.write(writer, pickle.dumps(read_memory_bytes("VmHWM") - before))
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
        traceback.print_exc()
    finally:
        os._exit(status)
