"""Whether a second release has room in memory beside the one that is served."""

from pathlib import Path

from vecall.errors import StoreError
from vecall.release.manifest import Manifest

_MEMINFO_PATH = Path("/proc/meminfo")
_CGROUP_LIMIT_PATH, _CGROUP_USAGE_PATH = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_HEADROOM_FACTOR = 1.1  # times its files: hash tables of ids, buffers of the loaders


def check_memory(manifest: Manifest, process_count: int = 1) -> None:
    """See that a release can be opened beside what is there.

    Args:
        manifest: its.
        process_count: processes that will open it at the same time.

    Raises:
        StoreError: it needs more than is free, as far as the system tells.
    """
    needed, free = round(_HEADROOM_FACTOR * manifest.total_bytes) * process_count, get_free_memory_bytes()
    if free is not None and needed > free:
        raise StoreError(
            f"release {manifest.name!r} needs about {needed:,} bytes beside the one that is served, and {free:,} are "
            "free: give the process more memory, or stop it, activate the release and start it again"
        )


def get_free_memory_bytes() -> int | None:
    """Bytes that this process may still take, by the machine and by its control group; None where neither tells."""
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
        most, used = (
            _CGROUP_LIMIT_PATH.read_text(encoding="ascii").strip(),
            _CGROUP_USAGE_PATH.read_text(encoding="ascii"),
        )
    except OSError:
        return None
    return None if most == "max" else int(most) - int(used)
