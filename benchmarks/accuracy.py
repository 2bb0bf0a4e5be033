"""Measure recall on public data sets beside baselines and published results: full ranking, several seeds.

    python benchmarks/accuracy.py [--data ../shared/data] [--sets beauty steam ...] [--seeds 0 1 2] [--preset auto]
    python benchmarks/accuracy.py --quick          # one seed of Steam

MovieLens, Beauty and Sports are split by leave-one-out; Steam, Book-Crossing and citeulike-a at random, with histories
of the training part. All sets use one preset with its defaults; with `auto` it says what was chosen for each. Each set,
preset and seed is trained and evaluated once and kept in `results/accuracy/`; it is measured again with --fresh, or
when the settings of the preset have changed. With --runs DIR the runs are kept: one that was interrupted goes on where
it was, and a finished one is only evaluated. Either is said to be `resumed`: its `fit_seconds` are those of the last
part. Baselines are measured once for each set, EASE with its best l2 on the validation; the model through its index
with the first seed. Results that were kept before channels were merged have no merged recall; --fresh measures it.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.accuracy.baselines import measure_baselines
from harness.accuracy.datasets import DATASETS
from harness.accuracy.merged import measure_merged
from harness.accuracy.metric_tables import KS, get_chosen_preset, print_dataset
from harness.environment import (
    DEFAULT_DATA_DIR,
    RESULTS_DIR,
    describe_environment,
    extract_model_settings,
    read_json,
    write_json,
)
from harness.kept_results import is_same_model
from harness.tables import console
from vecall import evaluate, fit
from vecall.config import Config, parse_config
from vecall.console import configure_logging
from vecall.pipeline.run import SUMMARY_FILE, Run
from vecall.pipeline.selection_record import read_selection

Result = dict[str, Any]


def main() -> None:
    """Measure and print each data set that is available."""
    options = _parse_options()
    configure_logging(verbose=False)
    names, seeds = (["steam"], [0]) if options.quick else (options.sets, options.seeds)
    for name in names:
        directory = options.data / DATASETS[name].directory
        if not directory.is_dir():
            console.print(f"{name} is left out: {directory} does not exist")
            continue
        with _open_work_dir(name, options) as work_dir:
            tables = DATASETS[name].build_settings(directory, work_dir)
            baselines = _measure_baselines(name, tables, options)
            results = [
                _measure_seed(name, tables, seed, work_dir, options, is_first=seed == seeds[0]) for seed in seeds
            ]
        print_dataset(name, results, baselines)


@contextmanager
def _open_work_dir(name: str, options: argparse.Namespace) -> Iterator[Path]:
    """Yield the directory of the runs of a data set; without --runs it is removed afterwards."""
    if options.runs is None:
        with tempfile.TemporaryDirectory(prefix="accuracy-") as work_dir:
            yield Path(work_dir)
        return
    work_dir = options.runs / f"{name}-{options.preset}"
    work_dir.mkdir(parents=True, exist_ok=True)
    yield work_dir


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--sets", choices=DATASETS, nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--quick", action="store_true", help="Steam, one seed")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--runs", type=Path, help="directory of runs that are kept; interrupted ones are resumed")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "accuracy")
    return parser.parse_args()


def _parse_config(tables: dict[str, Any], preset: str, seed: int) -> Config:
    sections = {
        "model": {"preset": preset},
        "training": {"seed": seed},
        "evaluation": {"ks": KS, "baselines": False},  # they are measured once for all presets and seeds
    }
    return parse_config(tables | sections)


def _measure_baselines(name: str, tables: dict[str, Any], options: argparse.Namespace) -> Result:
    """Evaluate the baselines of a data set, or return the kept result."""
    path = options.out / f"{name}-baselines.json"
    kept = read_json(path)
    if kept and not options.fresh:
        return kept
    console.print(f"{name}, baselines", style="dim")
    environment = describe_environment()
    result = {"set": name, "facts": environment} | measure_baselines(_parse_config(tables, "pooled", seed=0))
    write_json(path, result)
    return result


def _measure_seed(
    name: str, tables: dict[str, Any], seed: int, work_dir: Path, options: argparse.Namespace, *, is_first: bool
) -> Result:
    """Train and evaluate one data set with one seed, the first also through its index, or return the kept result."""
    path = options.out / f"{name}-{options.preset}-{seed}.json"
    kept = read_json(path)
    if kept and ("index" in kept or not is_first) and not options.fresh:
        settings = extract_model_settings(_parse_config(tables, get_chosen_preset(kept), seed))
        if is_same_model(kept["settings"], settings):
            return kept
    console.print(f"{name}, {options.preset}, seed {seed}", style="dim")
    environment = describe_environment()
    run_dir, start = work_dir / f"run-{seed}", time.perf_counter()
    is_resumed = run_dir.exists()
    is_finished = (run_dir / SUMMARY_FILE).exists()  # the evaluation was interrupted
    run = Run.open(run_dir) if is_finished else fit(_parse_config(tables, options.preset, seed), run_dir)
    fit_seconds = time.perf_counter() - start
    chosen_preset, selection = run.config.model.preset, read_selection(run.directory)
    evaluated: Result = evaluate(run=run.directory) if is_first else {"model": run.summary.metrics}
    result = {
        "set": name,
        "seed": seed,
        "facts": environment,
        "preset": options.preset,
        "chosen_preset": chosen_preset,
        "settings": extract_model_settings(_parse_config(tables, chosen_preset, seed)),
        "trained_settings": extract_model_settings(run.config),
        "selection": None if selection is None else selection.model_dump(mode="json", exclude={"config"}),
        "fit_seconds": round(fit_seconds, 2),
        "resumed": is_resumed,
        "seconds": run.summary.seconds,
        "epochs": run.summary.epochs,
        "best_epoch": run.summary.best_epoch + 1,
        "by_epoch": run.read_epoch_metrics(),
        "dropped": dict(run.summary.dropped),
        "protocol": run.summary.protocol,
        "model": evaluated["model"],
        **measure_merged(run),
    } | {key: evaluated[key] for key in ("index", "segments", "ann") if key in evaluated}
    write_json(path, result)
    return result


if __name__ == "__main__":
    main()
