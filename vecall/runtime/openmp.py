"""How OpenMP's threads wait: set before torch and faiss load, for it is read once, by each copy of the library."""

import os
from pathlib import Path

# Loops at a barrier before a thread sleeps. libgomp's default of 300,000 makes threads that wait take the cores from
# those that work as soon as another process runs beside them; so few are as quick on quiet cores (decision 0012).
_SPIN_COUNT = "5000"
_BUSY_CORE_SHARE = 0.75  # of the cores: if other processes want so many, waiting threads had better sleep at once
_LOADAVG_PATH = Path("/proc/loadavg")


def limit_spinning() -> None:
    """Let waiting threads sleep soon, and at once on a busy machine, unless the environment says how they wait."""
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if _estimate_busy_cores() >= _BUSY_CORE_SHARE * (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def _estimate_busy_cores() -> float:
    """How many cores other processes want: now, or over the last minute; 0 where the system does not tell."""
    try:
        minute, _, _, running, *_ = _LOADAVG_PATH.read_text(encoding="ascii").split()
        return max(float(minute), int(running.partition("/")[0]) - 1)  # this process runs too
    except (OSError, ValueError):
        return 0.0
