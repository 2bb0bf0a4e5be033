"""Evaluate a run or a release beside the baselines: `vecall evaluate`."""

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vecall.config import Config
from vecall.data.dataset import read_dataset
from vecall.data.frames import is_empty_row
from vecall.data.ragged import EvalCases
from vecall.errors import ConfigError, StoreError, TrainingError
from vecall.evaluation.compare import EvaluationReport, ServedModel, evaluate_all
from vecall.index.builder import build_index
from vecall.index.planner import DEFAULT_COSTS
from vecall.pipeline.run import Run
from vecall.release.golden import UserTowerInputs
from vecall.release.release import Release, open_release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked


def evaluate(
    *, run: str | Path | None = None, store: str | Path | None = None, config: Config | None = None
) -> dict[str, object]:
    """Judge a run or a release: the model, its index, popularity, EASE and co-occurrence, by one protocol.

    Args:
        run: a finished run; judged is the model that has not seen the test.
        store: or the current release of a store, through its exported towers and its own index.
        config: names the tables. A run knows its own; a store needs it.

    Returns:
        As `vecall evaluate --json` prints it.

    Raises:
        ConfigError: neither or both of run and store, or a store without a config.
        StoreError: the release has seen the test (it was trained again on everything), or is of other items.
    """
    return evaluate_run_or_store(run=run, store=store, config=config).as_json()


def evaluate_run_or_store(
    *, run: str | Path | None = None, store: str | Path | None = None, config: Config | None = None
) -> EvaluationReport:
    """As `evaluate`, with all that a report shows."""
    check_not_forked()
    if (run is None) == (store is None):
        raise ConfigError("evaluate takes either a run or a store")
    if run is not None:
        return _evaluate_run(Run.open(run), config)
    if config is None:
        raise ConfigError("evaluating a store needs the config that names the tables: --config vecall.toml")
    return _evaluate_release(open_release(Store.open(Path(str(store)))), config)


def _evaluate_run(run: Run, config: Config | None) -> EvaluationReport:
    """The index is built here, as `publish` would, its effort found on the validation's users."""
    config = config or run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.load_evaluated_model()
    catalogue = dataset.catalogue
    if model.vocabulary.item_id_map.to_ids(np.arange(len(model.vocabulary.item_id_map))) != catalogue.items.to_ids(
        np.arange(len(catalogue.items))
    ):
        raise TrainingError(f"{run.directory}: its tables have other items now; fit again to evaluate")
    scorer = model.build_scorer(dataset, split)
    valid = scorer.encode_users(split.valid)
    built = build_index(scorer.item_vectors.numpy(), valid if len(valid) > 1 else None, config.index)
    tuning = built.tuning
    served = ServedModel(
        encode_users=scorer.encode_users,
        index=built.index,
        search_param_curve=None if tuning is None else tuning.curve,
        engine=built.engine,
        cost_model=DEFAULT_COSTS if tuning is None else tuning.costs,
        has_features=~is_empty_row(catalogue.user_features),
        reads_history=model.towers.reads_history,
        tuning_points=() if tuning is None else [dataclasses.asdict(point) for point in tuning.trials],
    )
    return evaluate_all(dataset, split, scorer, served, config.evaluation.ks, config.index.ks)


def _evaluate_release(release: Release, config: Config) -> EvaluationReport:
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    encoder, users = release.encoder, dataset.catalogue.user_features
    if encoder is None:
        raise StoreError(f"release {release.name!r} has no towers: its users cannot be encoded, so not judged")
    if release.manifest.metrics.get("refit"):
        raise StoreError(
            f"release {release.name!r} was trained again on all interactions, the test included, so judging it would "
            "flatter it; evaluate its run instead (the release's manifest holds those metrics)"
        )
    n_items = len(dataset.catalogue.items)
    everything = np.arange(n_items)
    if release.index.size != n_items or release.item_ids.to_ids(everything) != dataset.catalogue.items.to_ids(
        everything
    ):
        raise StoreError(f"release {release.name!r} has other items than the tables; publish again to evaluate")

    def encode_users(cases: EvalCases) -> NDArray[np.float32]:
        return UserTowerInputs(cases.histories, users[cases.users]).encode(encoder, release.index.get_vectors)

    vectors = release.index.get_vectors(everything)
    served = ServedModel(
        encode_users=encode_users,
        index=release.index,
        search_param_curve=release.search_param_curve,
        engine=release.manifest.index.engine,
        cost_model=release.cost_model,
        has_features=~is_empty_row(users),
        reads_history=encoder.history_length > 0,
        tuning_points=cast("list[dict[str, float]]", (release.manifest.ann or {}).get("frontier", [])),
    )
    return evaluate_all(
        dataset, split, lambda cases: encode_users(cases) @ vectors.T, served, config.evaluation.ks, config.index.ks
    )
