"""How fast training is: the founding loop beside ours on the same towers, and the sequence model's step by its parts.

    python benchmarks/training.py [--data ../shared/data] [--epochs 12] [--out FILE] [--fresh]

The towers are the founding design's on MovieLens, BCE, batch 128, four negatives of each positive; a sample is one
(user, positive) pair. A row of the founding loop is a labelled pair; the second loop has a positive with its negatives
in a row, which is what ours does in a step. Seconds are of training alone, without judging. All runs have one
thread. The step is measured on Beauty, on MovieLens where --data has none.
"""

import argparse
import itertools
import resource
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
from harness.environment import RESULTS_DIR, describe_environment, read_json, write_json
from harness.dssm.training_loop import DssmTrainingLoop
from harness.torch_threads import single_torch_thread
from harness.training.step_profile import profile_steps
from harness.tables import console, print_table

from vecall.config import Config, parse_config
from vecall.console import configure_logging
from vecall.data.dataset import read_dataset
from vecall.data.split import Split
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir
from vecall.towers.two_tower import TwoTower
from vecall.training.batches import build_positive_samples
from vecall.training.data import TrainingData
from vecall.training.fit import train
from vecall.training.module import TwoTowerModule
from vecall.training.scoring import Scorer, TowerScorer

K = 100
TARGET_RATIOS = {"s to the loop's best": 0.2, "samples/s": 2.5, "step by its products": 1.3}  # by the loop's, and alone

EpochResult = dict[str, float]


def main() -> None:
    options = _parse_options()
    configure_logging(verbose=False)
    kept = {} if options.fresh else read_json(options.out)
    for part in PARTS:
        if part == options.part:
            write_json(options.out, kept | {part: PARTS[part](options)})
            return
        if part not in kept and options.part is None:
            console.print(part, style="dim")
            child = [sys.executable, __file__, "--part", part, "--out", str(options.out), "--data", str(options.data)]
            # A process each, so that memory is its own.
            subprocess.run([*child, "--epochs", str(options.epochs)], check=True)
            kept = read_json(options.out)
    _print_results(kept)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--epochs", type=int, default=12, help="at most, of each model")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--part", help="this part alone, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "training.json")
    return parser.parse_args()


def _load_training_data(config: Config) -> tuple[TrainingData, Split]:
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    encoders = dataset.fit_feature_encoders(split.train.values, range(len(split.train)))
    return TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.negatives), split


def _make_dssm_config(work_dir: Path) -> Config:
    config = parse_config(build_settings(find_data_dir(None).resolve()))
    dataset = read_dataset(config.data, config.schema_)
    return build_dssm_config(dataset, dataset.split(config.data).train, config, work_dir)


def _evaluate_epoch(epoch: int, seconds: float, scorer: Scorer, split: Split, n_items: int) -> EpochResult:
    """An epoch, counted from 1, that took so many seconds."""
    judged = evaluate_scorer(scorer, split.valid, n_items, (K,), max_sample_users=0)
    line = {"seconds": seconds, "recall": judged.seen_excluded[f"recall@{K}"]}
    console.print(f"  epoch {epoch}: {seconds:.1f} s, recall@{K} {line['recall']:.4f}", style="dim")
    return line


def _run_reference_loop(options: argparse.Namespace, *, grouped: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        config = _make_dssm_config(Path(work))
        problem, split = _load_training_data(config)
    torch.manual_seed(0)
    towers = TwoTower(config.model, problem.item_specs, problem.user_specs, problem.n_items)
    samples = build_positive_samples(problem.histories)
    lines: list[EpochResult] = []
    with single_torch_thread():
        loop = DssmTrainingLoop(towers, samples, problem, config.training, grouped)
        for seconds in itertools.islice(loop.train_epochs(), options.epochs):
            lines.append(_evaluate_epoch(len(lines) + 1, seconds, TowerScorer(towers, problem), split, problem.n_items))
    return _summarize(lines, len(samples))


def _run_vecall(options: argparse.Namespace, *, preset: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as work:
        config = _make_dssm_config(Path(work)) if preset == "founding" else _make_config(preset)
        problem, split = _load_training_data(config)
        lines: list[EpochResult] = []
        began = time.perf_counter()

        def validate(scorer: Scorer) -> Mapping[str, float]:
            nonlocal began
            seconds = time.perf_counter() - began
            lines.append(_evaluate_epoch(len(lines) + 1, seconds, scorer, split, problem.n_items))
            began = time.perf_counter()
            return {"valid_score": lines[-1]["recall"]}

        with single_torch_thread():
            epochs = min(options.epochs, config.training.epochs)
            train(problem, config.model, config.training, Path(work) / "run", validate=validate, max_epochs=epochs)
    return _summarize(lines, len(build_positive_samples(problem.histories)))


def _make_config(preset: str) -> Config:
    return parse_config(build_settings(find_data_dir(None).resolve()) | {"model": {"preset": preset}})


def _summarize(epochs: list[EpochResult], samples: int) -> dict[str, Any]:
    spent = list(itertools.accumulate(line["seconds"] for line in epochs))
    best = max(range(len(epochs)), key=lambda epoch: epochs[epoch]["recall"])
    return {
        "facts": describe_environment(),
        "samples": samples,
        "samples_per_second": round(samples / min(line["seconds"] for line in epochs), 1),
        "best_recall": round(epochs[best]["recall"], 4),
        "seconds_to_best": round(spent[best], 2),
        "by_epoch": [[round(at, 2), round(line["recall"], 4)] for at, line in zip(spent, epochs, strict=True)],
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def _profile_step(options: argparse.Namespace) -> dict[str, Any]:
    name = "beauty" if (options.data / DATASETS["beauty"][0]).is_dir() else "movielens"
    folder, sections_of = DATASETS[name]
    with tempfile.TemporaryDirectory() as work:
        source = options.data / folder if name == "beauty" else find_data_dir(None).resolve()
        config = parse_config(sections_of(source, Path(work)) | {"model": {"preset": "sequence"}})
        problem, _ = _load_training_data(config)
    towers = TwoTower(config.model, problem.item_specs, problem.user_specs, problem.n_items)
    with single_torch_thread():
        measured = profile_steps(TwoTowerModule(towers, problem, config.training), warmup_steps=5, steps=25)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return {"facts": describe_environment(), "set": name, **measured, "peak_memory_gib": peak}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loop": partial(_run_reference_loop, grouped=False),
    "loop, together": partial(_run_reference_loop, grouped=True),
    "same towers": partial(_run_vecall, preset="founding"),
    "pooled": partial(_run_vecall, preset="pooled"),
    "sequence": partial(_run_vecall, preset="sequence"),
    "step": _profile_step,
}


def _print_results(results: dict[str, Any]) -> None:
    loop = results["loop"]
    rows = []
    for part, title in (
        ("loop", "founding loop"),
        ("loop, together", "the same, a positive with its negatives a row"),
        ("same towers", "vecall, the same towers"),
        ("pooled", "vecall, pooled"),
        ("sequence", "vecall, sequence"),
    ):
        one = results[part]
        there = _find_seconds_to_recall(one, loop["best_recall"])
        rows.append(
            [
                title,
                f"{one['samples_per_second']:,.0f}",
                f"{one['samples_per_second'] / loop['samples_per_second']:.2f}",
                f"{one['best_recall']:.4f}",
                "never" if there is None else f"{there:.1f}",
                "" if there is None else f"{there / loop['seconds_to_best']:.2f}",
                f"{one['peak_memory_gib']:.2f}",
            ]
        )
    columns = ["", "samples/s", "by the loop's", f"best recall@{K}", "s to the loop's best", "by the loop's", "GiB"]
    print_table("MovieLens, validation, one thread", columns, rows)
    console.print(
        "to reach, by the loop's: "
        + ", ".join(f"{name} {TARGET_RATIOS[name]}" for name in columns if name in TARGET_RATIOS)
    )
    step = results["step"]
    shares = sorted(step["share"].items(), key=lambda pair: -pair[1])
    print_table(
        f"{step['set']}, a step of the sequence model", ["part", "share"], [[p, f"{100 * s:.0f} %"] for p, s in shares]
    )
    console.print(
        f"{step['step_ms']} ms a step, {step['positives_per_second']:,.0f} positives a second, "
        f"{step['by_products']} times its matrix products alone (to reach {TARGET_RATIOS['step by its products']}); "
        f"peak {step['peak_memory_gib']} GiB"
    )


def _find_seconds_to_recall(one: dict[str, Any], recall: float) -> float | None:
    return next((seconds for seconds, reached in one["by_epoch"] if reached >= recall), None)


if __name__ == "__main__":
    main()
