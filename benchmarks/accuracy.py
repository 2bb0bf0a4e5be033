"""Measure recall on public data sets beside published results: full ranking, leave-one-out, several seeds.

    python benchmarks/accuracy.py [--data ../shared/data] [--sets beauty sports movielens] [--seeds 0 1 2]
    python benchmarks/accuracy.py --quick          # one seed of Beauty

All sets use one preset with its defaults. Each set and seed is trained and evaluated once and kept in
`results/accuracy/`; it is measured again with --fresh, or when the preset has changed. Baselines, and the model through
its index, are evaluated with the first seed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.accuracy.datasets import DATASETS, PUBLISHED_RESULTS, TARGETS
from harness.environment import (
    DEFAULT_DATA_DIR,
    RESULTS_DIR,
    describe_environment,
    extract_model_settings,
    read_json,
    write_json,
)
from harness.tables import console, print_table
from vecall import evaluate, fit
from vecall.config import parse_config
from vecall.console import configure_logging

KS = (10, 50, 100, 200, 500)
_METRICS = [*(f"recall@{k}" for k in KS), "ndcg@10", "coverage@10"]
_SEEN_MODES = {"seen_excluded": "seen items excluded", "seen_included": "seen items included"}

Result = dict[str, Any]
Metrics = dict[str, float]


def main() -> None:
    """Measure and print each data set that is available."""
    options = _parse_options()
    configure_logging(verbose=False)
    names, seeds = (["beauty"], [0]) if options.quick else (options.sets, options.seeds)
    for name in names:
        directory = options.data / DATASETS[name].directory
        if not directory.is_dir():
            console.print(f"{name} is left out: {directory} does not exist")
            continue
        results = [_measure_seed(name, seed, options, with_baselines=seed == seeds[0]) for seed in seeds]
        print_dataset(name, results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--sets", choices=DATASETS, nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="sequence")
    parser.add_argument("--quick", action="store_true", help="Beauty, one seed")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "accuracy")
    return parser.parse_args()


def _measure_seed(name: str, seed: int, options: argparse.Namespace, *, with_baselines: bool) -> Result:
    """Train and evaluate one data set with one seed, or return the kept result."""
    path = options.out / f"{name}-{options.preset}-{seed}.json"
    kept = read_json(path)
    dataset = DATASETS[name]
    with tempfile.TemporaryDirectory(prefix="accuracy-") as work_dir:
        settings = dataset.build_settings(options.data / dataset.directory, Path(work_dir))
        settings |= {
            "model": {"preset": options.preset},
            "training": {"seed": seed},
            "evaluation": {"ks": KS, "baselines": False},  # `evaluate` has them
        }
        config = parse_config(settings)
        model_settings = extract_model_settings(config)
        is_current = kept.get("settings") == model_settings
        if is_current and not options.fresh and ("popularity" in kept or not with_baselines):
            return kept
        console.print(f"{name}, seed {seed}", style="dim")
        environment = describe_environment()
        run = fit(config, Path(work_dir) / "run")
        metrics: Result = evaluate(run=run.directory) if with_baselines else {"model": run.summary.metrics}
        result = {
            "set": name,
            "seed": seed,
            "facts": environment,
            "settings": model_settings,
            "seconds": run.summary.seconds,
            "epochs": run.summary.epochs,
            "best_epoch": run.summary.best_epoch + 1,
            "by_epoch": run.read_epoch_metrics(),
            "dropped": dict(run.summary.dropped),
        } | metrics
    write_json(path, result)
    return result


def print_dataset(name: str, results: Sequence[Result]) -> None:
    """Print a data set's metrics, published results and goals.

    Args:
        name: key of DATASETS.
        results: by seed; the first one has the baselines.
    """
    first = results[0]
    dropped = ", ".join(f"{reason}: {count:,}" for reason, count in first["dropped"].items()) or "nothing"
    console.print(f"\n{name}: {first.get('protocol', '')} Dropped: {dropped}.")
    minutes = statistics.mean(result["seconds"] for result in results) / 60
    epochs = ", ".join(str(result["best_epoch"]) for result in results)
    console.print(f"Trained in {minutes:.1f} minutes per seed; best epochs: {epochs}.")
    for seen_mode, title in _SEEN_MODES.items():
        print_table(f"{name}, {title}", ["", *_METRICS], list(_format_rows(results, seen_mode)))
    if name in PUBLISHED_RESULTS:
        rows = [[model, seen, f"{recall:.4f}", f"{ndcg:.4f}"] for model, seen, recall, ndcg in PUBLISHED_RESULTS[name]]
        print_table(f"{name}, published", ["", "seen items", "recall@10", "ndcg@10"], rows, align_left=2)
        console.print(_format_targets(name, results))


def _format_rows(results: Sequence[Result], seen_mode: str) -> Iterator[list[str]]:
    by_seed = [result["model"][seen_mode] for result in results]
    yield [f"vecall, mean of {len(by_seed)}", *(f"{_mean(by_seed, metric):.4f}" for metric in _METRICS)]
    if len(by_seed) > 1:
        yield ["  SD", *(f"{statistics.stdev(row[metric] for row in by_seed):.4f}" for metric in _METRICS)]
    first = results[0]
    for key, title in (
        ("model", "  first seed, exact"),
        ("index", "  first seed, its index"),
        ("ease", "EASE"),
        ("cooccurrence", "co-occurrence"),
        ("popularity", "popularity"),
    ):
        if first.get(key):
            yield [title, *(f"{first[key][seen_mode][metric]:.4f}" for metric in _METRICS)]


def _mean(by_seed: Sequence[Metrics], metric: str) -> float:
    return statistics.mean(metrics[metric] for metrics in by_seed)


def _format_targets(name: str, results: Sequence[Result]) -> str:
    target = TARGETS[name]
    excluded = [result["model"]["seen_excluded"] for result in results]
    included = [result["model"]["seen_included"] for result in results]
    parts = [_format_comparison("seen items excluded", excluded, target.seen_excluded)]
    if target.seen_included is not None:
        parts.append(_format_comparison("included", included, target.seen_included))
    if target.recall_at_100 is not None:
        parts.append(f"recall@100 {_mean(excluded, 'recall@100'):.4f} (goal {target.recall_at_100})")
    return "; ".join(parts)


def _format_comparison(title: str, by_seed: Sequence[Metrics], target: tuple[float, float]) -> str:
    recall, ndcg = _mean(by_seed, "recall@10"), _mean(by_seed, "ndcg@10")
    return f"{title} {recall:.4f}/{ndcg:.4f} (goal {target[0]}/{target[1]})"


if __name__ == "__main__":
    main()
