"""Measure training speed: a plain training loop beside vecall on the same towers, and a training step by its parts.

    python benchmarks/training.py [--data ../shared/data] [--epochs 12] [--out FILE] [--fresh]

The towers are those of the DSSM baseline on MovieLens: BCE, batch 128, four negatives per positive. A sample is one
(user, positive) pair. In the first plain loop a row of a batch is a labelled pair; in the second it is a positive with
its negatives, as in a step of vecall. Seconds are those of training alone, without evaluation. Everything runs on one
thread. The step is measured on Beauty, or on MovieLens where --data lacks Beauty.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.accuracy.datasets import DATASETS
from harness.dssm.training_loop import DssmTrainingLoop
from harness.environment import (
    DEFAULT_DATA_DIR,
    RESULTS_DIR,
    describe_environment,
    read_json,
    read_peak_memory_gib,
    write_json,
)
from harness.tables import console, print_table
from harness.torch_threads import single_torch_thread
from harness.training.load import load_training_data
from harness.training.step_profile import profile_steps
from vecall.config import Config, parse_config
from vecall.console import configure_logging
from vecall.data.dataset import read_dataset
from vecall.data.split import Split
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import build_positive_samples
from vecall.training.fit import train
from vecall.training.module import TwoTowerModule
from vecall.training.scoring import Scorer, TowerScorer

K = 100
# Goals: vecall's value as a multiple of the plain loop's; the step's time as a multiple of its matrix products alone.
TARGET_RATIOS = {"s to the loop's best": 0.2, "samples/s": 2.5, "step by its products": 1.3}
_PART_TITLES = {
    "loop": "plain loop",
    "loop, together": "plain loop, a positive with its negatives per row",
    "same towers": "vecall, the same towers",
    "pooled": "vecall, pooled",
    "sequence": "vecall, sequence",
}

EpochResult = dict[str, float]


def main() -> None:
    """Run one part as a child process, or all that the results lack."""
    options = _parse_options()
    configure_logging(verbose=False)
    if options.part:
        measured = PARTS[options.part](options)
        write_json(options.out, read_json(options.out) | {options.part: measured})
        return
    results = {} if options.fresh else read_json(options.out)
    for part in PARTS:
        if part not in results:
            console.print(part, style="dim")
            # In a process of its own, so that its peak memory is its own.
            child = [sys.executable, __file__, "--part", part, "--out", str(options.out), "--data", str(options.data)]
            subprocess.run([*child, "--epochs", str(options.epochs)], check=True)
            results |= {part: read_json(options.out)[part]}
    _print_results(results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--epochs", type=int, default=12, help="of each model, at most")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--part", choices=PARTS, help="run this part alone, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "training.json")
    return parser.parse_args()


def _make_dssm_config(work_dir: Path) -> Config:
    """Write the tables of the DSSM baseline and return its configuration."""
    config = parse_config(build_settings(find_data_dir(None).resolve()))
    dataset = read_dataset(config.data, config.schema_)
    return build_dssm_config(dataset, dataset.split(config.data).train, config, work_dir)


def _make_preset_config(preset: str) -> Config:
    return parse_config(build_settings(find_data_dir(None).resolve()) | {"model": {"preset": preset}})


def _evaluate_epoch(epoch: int, seconds: float, scorer: Scorer, split: Split, n_items: int) -> EpochResult:
    """Evaluate on the validation part.

    Args:
        epoch: counted from 1.
        seconds: of training this epoch.
        scorer: of the model as it is now.
        split: of the data.
        n_items: N.
    """
    evaluated = evaluate_scorer(scorer, split.valid, n_items, (K,), max_sample_users=0)
    result = {"seconds": seconds, "recall": evaluated.seen_excluded[f"recall@{K}"]}
    console.print(f"  epoch {epoch}: {seconds:.1f} s, recall@{K} {result['recall']:.4f}", style="dim")
    return result


def _run_plain_loop(options: argparse.Namespace, *, grouped: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work_dir:
        config = _make_dssm_config(Path(work_dir))
        training_data, split = load_training_data(config)
    torch.manual_seed(0)
    n_items = training_data.n_items
    towers = TwoTower(config.model, training_data.item_specs, training_data.user_specs, n_items)
    samples = build_positive_samples(training_data.histories)
    epochs: list[EpochResult] = []
    with single_torch_thread():
        loop = DssmTrainingLoop(towers, samples, training_data, config.training, grouped)
        for seconds in itertools.islice(loop.train_epochs(), options.epochs):
            scorer = TowerScorer(towers, training_data)
            epochs.append(_evaluate_epoch(len(epochs) + 1, seconds, scorer, split, n_items))
    return _summarize(epochs, len(samples))


def _run_vecall(options: argparse.Namespace, *, preset: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work_dir:
        config = _make_dssm_config(Path(work_dir)) if preset == "dssm" else _make_preset_config(preset)
        training_data, split = load_training_data(config)
        epochs: list[EpochResult] = []
        start = time.perf_counter()

        def validate(scorer: Scorer) -> Mapping[str, float]:
            nonlocal start
            seconds = time.perf_counter() - start
            epochs.append(_evaluate_epoch(len(epochs) + 1, seconds, scorer, split, training_data.n_items))
            start = time.perf_counter()
            return {"valid_score": epochs[-1]["recall"]}

        with single_torch_thread():
            train(
                training_data,
                config.model,
                config.training,
                Path(work_dir) / "run",
                validate=validate,
                max_epochs=min(options.epochs, config.training.epochs),
            )
    return _summarize(epochs, len(build_positive_samples(training_data.histories)))


def _summarize(epochs: list[EpochResult], n_samples: int) -> dict[str, Any]:
    total_seconds = list(itertools.accumulate(epoch["seconds"] for epoch in epochs))
    recalls = [epoch["recall"] for epoch in epochs]
    best = max(range(len(epochs)), key=recalls.__getitem__)
    return {
        "facts": describe_environment(),
        "samples": n_samples,
        "samples_per_second": round(n_samples / min(epoch["seconds"] for epoch in epochs), 1),
        "best_recall": round(recalls[best], 4),
        "seconds_to_best": round(total_seconds[best], 2),
        "by_epoch": [
            [round(seconds, 2), round(recall, 4)] for seconds, recall in zip(total_seconds, recalls, strict=True)
        ],
        "peak_memory_gib": round(read_peak_memory_gib(), 2),
    }


def _profile_step(options: argparse.Namespace) -> dict[str, Any]:
    """Profile a step of the sequence preset."""
    beauty_dir = options.data / DATASETS["beauty"].directory
    name, directory = ("beauty", beauty_dir) if beauty_dir.is_dir() else ("movielens", find_data_dir(None).resolve())
    with tempfile.TemporaryDirectory() as work_dir:
        settings = DATASETS[name].build_settings(directory, Path(work_dir))
        config = parse_config(settings | {"model": {"preset": "sequence"}})
        training_data, _ = load_training_data(config)
    towers = TwoTower(config.model, training_data.item_specs, training_data.user_specs, training_data.n_items)
    with single_torch_thread():
        module = TwoTowerModule(towers, training_data, config.training)
        measured = profile_steps(module, warmup_steps=5, steps=25)
    peak_gib = round(read_peak_memory_gib(), 2)
    return {"facts": describe_environment(), "set": name, **measured, "peak_memory_gib": peak_gib}


# By their keys in the results.
PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loop": partial(_run_plain_loop, grouped=False),
    "loop, together": partial(_run_plain_loop, grouped=True),
    "same towers": partial(_run_vecall, preset="dssm"),
    "pooled": partial(_run_vecall, preset="pooled"),
    "sequence": partial(_run_vecall, preset="sequence"),
    "step": _profile_step,
}


def _print_results(results: dict[str, Any]) -> None:
    columns = ["", "samples/s", "by the loop's", f"best recall@{K}", "s to the loop's best", "by the loop's", "GiB"]
    rows = [_format_row(title, results[part], results["loop"]) for part, title in _PART_TITLES.items()]
    print_table("MovieLens, validation, one thread", columns, rows)
    goals = ", ".join(f"{name} {TARGET_RATIOS[name]}" for name in columns if name in TARGET_RATIOS)
    console.print(f"goals, by the loop's: {goals}")
    step = results["step"]
    shares = sorted(step["share"].items(), key=lambda entry: -entry[1])
    print_table(
        f"{step['set']}, a step of the sequence model",
        ["part", "share"],
        [[part, f"{100 * share:.0f} %"] for part, share in shares],
    )
    console.print(
        f"{step['step_ms']} ms per step, {step['positives_per_second']:,.0f} positives per second, "
        f"{step['by_products']} times its matrix products alone (goal {TARGET_RATIOS['step by its products']}); "
        f"peak {step['peak_memory_gib']} GiB"
    )


def _format_row(title: str, result: dict[str, Any], loop: dict[str, Any]) -> list[str]:
    """Format a model's result beside the plain loop's."""
    seconds = _find_seconds_to_recall(result, loop["best_recall"])
    return [
        title,
        f"{result['samples_per_second']:,.0f}",
        f"{result['samples_per_second'] / loop['samples_per_second']:.2f}",
        f"{result['best_recall']:.4f}",
        "never" if seconds is None else f"{seconds:.1f}",
        "" if seconds is None else f"{seconds / loop['seconds_to_best']:.2f}",
        f"{result['peak_memory_gib']:.2f}",
    ]


def _find_seconds_to_recall(result: dict[str, Any], recall: float) -> float | None:
    """Return the training time after which a recall was reached; None if it never was."""
    return next((seconds for seconds, epoch_recall in result["by_epoch"] if epoch_recall >= recall), None)


if __name__ == "__main__":
    main()
