"""The DSSM baseline on MovieLens beside the pooled preset and the simple baselines.

The result of each model and seed is a file in results/dssm/, and is not measured again while it exists.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.environment import describe_environment, read_json, write_json
from harness.torch_threads import single_torch_thread
from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split
from vecall.evaluation.baselines import Ease, Popularity
from vecall.evaluation.cooccurrence import RecentCooccurrence
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.scorer import Scorer
from vecall.pipeline.fit import fit
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir

SEEDS = (0, 1, 2)
MODELS = ("popularity", "ease", "cooccurrence", "dssm", "pooled")
_SEEDED_MODELS = ("dssm", "pooled")


@dataclass(frozen=True)
class MovieLensBenchmark:
    """Evaluation of all models by the quickstart's protocol.

    Attributes:
        work_dir: directory for runs.
    """

    work_dir: Path

    def make_config(self, seed: int) -> Config:
        """Return the quickstart's configuration with the preset that it chooses, and with another seed."""
        settings = build_settings(find_data_dir(None).resolve()) | {"model": {"preset": "pooled"}}
        return parse_config(settings | {"training": {"seed": seed}, "evaluation": {"baselines": False}})

    @cached_property
    def dataset(self) -> Dataset:
        """MovieLens with the quickstart's features."""
        config = self.make_config(0)
        return read_dataset(config.data, config.schema_)

    @cached_property
    def split(self) -> Split:
        """Leave-one-out split."""
        return self.dataset.split(self.make_config(0).data)

    def evaluate_model(self, model: str, seed: int) -> dict[str, Any]:
        """Train a model and evaluate it on the test interactions.

        Args:
            model: one of MODELS.
            seed: of training; simple baselines have none.
        """
        environment = describe_environment()  # before the work: the commit may change while it runs
        start = time.perf_counter()
        scorer, epochs = self._fit_dssm(seed) if model == "dssm" else self._make_scorer(model, seed)
        fit_seconds = time.perf_counter() - start
        config, n_items = self.make_config(seed), len(self.dataset.catalogue.items)
        evaluated = evaluate_scorer(scorer, self.split.test, n_items, config.evaluation.ks)
        return {
            "model": model,
            "seed": seed if model in _SEEDED_MODELS else None,
            "facts": environment,
            "protocol": self.split.protocol,
            "users": evaluated.evaluated_user_count,
            "items": n_items,
            "dropped": dict(self.dataset.dropped_counts) | dict(self.split.user_counts_by_reason),
            "fit_seconds": round(fit_seconds, 1),
            **epochs,
            **evaluated.as_json(),
        }

    def _make_scorer(self, model: str, seed: int) -> tuple[Scorer, dict[str, Any]]:
        train, n_items = self.split.train, len(self.dataset.catalogue.items)
        baselines: dict[str, Callable[[], Scorer]] = {
            "popularity": lambda: Popularity(train, n_items),
            "ease": lambda: Ease(train, n_items),
            "cooccurrence": lambda: RecentCooccurrence(train, n_items),
        }
        if model in baselines:
            return baselines[model](), {}
        return self._fit(self.make_config(seed), self.dataset, self.work_dir / f"{model}-{seed}")

    def _fit_dssm(self, seed: int) -> tuple[Scorer, dict[str, Any]]:
        """Train the DSSM baseline as the quickstart does, on tables of its own."""
        directory = self.work_dir / f"dssm-{seed}"
        config = build_dssm_config(self.dataset, self.split.train, self.make_config(seed), directory)
        return self._fit(config, read_dataset(config.data, config.schema_), directory / "run")

    def _fit(self, config: Config, dataset: Dataset, run_dir: Path) -> tuple[Scorer, dict[str, Any]]:
        """Train, and return the scorer of the best epoch with the numbers of epochs."""
        with single_torch_thread():
            run = fit(config, run_dir)
        epochs = {"best_epoch": run.summary.best_epoch, "epochs": run.summary.epochs}
        return run.load_evaluated_model().build_scorer(dataset, self.split), epochs


def iterate_results(results_dir: Path, work_dir: Path, *, fresh: bool) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield the result of each model and seed as soon as it is measured.

    Args:
        results_dir: holds dssm/MODEL.json or dssm/MODEL-seedN.json of each.
        work_dir: directory for runs.
        fresh: measure again what was measured before.

    Yields:
        Name, result, and whether it was measured before.
    """
    benchmark = MovieLensBenchmark(work_dir)
    for model in MODELS:
        for seed in SEEDS if model in _SEEDED_MODELS else SEEDS[:1]:
            name = f"{model}-seed{seed}" if model in _SEEDED_MODELS else model
            path = results_dir / "dssm" / f"{name}.json"
            exists = path.exists() and not fresh
            if not exists:
                write_json(path, benchmark.evaluate_model(model, seed))
            yield name, read_json(path), exists


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean and the standard deviation (n - 1) over seeds of each model, without seen items."""
    models = {}
    for model in MODELS:
        runs = [result["seen_excluded"] for result in results if result["model"] == model]
        values = {metric: np.array([run[metric] for run in runs]) for metric in runs[0]}
        models[model] = {
            "seeds": len(runs),
            "mean": {metric: round(float(x.mean()), 4) for metric, x in values.items()},
            "sd": {metric: round(float(x.std(ddof=1)), 4) for metric, x in values.items()} if len(runs) > 1 else None,
        }
    first = results[0]
    dropped = ", ".join(f"{reason} {count}" for reason, count in first["dropped"].items()) or "nothing"
    protocol = (
        f"MovieLens latest-small, {first['protocol']}; seen items excluded; {first['users']} users, "
        f"{first['items']} items; recall@k = |top k ∩ held out| / |held out|, mean over users; dropped: {dropped}"
    )
    return {"protocol": protocol, "models": models}
