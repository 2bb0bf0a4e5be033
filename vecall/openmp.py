"""How OpenMP's threads wait: set before torch and faiss load, for it is read once, by each copy of the library."""

import os

# Loops at a barrier before a thread sleeps; what libgomp itself takes where threads are more than cores. Its default of
# 300,000 makes threads that wait take the cores from those that work as soon as another process runs beside them
# (decision 0012).
_SPIN_COUNT = "1000"


def limit_spinning() -> None:
    """Let waiting threads sleep soon, unless the environment says how they are to wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
