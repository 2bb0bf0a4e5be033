"""Environment of a benchmark run, and its results as JSON files."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vecall.config import Config

BENCHMARKS_DIR = Path(__file__).parents[1]
REPOSITORY_DIR = BENCHMARKS_DIR.parent
RESULTS_DIR = BENCHMARKS_DIR / "results"
DEFAULT_DATA_DIR = REPOSITORY_DIR.parent / "shared" / "data"  # public data sets, beside the checkout

_LIBRARIES = ("vecall", "faiss-cpu", "numpy", "onnxruntime", "polars", "torch")


def describe_environment() -> dict[str, Any]:
    """Describe the machine, the software and the command: the `facts` of a result.

    Returns:
        `machine`, `versions`, `commit`, `date` (UTC), `command` and the `load_average` at the time of the call.
    """
    return {
        "machine": {
            "cpu": _describe_cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(_read_total_memory_kib() / 2**20, 1),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "commit": _describe_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], REPOSITORY_DIR), *sys.argv[1:]]),
        "load_average": read_load_average(),
    }


def read_load_average() -> float:
    """Return the load average of the last minute; above the number of cores, timings are too long."""
    return round(os.getloadavg()[0], 2)


def read_memory_bytes(field: str = "VmRSS", pid: int | str = "self") -> int:
    """Return a memory field of /proc/PID/status in bytes.

    Args:
        field: "VmRSS" for the resident memory now, "VmHWM" for its peak.
        pid: the process; "self" is this one.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def list_process_tree(pid: int) -> list[int]:
    """Return a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [pid, *map(int, children)]


def read_peak_memory_gib() -> float:
    """Return the peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class MemoryGrowth:
    """Growth of this process's resident memory since the object was built.

    The peak of the process is reset, so that what came before does not count.
    """

    def __init__(self) -> None:
        self.reset_peak()
        self._bytes_before = read_memory_bytes("VmRSS")

    def reset_peak(self) -> None:
        """Forget the peak so far; growth is still counted from when the object was built."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read_peak_gib(self) -> float:
        """Return the highest growth so far in GiB; mapped files count."""
        return round((read_memory_bytes("VmHWM") - self._bytes_before) / 2**30, 3)


def make_child_environment() -> dict[str, str]:
    """Return the environment of a child process that runs a module of `harness` by `python -m`.

    `benchmarks/` is prepended to PYTHONPATH.
    """
    inherited = os.environ.get("PYTHONPATH")
    search_path = [str(BENCHMARKS_DIR), *([inherited] if inherited else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(search_path)}


def extract_model_settings(config: Config) -> dict[str, Any]:
    """Return the settings that a trained model depends on.

    They are kept with a result; the benchmark measures again when they differ.
    """
    return {section: config.as_json()[section] for section in ("model", "training")}


def read_json(path: Path) -> dict[str, Any]:
    """Read a kept result; a missing file is an empty one."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return result


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result atomically: an interrupted benchmark leaves the previous file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = path.with_suffix(".tmp")
    temporary_path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary_path.replace(path)


def _describe_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split("\t", 1) for line in lines if "\t" in line)
    model = fields.get("model name", "").strip(" \t:") or platform.processor()
    return f"{model}, AVX-512" if "avx512f" in fields.get("flags", "") else model


def _read_total_memory_kib() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("MemTotal")).split()[1])


def _describe_commit() -> str:
    """Return the commit of the checkout, with `-dirty` where tracked files differ from it."""
    command = ["git", "-C", str(REPOSITORY_DIR), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    return completed.stdout.strip() or "unknown"
