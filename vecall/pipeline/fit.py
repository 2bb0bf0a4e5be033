"""Train a model from the tables and evaluate it on the held-out split: `vecall fit`."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from vecall.config import Config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.frames import is_empty_row
from vecall.data.id_map import UNKNOWN_ROW
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import TRAIN, LabeledNegatives, Split, select_labeled_negatives
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer
from vecall.pipeline.lineage import DataState, check_no_leak, interaction_hashes, write_learned
from vecall.pipeline.run import MODEL, REFIT, SUMMARY, Model, Run, Summary, begin, forget_checkpoints
from vecall.release.atomic_io import atomic_write
from vecall.runtime.fork_safety import check_not_forked
from vecall.runtime.paths import check_path
from vecall.towers.two_tower import TwoTower
from vecall.training.callbacks import MONITORED_METRIC
from vecall.training.data import TrainingData
from vecall.training.fit import train
from vecall.training.scoring import Scorer, TowerScorer
from vecall.training.warm_start import ModelVocabulary, warm_start

logger = logging.getLogger(__name__)

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
    write_learned(folder, hashes[split.positive_parts == TRAIN], None if older is None else older.folder)
    served = _fallback(dataset, split, config)
    outcome = train(
        problem,
        config.model,
        config.training,
        folder,
        validate=partial(_validate, cases=split.valid, n_items=problem.n_items, served=served),
        init_weights=_start_from(known, model),
    )
    Model(outcome.towers, known).save(folder / MODEL)
    judged = evaluate_scorer(served(TowerScorer(outcome.towers, problem)), split.test, problem.n_items, config.evaluation.ks)
    seconds = outcome.seconds
    if config.training.refit:
        seconds += _refit(dataset, config, folder / REFIT, epochs=outcome.best_epoch + 1, older=older)
    summary = Summary(
        best_epoch=outcome.best_epoch,
        epochs=outcome.epochs,
        seconds=round(seconds, 2),
        protocol=split.protocol,
        dropped=dict(dataset.dropped_counts) | dict(split.dropped_counts),
        metrics=judged.as_json(),
        refit=config.training.refit,
    )
    atomic_write(folder / SUMMARY, summary.model_dump_json(indent=1).encode())
    forget_checkpoints(folder)
    return Run.open(folder)


def _problem(dataset: Dataset, train_on: RaggedArray, negatives: LabeledNegatives, older: Model | None) -> tuple[TrainingData, ModelVocabulary]:
    items, users = dataset.fit_feature_encoders(train_on.values, np.flatnonzero(train_on.lengths))
    problem = TrainingData.from_catalogue(dataset.catalogue, (items, users), train_on, negatives)
    vocabulary = dataset.catalogue.items
    if older is not None and older.known.item_id_map.id_type == vocabulary.id_type:
        found = older.known.item_id_map.column_to_rows(dataset.catalogue.item_ids)
        problem = dataclasses.replace(problem, learned_before=np.flatnonzero(found != UNKNOWN_ROW))
    return problem, ModelVocabulary(vocabulary, items, users)


def _fallback(dataset: Dataset, split: Split, config: Config) -> Callable[[Scorer], FallbackScorer]:
    """Makes of a model's scores what is served: popular items to those of whom it knows nothing."""
    return partial(
        FallbackScorer,
        popularity=Popularity(split.train, len(dataset.catalogue.items)).item_counts,
        reads_history=config.model.history.encoder != "none",
        has_features=~is_empty_row(dataset.catalogue.user_features),
    )


def _validate(
    scorer: Scorer, *, cases: EvalCases, n_items: int, served: Callable[[Scorer], FallbackScorer]
) -> Mapping[str, float]:
    k = min(_MONITORED_K, max(1, n_items // 10))  # deeper, a small catalogue is found whole
    judged = evaluate_scorer(served(scorer), cases, n_items, (k,), max_sample_users=0).primary_metrics
    recall, ndcg = judged[f"recall@{k}"], judged["ndcg@10"]
    # One per cent more at the top counts as one per cent more in depth.
    return {MONITORED_METRIC: math.sqrt(recall * ndcg), "valid_recall": recall, "valid_ndcg@10": ndcg}


def _start_from(known: ModelVocabulary, model: Model | None) -> Callable[[TwoTower], None] | None:
    return None if model is None else partial(warm_start, vocabulary=known, old_weights=model.weights(), old_vocabulary=model.known)


def _refit(dataset: Dataset, config: Config, folder: Path, *, epochs: int, older: Run | None) -> float:
    """Train again on all interactions for the chosen number of epochs; returns the seconds."""
    logger.info("training again on all interactions for %d epochs", epochs)
    model = None if older is None else older.live_model()
    problem, known = _problem(dataset, dataset.histories, select_labeled_negatives(dataset.interactions), model)
    outcome = train(problem, config.model, config.training, folder, max_epochs=epochs, init_weights=_start_from(known, model))
    Model(outcome.towers, known).save(folder)
    forget_checkpoints(folder)
    return outcome.seconds
