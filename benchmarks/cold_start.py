"""New items by their content alone: a tenth of citeulike-a's articles is held out of training altogether.

    python benchmarks/cold_start.py [--data ../shared/data] [--preset pooled] [--id-dropout 0 0.3] [--seeds 0 1 2]

A model is fitted on tables that do not hold the articles; then it is published from tables that do, and asked through a
recaller for each user's library. Mean recall@100 over the users who have both kinds, among all articles outside the
library and among the held-out ones. Beside it the cosine of TF-IDF tags. Warm recall@100 is `fit`'s own test: the last
article of each library in random order. Each (id dropout, seed) lies in `results/cold-start/`; it is measured again
only with --fresh or when the preset has changed.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from harness.environment import RESULTS_DIR, describe_environment, extract_model_settings, read_json, write_json
from numpy.typing import NDArray
from harness.tables import console, print_table

from vecall import Query, fit, open_recaller, publish
from vecall.config import parse_config
from vecall.console import configure_logging

K = 100
N_ARTICLES, N_HELD_OUT = 16_980, 1_698
HISTORY_LENGTH = 200  # of a history; one library in seventy is longer
TARGETS = {"all": 0.42, "held out": 0.68}

Lists = list[NDArray[np.int64]]


def main() -> None:
    options = _parse_options()
    configure_logging(verbose=False)
    folder = options.data / "citeulike-a"
    if not folder.is_dir():
        console.print(f"{folder} is not there, so there is nothing to measure")
        return
    libraries, tags = (_read_lists(folder / name) for name in ("users.dat", "item-tag.dat"))
    held_out = np.random.default_rng(0).permutation(N_ARTICLES)[:N_HELD_OUT]
    rows = [
        [
            "TF-IDF of tags",
            "",
            *(f"{value:.3f}" for value in _measure_tfidf_baseline(libraries, tags, held_out).values()),
        ]
    ]
    for dropout in options.id_dropout:
        results = [_measure_seed(libraries, tags, held_out, dropout, seed, options) for seed in options.seeds]
        figures = [_format_mean_and_sd([one[name] for one in results]) for name in ("warm", *TARGETS)]
        rows.append([f"vecall {options.preset}, id dropout {dropout}", *figures])
    rows.append(["to reach", "", *(f"{value:.3f}" for value in TARGETS.values())])
    print_table("citeulike-a, recall@100", ["", "warm", "cold, among all", "cold, among held out"], rows)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--preset", default="pooled")
    parser.add_argument("--id-dropout", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "cold-start")
    return parser.parse_args()


def _read_lists(file: Path) -> Lists:
    """A line each: a count, then so many numbers."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [np.array(line.split()[1:], dtype=np.int64) for line in lines]


def _measure_seed(
    libraries: Lists, tags: Lists, held_out: NDArray[np.int64], dropout: float, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One training, from its file where it lies."""
    file = options.out / f"{options.preset}-{dropout}-{seed}.json"
    kept = read_json(file)
    with tempfile.TemporaryDirectory(prefix="cold-") as work:
        folder = Path(work)
        config = _make_config(folder, dropout, seed, options.preset)
        settings = extract_model_settings(config)
        if kept.get("settings") == settings and not options.fresh:
            return kept
        console.print(f"id dropout {dropout}, seed {seed}", style="dim")
        begun_with = describe_environment()
        warm = np.setdiff1d(np.arange(N_ARTICLES), held_out)
        warm_libraries = [_shuffle(np.setdiff1d(library, held_out), seed) for library in libraries]
        _write_interactions(folder, warm_libraries)
        _write_items(folder, tags, warm, held_out)
        run = fit(config, folder / "run")
        _write_items(folder, tags, np.arange(N_ARTICLES), held_out)  # the held-out ones come in
        publish(run.directory, folder / "store")
        found = _measure_cold_recall(folder / "store", libraries, held_out, seed)
        metrics: Any = run.summary.metrics["seen_excluded"]
        result = {
            "facts": begun_with,
            "settings": settings,
            "seconds": run.summary.seconds,
            "best_epoch": run.summary.best_epoch + 1,
            "warm": metrics[f"recall@{K}"],
        } | found
    write_json(file, result)
    return result


def _shuffle(library: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Libraries have no order of their own."""
    return np.random.default_rng([seed, len(library)]).permutation(library)


def _write_interactions(folder: Path, libraries: Lists) -> None:
    pairs = [(user, int(item)) for user, library in enumerate(libraries) for item in library]
    pl.DataFrame(pairs, schema=["user", "item"], orient="row").write_parquet(folder / "taken.parquet")


def _write_items(folder: Path, tags: Lists, items: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
    tag_lists = [[str(tag) for tag in tags[item]] for item in items]
    frame = pl.DataFrame({"item": items, "tags": tag_lists, "held": np.isin(items, held_out)})
    frame.with_columns(pl.col("tags").cast(pl.List(pl.String))).write_parquet(folder / "items.parquet")


def _make_config(folder: Path, dropout: float, seed: int, preset: str) -> Any:
    return parse_config(
        {
            "data": {"interactions": str(folder / "taken.parquet"), "items": str(folder / "items.parquet")},
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
            # Libraries have no order, so that all of a library speaks for its user, and not the newest.
            "model": {"preset": preset, "id_dropout": dropout, "history": {"length": HISTORY_LENGTH}},
            "training": {"seed": seed},
            "index": {"engine": "exact"},
            "evaluation": {"ks": [K]},
        }
    )


def _measure_cold_recall(store: Path, libraries: Lists, held_out: NDArray[np.int64], seed: int) -> dict[str, float]:
    """Mean share of each user's held-out articles among the k best."""
    only_held = ({"field": "held", "op": "eq", "value": True},)
    shares: dict[str, list[float]] = {"all": [], "held out": []}
    with open_recaller(store) as recaller:
        for known, targets in _make_cold_cases(libraries, held_out):
            history = _shuffle(known, seed).tolist()
            for name, where in (("all", ()), ("held out", only_held)):
                answer = recaller.recall(Query(history=history, k=K, where=where))
                shares[name].append(len(targets.intersection(answer.ids)) / len(targets))
    return {name: statistics.mean(values) for name, values in shares.items()}


def _make_cold_cases(libraries: Lists, held_out: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], set[int]]]:
    """Warm articles and held-out ones, of the users who have both."""
    parts = [(np.setdiff1d(library, held_out), np.intersect1d(library, held_out)) for library in libraries]
    return [(known, set(targets.tolist())) for known, targets in parts if len(known) and len(targets)]


def _measure_tfidf_baseline(libraries: Lists, tags: Lists, held_out: NDArray[np.int64]) -> dict[str, float]:
    """Cosine of an article's TF-IDF tags with the sum over the user's warm articles."""
    owners = np.repeat(np.arange(N_ARTICLES), [len(one) for one in tags])
    flat = np.concatenate(tags)
    weights = np.log(N_ARTICLES / np.bincount(flat)[flat])
    norms = np.sqrt(np.bincount(owners, weights**2, minlength=N_ARTICLES))
    weights = weights / norms[owners]
    is_held = np.isin(np.arange(N_ARTICLES), held_out)
    shares: dict[str, list[float]] = {"all": [], "held out": []}
    for known, targets in _make_cold_cases(libraries, held_out):
        mine = np.isin(owners, known)
        profile = np.bincount(flat[mine], weights[mine], minlength=int(flat.max()) + 1)
        scores = np.bincount(owners, weights * profile[flat], minlength=N_ARTICLES)
        scores[known] = -np.inf
        for name, allowed in (("all", scores), ("held out", np.where(is_held, scores, -np.inf))):
            best = np.argsort(-allowed, kind="stable")[:K]
            shares[name].append(len(targets.intersection(best.tolist())) / len(targets))
    return {name: statistics.mean(values) for name, values in shares.items()}


def _format_mean_and_sd(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
