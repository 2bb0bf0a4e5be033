"""Whether a second release has room in memory beside the one that is served."""

from pathlib import Path

from vecall.errors import StoreError
from vecall.release.manifest import Manifest

_MEMINFO = Path("/proc/meminfo")
_CGROUP_MAX, _CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_SPARE = 1.1  # times its files: hash tables of ids, buffers of the loaders


def check_memory(manifest: Manifest, copies: int = 1) -> None:
    """See that a release can be opened beside what is there.

    Args:
        manifest: its.
        copies: processes that will open it at the same time.

    Raises:
        StoreError: it needs more than is free, as far as the system tells.
    """
    needed, free = round(_SPARE * manifest.bytes) * copies, free_memory()
    if free is not None and needed > free:
        raise StoreError(
            f"release {manifest.name!r} needs about {needed:,} bytes beside the one that is served, and {free:,} are "
            "free: give the process more memory, or stop it, activate the release and start it again"
        )


def free_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by its control group; None where neither tells."""
    known = [free for free in (_of_machine(), _of_group()) if free is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_group() -> int | None:
    try:
        most, used = _CGROUP_MAX.read_text(encoding="ascii").strip(), _CGROUP_USED.read_text(encoding="ascii")
    except OSError:
        return None
    return None if most == "max" else int(most) - int(used)
