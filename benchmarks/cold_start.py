"""Measure recall of new items by their content alone: a tenth of citeulike-a's articles is held out of training.

    python benchmarks/cold_start.py [--data ../shared/data] [--preset auto] [--id-dropout 0 0.3] [--seeds 0 1 2]

A model is trained on tables without the held-out articles, then published from tables that contain them, and queried
through a recaller with each user's library. The metric is mean recall@100 over the users who have articles of both
kinds, among all articles outside the library and among the held-out ones. The baseline is the cosine of TF-IDF tags.
Warm recall@100 is the test metric of `fit`: the last article of each library in random order. Each id dropout and seed
is kept in `results/cold-start/`; it is measured again with --fresh, or when the settings of the preset have changed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.environment import (
    DEFAULT_DATA_DIR,
    RESULTS_DIR,
    describe_environment,
    extract_model_settings,
    read_json,
    write_json,
)
from harness.kept_results import is_same_model
from harness.tables import console, print_table
from vecall import Query, fit, open_recaller, publish
from vecall.arrays import Rows
from vecall.config import Config, parse_config
from vecall.console import configure_logging

K = 100
N_ARTICLES, N_HELD_OUT = 16_980, 1_698
HISTORY_LENGTH = 200  # one library in seventy is longer
GOALS = {"warm": 0.561, "all": 0.42, "held out": 0.68}  # warm: what `pooled` has


def main() -> None:
    """Measure each id dropout and seed, and print the table."""
    options = _parse_options()
    configure_logging(verbose=False)
    directory = options.data / "citeulike-a"
    if not directory.is_dir():
        console.print(f"nothing to measure: {directory} does not exist")
        return
    libraries, tags = (_read_lists(directory / name) for name in ("users.dat", "item-tag.dat"))
    held_out = np.random.default_rng(0).permutation(N_ARTICLES)[:N_HELD_OUT]
    baseline = _measure_tfidf_baseline(libraries, tags, held_out)
    rows = [["TF-IDF of tags", "", *(f"{value:.3f}" for value in baseline.values())]]
    for dropout in options.id_dropout:
        results = [_measure_seed(libraries, tags, held_out, dropout, seed, options) for seed in options.seeds]
        cells = [_format_mean_and_sd([result[name] for result in results]) for name in GOALS]
        presets = sorted({result["settings"]["model"]["preset"] for result in results})
        rows.append([f"vecall {options.preset} ({', '.join(presets)}), id dropout {dropout}", *cells])
    rows.append(["goal", *(f"{value:.3f}" for value in GOALS.values())])
    print_table("citeulike-a, recall@100", ["", "warm", "cold, among all", "cold, among held out"], rows)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--preset", default="auto")
    parser.add_argument("--id-dropout", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "cold-start")
    return parser.parse_args()


def _read_lists(path: Path) -> list[Rows]:
    """Read lists of integers; each line is a count, then so many numbers."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [np.array(line.split()[1:], dtype=np.int64) for line in lines]


def _measure_seed(
    libraries: list[Rows], tags: list[Rows], held_out: Rows, dropout: float, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train, publish and measure with one seed, or return the kept result.

    Args:
        libraries: articles of each user.
        tags: tags of each article.
        held_out: articles that training must not see.
        dropout: id dropout.
        seed: of training and of the order of libraries.
        options: of the command line.
    """
    path = options.out / f"{options.preset}-{dropout}-{seed}.json"
    kept = read_json(path)
    with tempfile.TemporaryDirectory(prefix="cold-") as temporary_dir:
        work_dir = Path(temporary_dir)
        if kept and not options.fresh:
            config = _make_config(work_dir, dropout, seed, kept["settings"]["model"]["preset"])
            if is_same_model(kept["settings"], extract_model_settings(config)):
                return kept
        console.print(f"id dropout {dropout}, seed {seed}", style="dim")
        environment = describe_environment()
        warm = np.setdiff1d(np.arange(N_ARTICLES), held_out)
        warm_libraries = [_shuffle(np.setdiff1d(library, held_out), seed) for library in libraries]
        _write_interactions(work_dir, warm_libraries)
        _write_items(work_dir, tags, warm, held_out)
        run = fit(_make_config(work_dir, dropout, seed, options.preset), work_dir / "run")
        _write_items(work_dir, tags, np.arange(N_ARTICLES), held_out)  # publishing sees the held-out articles
        publish(run.directory, work_dir / "store")
        recalls = _measure_cold_recall(work_dir / "store", libraries, held_out, seed)
        metrics: Any = run.summary.metrics["seen_excluded"]
        result = {
            "facts": environment,
            "settings": extract_model_settings(_make_config(work_dir, dropout, seed, run.config.model.preset)),
            "trained_settings": extract_model_settings(run.config),
            "seconds": run.summary.seconds,
            "best_epoch": run.summary.best_epoch + 1,
            "warm": metrics[f"recall@{K}"],
        } | recalls
    write_json(path, result)
    return result


def _shuffle(library: Rows, seed: int) -> Rows:
    """Return the articles in random order: libraries have no order of their own."""
    return np.random.default_rng([seed, len(library)]).permutation(library)


def _write_interactions(work_dir: Path, libraries: list[Rows]) -> None:
    pairs = [(user, int(item)) for user, library in enumerate(libraries) for item in library]
    pl.DataFrame(pairs, schema=["user", "item"], orient="row").write_parquet(work_dir / "interactions.parquet")


def _write_items(work_dir: Path, tags: list[Rows], items: Rows, held_out: Rows) -> None:
    tag_lists = [[str(tag) for tag in tags[item]] for item in items]
    frame = pl.DataFrame({"item": items, "tags": tag_lists, "held": np.isin(items, held_out)})
    frame.with_columns(pl.col("tags").cast(pl.List(pl.String))).write_parquet(work_dir / "items.parquet")


def _make_config(work_dir: Path, dropout: float, seed: int, preset: str) -> Config:
    return parse_config(
        {
            "data": {
                "interactions": str(work_dir / "interactions.parquet"),
                "items": str(work_dir / "items.parquet"),
            },
            "schema": {
                "interactions": {"user": "user", "item": "item"},
                "items": {
                    "id": "item",
                    "id_type": "integer",
                    "attributes": ["held"],
                    "features": {"tags": {"kind": "tags"}},
                },
                "users": {"id": "user", "id_type": "integer"},
            },
            # Libraries have no order, so the tower reads all of a library and not its newest articles.
            "model": {"preset": preset, "id_dropout": dropout, "history": {"length": HISTORY_LENGTH}},
            "training": {"seed": seed},
            "index": {"engine": "exact"},
            "evaluation": {"ks": [K], "baselines": False},
        }
    )


def _measure_cold_recall(store: Path, libraries: list[Rows], held_out: Rows, seed: int) -> dict[str, float]:
    """Return the mean share of each user's held-out articles among the best K: of all articles, of held-out ones."""
    only_held_out = ({"field": "held", "op": "eq", "value": True},)
    recalls: dict[str, list[float]] = {"all": [], "held out": []}
    with open_recaller(store) as recaller:
        for warm, targets in _make_cold_cases(libraries, held_out):
            history = _shuffle(warm, seed).tolist()
            for name, where in (("all", ()), ("held out", only_held_out)):
                result = recaller.recall(Query(history=history, k=K, where=where))
                recalls[name].append(len(targets.intersection(result.ids)) / len(targets))
    return {name: statistics.mean(values) for name, values in recalls.items()}


def _make_cold_cases(libraries: list[Rows], held_out: Rows) -> list[tuple[Rows, set[int]]]:
    """Return the warm and the held-out articles of each user who has both."""
    parts = [(np.setdiff1d(library, held_out), np.intersect1d(library, held_out)) for library in libraries]
    return [(warm, set(targets.tolist())) for warm, targets in parts if len(warm) and len(targets)]


def _measure_tfidf_baseline(libraries: list[Rows], tags: list[Rows], held_out: Rows) -> dict[str, float]:
    """Return the recall, as `_measure_cold_recall`, of the cosine of TF-IDF tags.

    A user's profile is the sum over their warm articles.
    """
    owners = np.repeat(np.arange(N_ARTICLES), [len(article_tags) for article_tags in tags])  # article of each tag
    flat_tags = np.concatenate(tags)
    weights = np.log(N_ARTICLES / np.bincount(flat_tags)[flat_tags])
    norms = np.sqrt(np.bincount(owners, weights**2, minlength=N_ARTICLES))
    weights = weights / norms[owners]
    is_held_out = np.isin(np.arange(N_ARTICLES), held_out)
    recalls: dict[str, list[float]] = {"all": [], "held out": []}
    for warm, targets in _make_cold_cases(libraries, held_out):
        is_in_library = np.isin(owners, warm)
        profile = np.bincount(
            flat_tags[is_in_library], weights[is_in_library], minlength=int(flat_tags.max()) + 1
        )  # [tags]
        scores = np.bincount(owners, weights * profile[flat_tags], minlength=N_ARTICLES)  # [articles]
        scores[warm] = -np.inf
        for name, candidates in (("all", scores), ("held out", np.where(is_held_out, scores, -np.inf))):
            best = np.argsort(-candidates, kind="stable")[:K]
            recalls[name].append(len(targets.intersection(best.tolist())) / len(targets))
    return {name: statistics.mean(values) for name, values in recalls.items()}


def _format_mean_and_sd(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
