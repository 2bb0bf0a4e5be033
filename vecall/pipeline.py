"""Tables to a release, the README's story in code: fit, publish, evaluate."""

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import progress
from vecall.assessment import Assessment, Served, assess
from vecall.config import Config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.frames import blank_rows
from vecall.data.sequences import Cases, Sequences
from vecall.data.split import TRAIN, Pairs, Split, labelled_negatives
from vecall.data.vocabulary import UNKNOWN
from vecall.errors import ConfigError, StoreError, TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.fallback import WithFallback
from vecall.evaluation.offline import judge
from vecall.export import export_towers
from vecall.forks import check_not_forked
from vecall.index.choose import build_index
from vecall.index.planner import USUAL_COSTS
from vecall.lineage import DataState, check_no_leak, interaction_hashes, write_learned
from vecall.live.retention import check_declared
from vecall.paths import check_path
from vecall.release.build import Contents, write_contents
from vecall.release.bundle import Release, open_release
from vecall.release.encoder import Encoder, TowersState
from vecall.release.files import replace
from vecall.release.golden import UserInputs
from vecall.release.regression import find_regression
from vecall.release.store import Store
from vecall.release.users import Users
from vecall.runs import MODEL, REFIT, SUMMARY, Model, Run, Summary, begin, forget_checkpoints
from vecall.towers.two_tower import TwoTower
from vecall.training.epochs import MONITOR
from vecall.training.fit import train
from vecall.training.problem import Problem
from vecall.training.scoring import Scorer, TowerScorer
from vecall.training.warm_start import Known, warm_start

logger = logging.getLogger(__name__)

_ENCODED_AT_ONCE = 8192
_MONITORED_K = 100


def fit(config: Config, run_dir: str | Path, *, init: str | Path | None = None) -> Run:
    """Train towers on the tables and judge them on what was held out.

    Args:
        config: see `vecall.load_config`.
        run_dir: a new folder, or one in which an equal `fit` was cut short: that one is gone on with, bit-equal.
        init: an older run to start from; ids and values that it does not know start afresh.

    Raises:
        DataError: a table does not hold what the schema says.
        ConfigError: the settings do not go together.
        TrainingError: the run directory is taken, or holds a fit of other tables that was cut short; `init` has other
            layers, or has learned what this run would be judged by; or there is too little to learn from.
    """
    check_not_forked()
    folder = check_path(run_dir)
    older = None if init is None else Run.open(init)
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    hashes = interaction_hashes(dataset)
    if older is not None:
        check_no_leak(older.folder, hashes, split)
    begin(folder, config)
    # Of the older run the model that has not seen what it was judged by, and so, in general, what this one is.
    model = None if older is None else older.judged_model()
    problem, known = _problem(dataset, split.train, split.negatives, model)
    DataState.of(dataset, split, problem, known, None if older is None else older.weights_file).begin(folder)
    write_learned(folder, hashes[split.parts == TRAIN], None if older is None else older.folder)
    served = _fallback(dataset, split, config)
    outcome = train(
        problem,
        config.model,
        config.training,
        folder,
        validate=partial(_validate, cases=split.valid, n_items=problem.n_items, served=served),
        start_from=_start_from(known, model),
    )
    Model(outcome.towers, known).save(folder / MODEL)
    judged = judge(served(TowerScorer(outcome.towers, problem)), split.test, problem.n_items, config.evaluation.ks)
    seconds = outcome.seconds
    if config.training.refit:
        seconds += _refit(dataset, config, folder / REFIT, epochs=outcome.best_epoch + 1, older=older)
    summary = Summary(
        best_epoch=outcome.best_epoch,
        epochs=outcome.epochs,
        seconds=round(seconds, 2),
        protocol=split.protocol,
        dropped=dict(dataset.dropped) | dict(split.dropped),
        metrics=judged.as_json(),
        refit=config.training.refit,
    )
    replace(folder / SUMMARY, summary.model_dump_json(indent=1).encode())
    forget_checkpoints(folder)
    return Run.open(folder)


def _problem(dataset: Dataset, train_on: Sequences, negatives: Pairs, older: Model | None) -> tuple[Problem, Known]:
    items, users = dataset.fit_encoders(train_on.rows, np.flatnonzero(train_on.lengths))
    problem = Problem.encoded(dataset.catalogue, (items, users), train_on, negatives)
    vocabulary = dataset.catalogue.items
    if older is not None and older.known.items.id_type == vocabulary.id_type:
        found = older.known.items.rows_of(dataset.catalogue.item_ids)
        problem = dataclasses.replace(problem, learned_before=np.flatnonzero(found != UNKNOWN))
    return problem, Known(vocabulary, items, users)


def _fallback(dataset: Dataset, split: Split, config: Config) -> Callable[[Scorer], WithFallback]:
    """Makes of a model's scores what is served: popular items to those of whom it knows nothing."""
    return partial(
        WithFallback,
        popularity=Popularity(split.train, len(dataset.catalogue.items)).counts,
        reads_history=config.model.history.encoder != "none",
        has_features=~blank_rows(dataset.catalogue.user_features),
    )


def _validate(
    scorer: Scorer, *, cases: Cases, n_items: int, served: Callable[[Scorer], WithFallback]
) -> Mapping[str, float]:
    k = min(_MONITORED_K, max(1, n_items // 10))  # deeper, a small catalogue is found whole
    judged = judge(served(scorer), cases, n_items, (k,), sample_users=0).main
    recall, ndcg = judged[f"recall@{k}"], judged["ndcg@10"]
    # One per cent more at the top counts as one per cent more in depth.
    return {MONITOR: math.sqrt(recall * ndcg), "valid_recall": recall, "valid_ndcg@10": ndcg}


def _start_from(known: Known, model: Model | None) -> Callable[[TwoTower], None] | None:
    return None if model is None else partial(warm_start, known=known, old_weights=model.weights(), old=model.known)


def _refit(dataset: Dataset, config: Config, folder: Path, *, epochs: int, older: Run | None) -> float:
    """Train again on all interactions for the chosen number of epochs; returns the seconds."""
    logger.info("training again on all interactions for %d epochs", epochs)
    model = None if older is None else older.live_model()
    problem, known = _problem(dataset, dataset.histories, labelled_negatives(dataset.interactions), model)
    outcome = train(problem, config.model, config.training, folder, epochs=epochs, start_from=_start_from(known, model))
    Model(outcome.towers, known).save(folder)
    forget_checkpoints(folder)
    return outcome.seconds


def publish(
    run_dir: str | Path,
    store: str | Path,
    *,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
    allow_worse: bool = False,
) -> str:
    """Make a release of a run: export the towers, encode all items of the tables, build the index, prove it.

    The tables are read again, so items and histories are those of today; items newer than the run are encoded by
    their features alone.

    Args:
        run_dir: a finished run.
        store: the store's folder; made if there is none.
        name: of the release; None takes the time.
        activate: whether it becomes the current one.
        journal_seq: operations of the store's journal that the tables already hold.
        allow_worse: publish it though it has less than half of the current release's items, or its model less than half
            of that one's recall. With `activate` false it is published all the same, with a warning.

    Returns:
        The release's name.

    Raises:
        TrainingError: there is no finished run.
        DataError: the tables do not hold what the schema says.
        ExportError: the exported towers answer otherwise than the trained ones.
        StoreError: the name is taken, the journal has no operation `journal_seq`, the release has lost much and
            `allow_worse` is false, or the store cannot be written.
    """
    check_not_forked()
    run = Run.open(run_dir)
    model = run.live_model()
    opened = Store.create(Path(store))
    check_declared(opened, run.config.schema_.items.id_type, journal_seq)
    dataset = read_dataset(run.config.data, run.config.schema_)
    _check_no_regression(opened, run, dataset, activate=activate, allow_worse=allow_worse)
    with opened.draft(name) as draft:
        encoder, digest = _export(model, dataset, draft.folder)
        rows = np.arange(len(dataset.catalogue.items))
        contents = Contents(
            items=dataset.catalogue.items,
            vectors=_encode_catalogue(encoder, dataset.catalogue.item_features, rows),
            attributes=dataset.catalogue.item_attributes,
            popularity=dataset.popularity,
            users=_users(dataset),
            features=dataset.catalogue.item_features,
            metrics={"model": run.summary.metrics, "refit": run.summary.refit},
            journal_seq=journal_seq,
            declared_seq=journal_seq,
        )
        description = write_contents(draft.folder, contents, run.config.index, encoder=(encoder, digest))
        return draft.commit(description, activate=activate)


def _check_no_regression(store: Store, run: Run, dataset: Dataset, *, activate: bool, allow_worse: bool) -> None:
    lost = find_regression(store, len(dataset.catalogue.items), run.summary.metrics)
    if lost is None:
        return
    left_out = f" Left out while reading: {dict(dataset.dropped)}." if dataset.dropped else ""
    if activate and not allow_worse:
        raise StoreError(
            f"{run.folder}: is not published: {lost}.{left_out} See to the tables and the run; if it is meant, publish "
            "with --allow-worse, or with --no-activate to look at it first"
        )
    logger.warning("%s: %s.%s", run.folder, lost, left_out)


def _export(model: Model, dataset: Dataset, folder: Path) -> tuple[Encoder, str]:
    """Write the towers into a draft and open them as a release does."""
    known, settings = model.known, model.towers.settings
    state = TowersState(
        dim=settings.dim,
        history_length=settings.history.length if model.towers.reads_history else 0,
        items=known.item_encoders.state,
        users=known.user_encoders.state,
    )
    id_rows = known.items.rows_of(dataset.catalogue.item_ids)
    shapes = known.item_encoders.shapes, known.user_encoders.shapes
    digest = export_towers(model.towers, state, shapes, id_rows, folder)
    return Encoder(folder, threads=os.cpu_count() or 1), digest


def _encode_catalogue(encoder: Encoder, fields: pl.DataFrame, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, D] vectors of all items, by the towers that were exported."""
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    with progress.task("encoding items", len(rows)) as advance:
        for start in range(0, len(rows), _ENCODED_AT_ONCE):
            part = slice(start, start + _ENCODED_AT_ONCE)
            vectors[part] = encoder.encode_items(fields[part], rows[part])
            advance(len(rows[part]))
    return vectors


def _users(dataset: Dataset) -> Users:
    return Users(dataset.catalogue.users, dataset.catalogue.user_features, dataset.histories)


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
