"""Model recall on public data sets beside what others publish: full ranking, leave-one-out, several seeds.

    python benchmarks/accuracy.py [--data ../shared/data] [--sets beauty sports movielens] [--seeds 0 1 2]
    python benchmarks/accuracy.py --quick          # one seed of Beauty

One set of defaults (the preset) for all sets. Each (set, seed) is fitted and judged once and lies in
`results/accuracy/`; what is there is not measured again, unless with --fresh or when the preset has changed.
Baselines, and the model through its index, are judged with the first seed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.accuracy.datasets import DATASETS, PUBLISHED_RESULTS, TARGETS
from harness.environment import RESULTS_DIR, describe_environment, extract_model_settings, read_json, write_json
from harness.tables import console, print_table

from vecall import evaluate, fit
from vecall.config import parse_config
from vecall.console import configure_logging

KS = (10, 50, 100, 200, 500)
_METRICS = [*(f"recall@{k}" for k in KS), "ndcg@10", "coverage@10"]
_SEEN_MODES = {"seen_excluded": "seen left out", "seen_included": "seen ranked"}

Result = dict[str, Any]


def main() -> None:
    options = _parse_options()
    configure_logging(verbose=False)
    sets, seeds = (["beauty"], [0]) if options.quick else (options.sets, options.seeds)
    for name in sets:
        if not (options.data / DATASETS[name][0]).is_dir():
            console.print(f"{name}: {options.data / DATASETS[name][0]} is not there, so it is left out")
            continue
        results = [_measure_seed(name, seed, options, with_baselines=seed == seeds[0]) for seed in seeds]
        print_dataset(name, results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--sets", choices=DATASETS, nargs="+", default=list(DATASETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="sequence")
    parser.add_argument("--quick", action="store_true", help="Beauty, one seed")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "accuracy")
    return parser.parse_args()


def _measure_seed(name: str, seed: int, options: argparse.Namespace, *, with_baselines: bool) -> Result:
    """One set with one seed, from its file where it lies."""
    file = options.out / f"{name}-{options.preset}-{seed}.json"
    kept = read_json(file)
    folder, sections_of = DATASETS[name]
    with tempfile.TemporaryDirectory(prefix="accuracy-") as work:
        sections = sections_of(options.data / folder, Path(work))
        sections |= {
            "model": {"preset": options.preset},
            "training": {"seed": seed},
            "evaluation": {"ks": KS},
        }
        config = parse_config(sections)
        settings = extract_model_settings(config)
        same = kept.get("settings") == settings  # else the preset has changed since
        if same and not options.fresh and ("popularity" in kept or not with_baselines):
            return kept
        console.print(f"{name}, seed {seed}", style="dim")
        begun_with = describe_environment()
        run = fit(config, Path(work) / "run")
        judged: Result = evaluate(run=run.directory) if with_baselines else {"model": run.summary.metrics}
        result = {
            "set": name,
            "seed": seed,
            "facts": begun_with,
            "settings": settings,
            "seconds": run.summary.seconds,
            "epochs": run.summary.epochs,
            "best_epoch": run.summary.best_epoch + 1,
            "by_epoch": run.read_epoch_metrics(),
            "dropped": dict(run.summary.dropped),
        } | judged
    write_json(file, result)
    return result


def print_dataset(name: str, results: Sequence[Result]) -> None:
    """One set, for people."""
    first = results[0]
    dropped = ", ".join(f"{reason}: {count:,}" for reason, count in first["dropped"].items()) or "nothing"
    console.print(f"\n{name}: {first.get('protocol', '')} Dropped: {dropped}.")
    minutes = statistics.mean(result["seconds"] for result in results) / 60
    epochs = ", ".join(str(result["best_epoch"]) for result in results)
    console.print(f"Trained in {minutes:.1f} minutes a seed; best epochs: {epochs}.")
    for ranked, title in _SEEN_MODES.items():
        print_table(f"{name}, {title}", ["", *_METRICS], list(_format_rows(results, ranked)))
    if name in PUBLISHED_RESULTS:
        rows = [[model, seen, f"{recall:.4f}", f"{ndcg:.4f}"] for model, seen, recall, ndcg in PUBLISHED_RESULTS[name]]
        print_table(f"{name}, published", ["", "seen items", "recall@10", "ndcg@10"], rows)
        console.print(_format_targets(name, results))


def _format_rows(results: Sequence[Result], ranked: str) -> Iterator[list[str]]:
    ours = [result["model"][ranked] for result in results]
    yield [f"vecall, mean of {len(ours)}", *(f"{_mean(ours, metric):.4f}" for metric in _METRICS)]
    if len(ours) > 1:
        yield ["  SD", *(f"{statistics.stdev(one[metric] for one in ours):.4f}" for metric in _METRICS)]
    first = results[0]
    for label, title in (
        ("model", "  first seed, exact"),
        ("index", "  first seed, its index"),
        ("ease", "EASE"),
        ("cooccurrence", "co-occurrence"),
        ("popularity", "popularity"),
    ):
        if first.get(label):
            yield [title, *(f"{first[label][ranked][metric]:.4f}" for metric in _METRICS)]


def _mean(ours: Sequence[dict[str, float]], metric: str) -> float:
    return statistics.mean(one[metric] for one in ours)


def _format_targets(name: str, results: Sequence[Result]) -> str:
    left_out, ranked, deep = TARGETS[name]
    excluded = [result["model"]["seen_excluded"] for result in results]
    included = [result["model"]["seen_included"] for result in results]
    parts = [_format_comparison("seen left out", excluded, left_out)]
    if ranked is not None:
        parts.append(_format_comparison("seen ranked", included, ranked))
    if deep is not None:
        parts.append(f"recall@100 {_mean(excluded, 'recall@100'):.4f} (to reach {deep})")
    return "; ".join(parts)


def _format_comparison(title: str, ours: Sequence[dict[str, float]], targets: tuple[float, float]) -> str:
    return f"{title} {_mean(ours, 'recall@10'):.4f}/{_mean(ours, 'ndcg@10'):.4f} (to reach {targets[0]}/{targets[1]})"


if __name__ == "__main__":
    main()
