"""Measure the reference ranker: NDCG@10 of its order of 500 recalled items over recall's own order.

    python benchmarks/ranking.py [--data ../shared/data] [--sets beauty ...] [--preset pooled] [--seed 0]
    python benchmarks/ranking.py --sets            # the planted data alone

Each set is trained with a ranker, which is trained and decided on by validation users. What is measured are the test
users: the order of 500 candidates by recall and by the ranker, and for a sample of users the order by the ranker of
the whole catalogue. Intervals are paired bootstraps over the users, 95 %. Features of items are attributes, too: the
ranker reads them. On planted data whether a user takes an item depends on a crossing of a feature of the user and an
attribute of the item that recall does not know.

A set, preset and seed is kept in `results/ranking/`; it is measured again with --fresh, or when the settings of the
preset have changed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.accuracy.datasets import DATASETS
from harness.environment import (
    DEFAULT_DATA_DIR,
    RESULTS_DIR,
    describe_environment,
    extract_model_settings,
    read_json,
    write_json,
)
from harness.kept_results import is_same_model
from harness.ranking.planted import PlantedLists
from harness.tables import console, print_table
from vecall import fit, progress
from vecall.config import Config, parse_config
from vecall.console import configure_logging
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split
from vecall.evaluation.paired_bootstrap import bootstrap_differences
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.fit_ranker import CANDIDATE_COUNT, RANKER_DIR, fit_ranker
from vecall.pipeline.ranker_candidates import RecalledLists
from vecall.pipeline.ranker_training import compare_orders, train_ranker
from vecall.pipeline.run import Run
from vecall.ranking.features import select_features
from vecall.ranking.ranker import NamedRanker
from vecall.ranking.ranker_info import RankerInfo
from vecall.release.ranker_io import load_ranker

MIN_GAIN, MAX_LOSS, MIN_PLANTED_RATIO = 0.05, -0.02, 1.5  # the goals
Result = dict[str, Any]


def main() -> None:
    """Measure the planted data and each set that is available, and print the tables."""
    options = _parse_options()
    configure_logging(verbose=False)
    _print_planted(_measure_planted(options))
    for name in options.sets:
        directory = options.data / DATASETS[name].directory
        if not directory.is_dir():
            console.print(f"{name} is left out: {directory} does not exist")
            continue
        with tempfile.TemporaryDirectory(prefix="ranking-") as work_dir:
            tables = DATASETS[name].build_settings(directory, Path(work_dir))
            _print_set(_measure_set(name, tables, Path(work_dir), options))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--sets", choices=DATASETS, nargs="*", default=["beauty"])
    parser.add_argument("--preset", default="pooled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--planted-users", type=int, default=3_000)
    parser.add_argument("--catalogue-users", type=int, default=3_000, help="for whom the whole catalogue is ranked")
    parser.add_argument(
        "--runs", type=Path, help="directory that keeps the trained models, to train their rankers again"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "ranking")
    return parser.parse_args()


def _parse_config(tables: dict[str, Any], options: argparse.Namespace) -> Config:
    items = tables["schema"]["items"]
    schema = tables["schema"] | {"items": items | {"attributes": list(items["features"])}}
    sections = {
        "model": {"preset": options.preset},
        "training": {"seed": options.seed},
        "ranking": {"ranker": "lightgbm"},
        "evaluation": {"baselines": False},
    }
    return parse_config(tables | {"schema": schema} | sections)


def _measure_planted(options: argparse.Namespace) -> Result:
    """Train on planted lists of 100 candidates, with a crossing and without any."""
    path = options.out / "planted.json"
    kept = read_json(path)
    if kept and not options.fresh:
        return kept
    result: Result = {"facts": describe_environment()}
    for name, has_crossing in (("crossing", True), ("noise", False)):
        lists = PlantedLists(options.planted_users, 100, has_crossing=has_crossing)
        features = select_features(lists[0].columns.to_frame(), ("vector",), lists.attributes, lists.user_features)
        start = time.perf_counter()
        summary, _ = train_ranker(lists, features)
        result[name] = {"seconds": round(time.perf_counter() - start, 1)} | summary.model_dump(mode="json")
    write_json(path, result)
    return result


def _measure_set(name: str, tables: dict[str, Any], work_dir: Path, options: argparse.Namespace) -> Result:
    """Train and measure a set, or return the kept result."""
    path = options.out / f"{name}-{options.preset}-{options.seed}.json"
    kept, config = read_json(path), _parse_config(tables, options)
    if kept and not options.fresh and is_same_model(kept["settings"], extract_model_settings(config)):
        return kept
    console.print(f"{name}, {options.preset}, seed {options.seed}", style="dim")
    environment = describe_environment()
    run_dir = (options.runs or work_dir) / f"{name}-{options.preset}-{options.seed}"
    start = time.perf_counter()
    is_kept = (run_dir / "summary.json").exists()
    run = Run.open(run_dir) if is_kept else fit(config, run_dir)
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    recaller = _build_recaller(run, dataset, split)
    ranker = run.summary.ranker
    if is_kept:  # its ranker may be older than the code that trains it
        ranker = fit_ranker(config, dataset, split, lambda: recaller, run.summary.merge, run.directory)
    if ranker is None:
        raise RuntimeError(f"{run_dir} was trained without a ranker")
    result = {
        "set": name,
        "preset": options.preset,
        "seed": options.seed,
        "facts": environment,
        "settings": extract_model_settings(config),
        "fit_seconds": round(time.perf_counter() - start, 1),
        "training_seconds": run.summary.seconds,
        "protocol": run.summary.protocol,
        "merge": run.summary.merge.model_dump(mode="json"),
        "validation": ranker.model_dump(mode="json"),
    }
    if ranker.info.name != "none":
        result |= _measure_test_users(run, split, recaller, options)
    write_json(path, result)
    return result


def _build_recaller(run: Run, dataset: Dataset, split: Split) -> ChannelRecaller:
    model = run.load_evaluated_model()
    reads_history = model.towers.reads_history
    served_model = build_exact_model(model.build_scorer(dataset, split), dataset, reads_history=reads_history)
    return ChannelRecaller.build(run.channels, dataset, split, served_model)


def _measure_test_users(run: Run, split: Split, recaller: ChannelRecaller, options: argparse.Namespace) -> Result:
    ranker = load_ranker(run.directory / RANKER_DIR, RankerInfo(name="lightgbm"))
    if ranker is None:
        raise RuntimeError(f"{run.directory} has no ranker")

    def compare(size: int | None, depth: int) -> tuple[np.ndarray, np.ndarray]:
        cases = split.test if size is None else sample_cases(split.test, size)
        queries = recaller.build_queries(cases, exclude_seen=True)
        lists = RecalledLists(recaller.snapshot, queries, cases.targets, run.summary.merge, depth)
        return _compare(lists, ranker)

    recalled, ranked = compare(None, CANDIDATE_COUNT)
    _, ranked_500 = compare(options.catalogue_users, CANDIDATE_COUNT)
    _, ranked_all = compare(options.catalogue_users, recaller.snapshot.release.vectors.size)
    return {
        "test": {"users": len(recalled), "recall_order": recalled.mean(), "ranked": ranked.mean()}
        | _relate(ranked, recalled),
        "whole_catalogue": {"users": len(ranked_all), "ranked_500": ranked_500.mean(), "ranked_all": ranked_all.mean()}
        | _relate(ranked_500, ranked_all),
    }


def _compare(lists: RecalledLists, ranker: NamedRanker) -> tuple[np.ndarray, np.ndarray]:
    with progress.track("ranking", len(lists)) as advance:
        return compare_orders(lists, np.arange(len(lists)), ranker.ranker, advance)


def _relate(values: np.ndarray, reference: np.ndarray) -> Result:
    """Return the relative difference of the means with its interval, as shares of the reference's mean."""
    mean, low, high = (float(bound) / float(reference.mean()) for bound in bootstrap_differences(values - reference))
    return {"relative": mean, "relative_low": low, "relative_high": high}


def _print_planted(result: Result) -> None:
    rows = []
    for name in ("crossing", "noise"):
        summary = result[name]
        ratio = summary["ranked_ndcg"] / summary["recall_ndcg"]
        goal = f"≥ {MIN_PLANTED_RATIO}" if name == "crossing" else "not kept"
        cells = [f"{summary[key]:.4f}" for key in ("recall_ndcg", "ranked_ndcg", "gain_low")]
        rows.append([name, f"{summary['users']:,}", *cells, f"{ratio:.2f}", goal, summary["info"]["name"]])
    columns = ["planted", "users", "recall's order", "ranked", "gain's lower bound", "ratio", "goal", "ranker"]
    print_table("Planted data, NDCG@10", columns, rows)


def _print_set(result: Result) -> None:
    title = f"{result['set']}, {result['preset']}, seed {result['seed']}: NDCG@10 of 500 recalled"
    validation = result["validation"]
    cells = [f"{validation[key]:.4f}" for key in ("recall_ndcg", "ranked_ndcg")]
    gain, low, high = (
        validation[key] / max(validation["recall_ndcg"], 1e-9) for key in ("gain", "gain_low", "gain_high")
    )
    rows = [["validation", f"{validation['users']:,}", *cells, _format_interval(gain, low, high), "lower bound > 0"]]
    if "test" in result:
        test, whole = result["test"], result["whole_catalogue"]
        for name, part, before, after, goal in (
            ("test", test, "recall_order", "ranked", f"≥ {MIN_GAIN:+.0%}, lower bound > 0"),
            ("500 against the catalogue", whole, "ranked_all", "ranked_500", f"lower bound ≥ {MAX_LOSS:+.0%}"),
        ):
            interval = _format_interval(*(part[key] for key in ("relative", "relative_low", "relative_high")))
            rows.append([name, f"{part['users']:,}", f"{part[before]:.4f}", f"{part[after]:.4f}", interval, goal])
    print_table(title, ["", "users", "before", "ranked", "difference, 95 %", "goal"], rows)
    console.print(f"ranker: {validation['info']['name']}; {validation['info']['reason']}")


def _format_interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"


if __name__ == "__main__":
    main()
