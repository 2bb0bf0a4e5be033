"""How OpenMP threads wait. Each copy of libgomp reads these settings once, when torch or faiss loads it."""

import os
from pathlib import Path

# Iterations that a waiting thread spins at a barrier before it sleeps. With libgomp's default of 300,000, waiting
# threads take the cores from working ones as soon as another process is active. 5,000 is as fast on idle cores: see
# docs/decisions/0012-waiting-threads.md.
_SPIN_COUNT = "5000"
_BUSY_CORE_SHARE = 0.75  # if at least this share of the cores is in use, waiting threads sleep at once
_LOADAVG_PATH = Path("/proc/loadavg")


def limit_spinning() -> None:
    """Make waiting OpenMP threads sleep soon, and at once on a busy machine; settings in the environment prevail.

    Call it before torch or faiss is imported.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if _estimate_busy_cores() >= _BUSY_CORE_SHARE * (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def _estimate_busy_cores() -> float:
    """Estimate how many cores other processes use: the larger of now and the last minute's mean; 0 if unknown."""
    try:
        load_1min, _, _, running, *_ = _LOADAVG_PATH.read_text(encoding="ascii").split()
        return max(float(load_1min), int(running.partition("/")[0]) - 1)  # without this process
    except (OSError, ValueError):
        return 0.0
