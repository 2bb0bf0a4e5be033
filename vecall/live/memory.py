"""Check that a second release fits into memory beside the one that is served."""

from pathlib import Path

from vecall.errors import StoreError
from vecall.release.manifest import Manifest

_MEMINFO_PATH = Path("/proc/meminfo")
_CGROUP_LIMIT_PATH, _CGROUP_USAGE_PATH = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_HEADROOM_FACTOR = 1.1  # times the size of a release's files: hash tables of ids, buffers of the loaders


def check_memory(manifest: Manifest, process_count: int = 1) -> None:
    """Check that there is enough free memory to open a release.

    Args:
        manifest: the release's manifest.
        process_count: number of processes that open the release at the same time.

    Raises:
        StoreError: the release needs more memory than is free. Never raised where the free memory is unknown.
    """
    needed, free = round(_HEADROOM_FACTOR * manifest.total_bytes) * process_count, get_free_memory_bytes()
    if free is not None and needed > free:
        raise StoreError(
            f"release {manifest.name!r} needs about {needed:,} bytes of memory beside the served release, and "
            f"{free:,} are free: give the process more memory, or stop it, activate the release and start it again"
        )


def get_free_memory_bytes() -> int | None:
    """Return the bytes that this process can still allocate: the lesser of the machine's and its cgroup's free memory.

    Returns:
        The number of bytes; None where neither is known.
    """
    known = [free for free in (_read_machine_free_bytes(), _read_cgroup_free_bytes()) if free is not None]
    return min(known, default=None)


def _read_machine_free_bytes() -> int | None:
    try:
        lines = _MEMINFO_PATH.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read_cgroup_free_bytes() -> int | None:
    try:
        limit = _CGROUP_LIMIT_PATH.read_text(encoding="ascii").strip()
        usage = _CGROUP_USAGE_PATH.read_text(encoding="ascii")
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(usage)
