"""Measure a training step whose tensors are in pages of 2 MiB, and in pages of 4 KiB.

    python benchmarks/huge_pages.py [--rounds 8] [--cases NAME ...] [--out FILE]

Each variant is a process of its own; they take turns. Everything runs on one thread.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from harness.environment import RESULTS_DIR, describe_environment, write_json
from harness.tables import print_table
from harness.training.step_process import StepProcess, answer_requests, time_in_turns

_VARIABLE = "THP_MEM_ALLOC_ENABLE"
_VARIANTS = {"4 KiB": "0", "2 MiB": "1"}
_SEED = 0


class Case(NamedTuple):
    """A model over synthetic data.

    Attributes:
        preset: Of the model and the loss.
        items: N.
        rows: Interactions.
        loss: Loss.
        steps: Steps of a turn.
    """

    preset: str
    items: int
    rows: int
    loss: str
    steps: int


CASES = {
    "pooled, 10,000 items, softmax": Case("pooled", 10_000, 200_000, "softmax", 12),
    "pooled, 1,000,000 items, sampled softmax": Case("pooled", 1_000_000, 2_000_000, "sampled_softmax", 12),
    "sequence, 10,000 items, softmax": Case("sequence", 10_000, 200_000, "softmax", 4),
    "sequence, 1,000,000 items, sampled softmax": Case("sequence", 1_000_000, 2_000_000, "sampled_softmax", 6),
}


def main() -> None:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--cases", choices=list(CASES), nargs="+", default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "huge-pages.json")
    options = parser.parse_args()
    facts = describe_environment()
    results = {name: _measure(name, options.rounds) for name in options.cases}
    write_json(options.out, {"facts": facts, "step": results})
    rows = [[name, *(str(result[key]) for key in (*_VARIANTS, "ratio"))] for name, result in results.items()]
    print_table("a training step, median ms", ["", *_VARIANTS, "ratio"], rows)


def _measure(name: str, rounds: int) -> dict[str, float]:
    with ExitStack() as stack:
        processes = {
            variant: stack.enter_context(StepProcess([__file__, "--worker", name], os.environ | {_VARIABLE: value}))
            for variant, value in _VARIANTS.items()
        }
        milliseconds = time_in_turns(processes, rounds=rounds, steps=CASES[name].steps)
    small, huge = milliseconds.values()
    return milliseconds | {"ratio": round(huge / small, 3)}


def run_worker(name: str) -> None:
    """Train the model of a case, as many steps at a time as are asked for."""
    import torch

    from harness.training.step_timer import StepTimer
    from harness.training.synthetic_data import make_training_data
    from vecall.config import PRESETS
    from vecall.towers.settings import ModelSettings
    from vecall.towers.two_tower import TwoTower
    from vecall.training.module import TwoTowerModule
    from vecall.training.settings import TrainingSettings

    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    case = CASES[name]
    preset: dict[str, Any] = dict(PRESETS[case.preset])
    data = make_training_data(case.items, case.rows)
    model = ModelSettings.model_validate(preset.get("model", {}))
    training = TrainingSettings.model_validate(preset.get("training", {}) | {"loss": case.loss})
    towers = TwoTower(model, data.item_specs, data.user_specs, data.n_items)
    answer_requests(StepTimer(TwoTowerModule(towers, data, training)).run)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        run_worker(sys.argv[2])
    else:
        main()
