"""Training steps, epochs and validation at scale."""

import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from harness.environment import MemoryGrowth
from harness.scale.cell import CellOptions
from harness.scale_data import scale_config
from harness.torch_threads import single_torch_thread
from harness.training.load import load_training_data
from harness.training.step_timer import StepTimer, time_in_turns
from harness.training.synthetic_data import make_training_data
from vecall.config import PRESETS
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.sampling import sample_cases
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.module import TwoTowerModule
from vecall.training.scoring import TowerScorer
from vecall.training.settings import TrainingSettings
from vecall.training.threads import use_fastest_thread_count

SMALL_CATALOGUE = 20_000  # items that a step of a large catalogue is compared with
DIM = 128
STEP_ROUNDS, STEPS_PER_ROUND = 5, 20
VALIDATION_K = 100
EPOCH_WARMUP_STEPS, EPOCH_STEPS = 20, 300


def measure_steps(options: CellOptions, *, preset: str) -> dict[str, Any]:
    """Measure a step with sampled softmax at D 128 beside one of 20,000 items, in turns, on one thread."""
    sizes = {"small": min(SMALL_CATALOGUE, options.items), "large": options.items}
    memory = MemoryGrowth()
    with single_torch_thread():
        timers = {
            name: StepTimer(_build_module(make_training_data(items, options.rows), preset))
            for name, items in sizes.items()
        }
        rounds, steps = (1, 2) if options.smoke else (STEP_ROUNDS, STEPS_PER_ROUND)
        milliseconds = time_in_turns(timers, rounds=rounds, steps=steps)
    return {
        "step_ms": milliseconds["large"],
        "small_items": sizes["small"],
        "small_step_ms": milliseconds["small"],
        "ratio": round(milliseconds["large"] / milliseconds["small"], 3),
        "peak_gib": memory.read_peak_gib(),
        "plan": timers["large"].module.plan.model_dump(),
    }


def _build_module(data: TrainingData, preset: str) -> TwoTowerModule:
    model = ModelSettings.model_validate(PRESETS[preset].get("model", {}) | {"dim": DIM})
    training = TrainingSettings.model_validate(PRESETS[preset].get("training", {}) | {"loss": "sampled_softmax"})
    torch.manual_seed(0)
    return TwoTowerModule(TwoTower(model, data.item_specs, data.user_specs, data.n_items), data, training)


def measure_epoch(options: CellOptions, *, with_features: bool) -> dict[str, Any]:
    """Measure an epoch of `pooled`, without validation: extrapolated from some of its steps, or all of them."""
    config = scale_config(options.write_tables(), with_features=with_features, preset="pooled")
    data, _ = load_training_data(config)
    torch.manual_seed(0)
    towers = TwoTower(config.model, data.item_specs, data.user_specs, data.n_items)
    module = TwoTowerModule(towers, data, config.training)
    n_steps = len(module.train_dataloader())
    with tempfile.TemporaryDirectory() as work_dir, use_fastest_thread_count(module, Path(work_dir)):
        threads = torch.get_num_threads()
        timer = StepTimer(module)
        timer.run(min(EPOCH_WARMUP_STEPS, n_steps))
        seconds = timer.run(n_steps if options.full else min(EPOCH_STEPS, n_steps))
    return {
        "epoch_minutes": round(n_steps * mean(seconds) / 60, 2),
        "extrapolated": not options.full,
        "steps": n_steps,
        "measured_steps": len(seconds),
        "step_ms": round(1e3 * mean(seconds), 2),
        "threads": threads,
        "plan": module.plan.model_dump(),
    }


def measure_validation(options: CellOptions) -> dict[str, Any]:
    """Measure a validation of untrained `pooled` towers: all items encoded and ranked for at most 10,000 users."""
    config = scale_config(options.write_tables(), with_features=True, preset="pooled")
    data, split = load_training_data(config)
    torch.manual_seed(0)
    towers = TwoTower(config.model, data.item_specs, data.user_specs, data.n_items)
    cases = sample_cases(split.valid)
    memory, start = MemoryGrowth(), time.perf_counter()
    scorer = TowerScorer(towers, data)
    encode_seconds = time.perf_counter() - start
    result = evaluate_scorer(scorer, cases, data.n_items, (VALIDATION_K,), max_sample_users=0)
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "encode_seconds": round(encode_seconds, 2),
        "evaluated_users": len(cases),
        "recall": result.seen_excluded_or_included[f"recall@{VALIDATION_K}"],
        "threads": torch.get_num_threads(),
        "peak_gib": memory.read_peak_gib(),
    }
