"""A training step while other processes want the same cores: what OpenMP's default costs, and what is set instead.

python benchmarks/busy_cores.py [--rounds 8] [--preset pooled]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from harness.environment import REPOSITORY_DIR, RESULTS_DIR, describe_environment, write_json
from harness.tables import print_table

_STEPS_PER_ROUND = 6  # of each variant in a round
# What is in the environment of a process that trains, and its number of threads (None: as many as torch takes).
_VARIANTS: dict[str, tuple[dict[str, str], int | None]] = {
    "libgomp's default": ({}, None),
    "as vecall sets it": ({"GOMP_SPINCOUNT": "5000"}, None),
    "never spinning": ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    "one thread": ({}, 1),
}


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--preset", default="pooled")
    asked = parser.parse_args()
    workers = {name: _TrainingProcess(asked.preset, *variant) for name, variant in _VARIANTS.items()}
    quiet = _measure_rounds(workers, asked.rounds)
    others = [_start_busy_process() for _ in range(os.cpu_count() or 1)]
    time.sleep(1)
    busy = _measure_rounds(workers, asked.rounds)
    for process in (*others, *(worker.process for worker in workers.values())):
        process.kill()
    base = quiet["libgomp's default"]
    cells = {
        name: {
            "quiet_ms": round(quiet[name], 1),
            "busy_ms": round(busy[name], 1),
            "busy_over_quiet_default": round(busy[name] / base, 2),
        }
        for name in workers
    }
    write_json(
        RESULTS_DIR / f"busy-cores-{asked.preset}.json",
        {"facts": describe_environment(), "preset": asked.preset, "step": cells},
    )
    rows = [[name, *(str(value) for value in cell.values())] for name, cell in cells.items()]
    print_table("a training step, median ms", ["variant", "quiet", "busy", "busy / default's quiet"], rows)


class _TrainingProcess:
    """A process that trains some steps when it is asked to."""

    def __init__(self, preset: str, environment: dict[str, str], threads: int | None) -> None:
        given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", preset, str(threads or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=given | environment,
        )
        self.time_steps(1)

    def time_steps(self, steps: int) -> list[float]:
        """Of each step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        told: list[float] = json.loads(self.process.stdout.readline())
        return told


def _measure_rounds(workers: dict[str, _TrainingProcess], rounds: int) -> dict[str, float]:
    """Median milliseconds of a step; the variants take turns, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name] += worker.time_steps(_STEPS_PER_ROUND)
    return {name: 1e3 * median(taken) for name, taken in seconds.items()}


def _start_busy_process() -> subprocess.Popen[bytes]:
    """One that wants a core, for ten minutes at the most."""
    return subprocess.Popen(
        [sys.executable, "-c", "import time\nends = time.time() + 600\nwhile time.time() < ends: pass"]
    )


def run_worker(preset: str, threads: int) -> None:
    """Steps on MovieLens, timed; how many is read from stdin, line by line."""
    import numpy as np
    import torch

    from vecall.config import load_config, parse_config
    from vecall.data.dataset import read_dataset
    from vecall.towers.two_tower import TwoTower
    from vecall.training.data import TrainingData
    from vecall.training.module import TwoTowerModule

    if threads:
        torch.set_num_threads(threads)
    sections: dict[str, Any] = load_config(REPOSITORY_DIR / "examples/movielens/vecall.toml").as_json()
    config = parse_config({"data": sections["data"], "schema": sections["schema"], "model": {"preset": preset}})
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    items, users = dataset.fit_feature_encoders(split.train.values, np.flatnonzero(split.train.lengths))
    problem = TrainingData.from_catalogue(dataset.catalogue, (items, users), split.train, split.negatives)
    towers = TwoTower(config.model, problem.item_specs, problem.user_specs, problem.n_items)
    recipe = TwoTowerModule(towers, problem, config.training)
    optimizer: Any = recipe.configure_optimizers()["optimizer"]
    recipe.on_fit_start()
    recipe.train()
    for line in sys.stdin:
        batches: Any = iter(recipe.train_dataloader())
        seconds = []
        for step in range(int(line)):
            batch = next(batches)
            began = time.perf_counter()
            optimizer.zero_grad()
            recipe.training_step(batch, step).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        run_worker(sys.argv[2], int(sys.argv[3]))
    else:
        main()
