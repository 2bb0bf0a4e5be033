"""Measure a training step while other processes compete for the cores, by OpenMP's wait policy.

python benchmarks/busy_cores.py [--rounds 8] [--preset pooled] [--out FILE]
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.environment import REPOSITORY_DIR, RESULTS_DIR, describe_environment, write_json
from harness.tables import print_table
from harness.training.step_process import StepProcess, answer_requests, time_in_turns

_STEPS_PER_ROUND = 6  # of each variant
_BUSY_SECONDS = 600  # lifetime of the competing processes, should this one be killed
_DEFAULT = "libgomp's default"
# Environment of a training process, and its number of threads (None: torch's default).
_VARIANTS: dict[str, tuple[dict[str, str], int | None]] = {
    _DEFAULT: ({}, None),
    "as vecall sets it": ({"GOMP_SPINCOUNT": "5000"}, None),
    "never spinning": ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    "one thread": ({}, 1),
}


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--preset", default="pooled")
    parser.add_argument("--out", type=Path, help="default: results/busy-cores-PRESET.json")
    options = parser.parse_args()
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_start_worker(options.preset, *variant)) for name, variant in _VARIANTS.items()
        }
        quiet_ms = time_in_turns(workers, rounds=options.rounds, steps=_STEPS_PER_ROUND)
        for _ in range(os.cpu_count() or 1):
            stack.callback(_start_busy_process().kill)
        time.sleep(1)
        busy_ms = time_in_turns(workers, rounds=options.rounds, steps=_STEPS_PER_ROUND)
    results = {
        name: {
            "quiet_ms": quiet_ms[name],
            "busy_ms": busy_ms[name],
            "busy_over_quiet_default": round(busy_ms[name] / quiet_ms[_DEFAULT], 2),
        }
        for name in workers
    }
    write_json(
        options.out or RESULTS_DIR / f"busy-cores-{options.preset}.json",
        {"facts": describe_environment(), "preset": options.preset, "step": results},
    )
    rows = [[name, *map(str, result.values())] for name, result in results.items()]
    print_table("a training step, median ms", ["variant", "quiet", "busy", "busy / default's quiet"], rows)


def _start_worker(preset: str, environment: dict[str, str], threads: int | None) -> StepProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    return StepProcess([__file__, "--worker", preset, str(threads or 0)], inherited | environment)


def _start_busy_process() -> subprocess.Popen[str]:
    """Start a process that keeps a core busy until it is killed, or for ten minutes."""
    code = f"import time\nend = time.time() + {_BUSY_SECONDS}\nwhile time.time() < end: pass"
    return subprocess.Popen([sys.executable, "-c", code], text=True)


def run_worker(preset: str, threads: int) -> None:
    """Train on MovieLens, as many steps at a time as are asked for.

    Args:
        preset: of the model.
        threads: 0 is torch's default.
    """
    import torch

    from harness.training.load import load_training_data
    from harness.training.step_timer import StepTimer
    from vecall.config import load_config, parse_config
    from vecall.towers.two_tower import TwoTower
    from vecall.training.module import TwoTowerModule

    if threads:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = load_config(REPOSITORY_DIR / "examples/movielens/vecall.toml").as_json()
    config = parse_config({"data": settings["data"], "schema": settings["schema"], "model": {"preset": preset}})
    data, _ = load_training_data(config)
    towers = TwoTower(config.model, data.item_specs, data.user_specs, data.n_items)
    answer_requests(StepTimer(TwoTowerModule(towers, data, config.training)).run)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        run_worker(sys.argv[2], int(sys.argv[3]))
    else:
        main()
