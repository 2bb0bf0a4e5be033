"""The founding model as it stands on MovieLens, beside the pooled preset and the baselines: the floor of later models.

Each model and seed is a cell of its own in results/founding/, and is not run again while it lies there.
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
from vecall.evaluation.baselines import Ease, Popularity, RecentCooccurrence
from vecall.evaluation.evaluator import Scorer, evaluate_scorer
from vecall.pipeline.fit import fit
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir

SEEDS = (0, 1, 2)
MODELS = ("popularity", "ease", "cooccurrence", "founding", "pooled")
_SEEDED_MODELS = ("founding", "pooled")


@dataclass(frozen=True)
class MovieLensBenchmark:
    """The one test that all models are judged by: the quickstart's own.

    Attributes:
        work_dir: a folder for runs.
    """

    work_dir: Path

    def make_config(self, seed: int) -> Config:
        """The quickstart's settings with another seed."""
        return parse_config(build_settings(find_data_dir(None).resolve()) | {"training": {"seed": seed}})

    @cached_property
    def dataset(self) -> Dataset:
        """Read once."""
        config = self.make_config(0)
        return read_dataset(config.data, config.schema_)

    @cached_property
    def split(self) -> Split:
        """Leave-one-out."""
        return self.dataset.split(self.make_config(0).data)

    def evaluate_model(self, model: str, seed: int) -> dict[str, Any]:
        """Train one model with one seed and judge it."""
        began, begun_with = time.perf_counter(), describe_environment()  # others may commit while it runs
        scorer, more = self._fit_dssm(seed) if model == "founding" else self._make_scorer(model, seed)
        seconds = time.perf_counter() - began
        config = self.make_config(seed)
        judged = evaluate_scorer(scorer, self.split.test, len(self.dataset.catalogue.items), config.evaluation.ks)
        return {
            "model": model,
            "seed": seed if model in _SEEDED_MODELS else None,
            "facts": begun_with,
            "protocol": self.split.protocol,
            "users": judged.user_count,
            "items": len(self.dataset.catalogue.items),
            "dropped": dict(self.dataset.dropped_counts) | dict(self.split.dropped_counts),
            "fit_seconds": round(seconds, 1),
            **more,
            **judged.as_json(),
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
        """As the quickstart does it."""
        folder = self.work_dir / f"founding-{seed}"
        config = build_dssm_config(self.dataset, self.split.train, self.make_config(seed), folder)
        return self._fit(config, read_dataset(config.data, config.schema_), folder / "run")

    def _fit(self, config: Config, dataset: Dataset, run_dir: Path) -> tuple[Scorer, dict[str, Any]]:
        with single_torch_thread():
            run = fit(config, run_dir)
        more = {"best_epoch": run.summary.best_epoch, "epochs": run.summary.epochs}
        return run.load_evaluated_model().build_scorer(dataset, self.split), more


def iterate_results(results_dir: Path, work_dir: Path, *, fresh: bool) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every cell as it is done: its name, what it holds, and whether it was there before."""
    movielens = MovieLensBenchmark(work_dir)
    for model in MODELS:
        for seed in SEEDS if model in _SEEDED_MODELS else SEEDS[:1]:
            name = f"{model}-seed{seed}" if model in _SEEDED_MODELS else model
            path = results_dir / "founding" / f"{name}.json"
            there = path.exists() and not fresh
            if not there:
                write_json(path, movielens.evaluate_model(model, seed))
            yield name, read_json(path), there


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds (n - 1), by model, seen items excluded."""
    models = {}
    for model in MODELS:
        runs = [cell["seen_excluded"] for cell in results if cell["model"] == model]
        values = {metric: np.array([run[metric] for run in runs]) for metric in runs[0]}
        models[model] = {
            "seeds": len(runs),
            "mean": {metric: round(float(x.mean()), 4) for metric, x in values.items()},
            "sd": {metric: round(float(x.std(ddof=1)), 4) for metric, x in values.items()} if len(runs) > 1 else None,
        }
    first = results[0]
    protocol = (
        f"MovieLens latest-small, {first['protocol']}; seen items left out; {first['users']} users, "
        f"{first['items']} items; recall@k = |top k ∩ held out| / |held out|, mean over users; "
        "dropped: " + (", ".join(f"{why} {n}" for why, n in first["dropped"].items()) or "nobody")
    )
    return {"protocol": protocol, "models": models}
