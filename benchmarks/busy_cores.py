"""Measure a training step while other processes compete for the cores, by OpenMP's wait policy.

python benchmarks/busy_cores.py [--rounds 8] [--preset pooled] [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness.environment import REPOSITORY_DIR, RESULTS_DIR, describe_environment, write_json
from harness.tables import print_table

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
    workers = {name: _TrainingProcess(options.preset, *variant) for name, variant in _VARIANTS.items()}
    quiet_ms = _measure_rounds(workers, options.rounds)
    competitors = [_start_busy_process() for _ in range(os.cpu_count() or 1)]
    time.sleep(1)
    busy_ms = _measure_rounds(workers, options.rounds)
    for process in [*competitors, *(worker.process for worker in workers.values())]:
        process.kill()
    results = {
        name: {
            "quiet_ms": round(quiet_ms[name], 1),
            "busy_ms": round(busy_ms[name], 1),
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


class _TrainingProcess:
    """Child process that runs timed training steps on request: see `run_worker`."""

    def __init__(self, preset: str, environment: dict[str, str], threads: int | None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", preset, str(threads or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited | environment,
        )
        self.time_steps(1)

    def time_steps(self, steps: int) -> list[float]:
        """Run steps and return the seconds of each."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        seconds: list[float] = json.loads(self.process.stdout.readline())
        return seconds


def _measure_rounds(workers: dict[str, _TrainingProcess], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a step; the variants take turns, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name] += worker.time_steps(_STEPS_PER_ROUND)
    return {name: 1e3 * median(values) for name, values in seconds.items()}


def _start_busy_process() -> subprocess.Popen[str]:
    """Start a process that keeps a core busy until it is killed, or for ten minutes."""
    code = f"import time\nend = time.time() + {_BUSY_SECONDS}\nwhile time.time() < end: pass"
    return subprocess.Popen([sys.executable, "-c", code], text=True)


def run_worker(preset: str, threads: int) -> None:
    """Train on MovieLens: each line of standard input is a number of steps, answered by their seconds as JSON.

    Args:
        preset: of the model.
        threads: 0 is torch's default.
    """
    import numpy as np
    import torch

    from vecall.config import load_config, parse_config
    from vecall.data.dataset import read_dataset
    from vecall.towers.two_tower import TwoTower
    from vecall.training.data import TrainingData
    from vecall.training.module import TwoTowerModule

    if threads:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = load_config(REPOSITORY_DIR / "examples/movielens/vecall.toml").as_json()
    config = parse_config({"data": settings["data"], "schema": settings["schema"], "model": {"preset": preset}})
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    encoders = dataset.fit_feature_encoders(split.train.values, np.flatnonzero(split.train.lengths))
    training_data = TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.hard_negatives)
    towers = TwoTower(config.model, training_data.item_specs, training_data.user_specs, training_data.n_items)
    module = TwoTowerModule(towers, training_data, config.training)
    optimizer: Any = module.configure_optimizers()["optimizer"]
    module.on_fit_start()
    module.train()
    for line in sys.stdin:
        batches: Any = iter(module.train_dataloader())
        seconds = []
        for step in range(int(line)):
            batch = next(batches)
            start = time.perf_counter()
            optimizer.zero_grad()
            module.training_step(batch, step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        run_worker(sys.argv[2], int(sys.argv[3]))
    else:
        main()
