"""Evaluate a run or a release beside the baselines: `vecall evaluate`."""

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vecall.config import Config
from vecall.data.dataset import read_dataset
from vecall.data.frames import blank_rows
from vecall.data.ragged import Cases
from vecall.errors import ConfigError, StoreError, TrainingError
from vecall.evaluation.compare import Assessment, Served, assess
from vecall.index.builder import build_index
from vecall.index.planner import USUAL_COSTS
from vecall.pipeline.run import Run
from vecall.release.golden import UserInputs
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
    return assess_run_or_store(run=run, store=store, config=config).as_json()


def assess_run_or_store(
    *, run: str | Path | None = None, store: str | Path | None = None, config: Config | None = None
) -> Assessment:
    """As `evaluate`, with all that a report shows."""
    check_not_forked()
    if (run is None) == (store is None):
        raise ConfigError("evaluate takes either a run or a store")
    if run is not None:
        return _assess_run(Run.open(run), config)
    if config is None:
        raise ConfigError("evaluating a store needs the config that names the tables: --config vecall.toml")
    return _assess_release(open_release(Store.open(Path(str(store)))), config)


def _assess_run(run: Run, config: Config | None) -> Assessment:
    """The index is built here, as `publish` would, its effort found on the validation's users."""
    config = config or run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.judged_model()
    catalogue = dataset.catalogue
    if model.known.items.ids(np.arange(len(model.known.items))) != catalogue.items.ids(np.arange(len(catalogue.items))):
        raise TrainingError(f"{run.folder}: its tables have other items now; fit again to evaluate")
    scorer = model.scorer(dataset, split)
    valid = scorer.user_vectors(split.valid)
    built = build_index(scorer.item_vectors.numpy(), valid if len(valid) > 1 else None, config.index)
    tuning = built.tuning
    served = Served(
        user_vectors=scorer.user_vectors,
        index=built.index,
        effort=None if tuning is None else tuning.curve,
        engine=built.engine,
        costs=USUAL_COSTS if tuning is None else tuning.costs,
        has_features=~blank_rows(catalogue.user_features),
        reads_history=model.towers.reads_history,
        frontier=() if tuning is None else [dataclasses.asdict(point) for point in tuning.tried],
    )
    return assess(dataset, split, scorer, served, config.evaluation.ks, config.index.ks)


def _assess_release(release: Release, config: Config) -> Assessment:
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
    if release.index.size != n_items or release.items.ids(everything) != dataset.catalogue.items.ids(everything):
        raise StoreError(f"release {release.name!r} has other items than the tables; publish again to evaluate")

    def user_vectors(cases: Cases) -> NDArray[np.float32]:
        return UserInputs(cases.histories, users[cases.users]).encode(encoder, release.index.vectors)

    vectors = release.index.vectors(everything)
    served = Served(
        user_vectors=user_vectors,
        index=release.index,
        effort=release.effort,
        engine=release.manifest.index.engine,
        costs=release.costs,
        has_features=~blank_rows(users),
        reads_history=encoder.history_length > 0,
        frontier=cast("list[dict[str, float]]", (release.manifest.ann or {}).get("frontier", [])),
    )
    return assess(
        dataset, split, lambda cases: user_vectors(cases) @ vectors.T, served, config.evaluation.ks, config.index.ks
    )
