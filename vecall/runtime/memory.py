"""Memory of the machine and of this process, for estimates before a task starts and for reports after it."""

import os
import resource
import sys
from pathlib import Path

_MEMINFO_PATH = Path("/proc/meminfo")
_STATUS_PATH = Path("/proc/self/status")
# Limit, usage and statistics of the process's control group; version 2, then version 1.
_CGROUP_PATHS = (
    (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory.current"),
        Path("/sys/fs/cgroup/memory.stat"),
    ),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)


def available_memory_bytes() -> int:
    """Return the bytes that this process can still allocate; where that is unknown, the machine's physical memory."""
    known = get_free_memory_bytes()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known is None else known


def get_free_memory_bytes() -> int | None:
    """Return the bytes that this process can still allocate: the lesser of the machine's and its cgroup's free memory.

    Returns:
        The number of bytes, at least 0; None where neither is known.
    """
    readings = (_read_machine_free_bytes(), *(_read_cgroup_free_bytes(*paths) for paths in _CGROUP_PATHS))
    return min((max(free, 0) for free in readings if free is not None), default=None)


def total_memory_bytes() -> int:
    """Return the physical memory of the machine, or the limit of its cgroup if that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (_read_cgroup_limit(limit_path) for limit_path, _, _ in _CGROUP_PATHS)
    return min([physical, *(limit for limit in limits if limit is not None)])


def peak_rss_bytes() -> int:
    """Return the peak of this process's resident memory since it started."""
    try:
        lines = _STATUS_PATH.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux, where this would count what a parent had before it started this one
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _read_machine_free_bytes() -> int | None:
    try:
        lines = _MEMINFO_PATH.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read_cgroup_free_bytes(limit_path: Path, usage_path: Path, stat_path: Path) -> int | None:
    """Return the limit less the usage; file pages that the kernel would drop do not count as used."""
    limit = _read_cgroup_limit(limit_path)
    if limit is None:
        return None
    try:
        usage = int(usage_path.read_text(encoding="ascii"))
    except OSError:
        return None
    return limit - usage + _read_inactive_file_bytes(stat_path)


def _read_cgroup_limit(limit_path: Path) -> int | None:
    try:
        limit = limit_path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)


def _read_inactive_file_bytes(stat_path: Path) -> int:
    try:
        lines = stat_path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = dict(line.split() for line in lines)
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))  # version 1, version 2
