"""What every benchmark says of where, when and how it was run, and how its results are kept."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vecall.config import Config

REPOSITORY_DIR = Path(__file__).parents[1]
RESULTS_DIR = Path(__file__).parent / "results"

_LIBRARIES = ("vecall", "faiss-cpu", "numpy", "onnxruntime", "polars", "torch")


def describe_environment() -> dict[str, Any]:
    """Machine, versions, commit, date, command, and how busy the machine was just now."""
    return {
        "machine": {
            "cpu": _describe_cpu(),
            "cores": os.cpu_count(),
            "memory_gib": round(_read_meminfo_kib("MemTotal") / 2**20, 1),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "commit": _describe_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], REPOSITORY_DIR), *sys.argv[1:]]),
        "load_average": read_load_average(),
    }


def read_load_average() -> float:
    """Processes that wanted a core over the last minute; beyond the number of cores, timings are too long."""
    return round(os.getloadavg()[0], 2)


def extract_model_settings(config: Config) -> dict[str, Any]:
    """What a result of training depends on beside the data: kept with it, and when it changes it is measured again."""
    return {part: config.as_json()[part] for part in ("model", "training")}


def read_json(path: Path) -> dict[str, Any]:
    """What was written before; empty where nothing was."""
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Whole or not at all: a benchmark that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def _describe_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("\t", 1) for line in lines if "\t" in line)
    model = named.get("model name", "").strip(" \t:") or platform.processor()
    return f"{model}, AVX-512" if "avx512f" in named.get("flags", "") else model


def _read_meminfo_kib(name: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _describe_commit() -> str:
    """Of the checkout; `-dirty` where files of the package differ from it."""
    command = ["git", "-C", str(REPOSITORY_DIR), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
