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
from vecall.pipeline.lineage import DataFingerprint, check_no_leak, hash_interactions, write_trained_hashes
from vecall.pipeline.run import (
    MODEL_DIR,
    REFIT_DIR,
    SUMMARY_FILE,
    Run,
    RunSummary,
    TrainedModel,
    create_or_resume_run,
    delete_checkpoints,
)
from vecall.release.atomic_io import atomic_write
from vecall.runtime.fork_safety import check_not_forked
from vecall.runtime.paths import to_absolute_path
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
    folder = to_absolute_path(run_dir)
    older = None if init is None else Run.open(init)
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    hashes = hash_interactions(dataset)
    if older is not None:
        check_no_leak(older.directory, hashes, split)
    create_or_resume_run(folder, config)
    # Of the older run the model that has not seen what it was judged by, and so, in general, what this one is.
    model = None if older is None else older.load_evaluated_model()
    problem, known = _build_training_data(dataset, split.train, split.negatives, model)
    DataFingerprint.compute(
        dataset, split, problem, known, None if older is None else older.weights_path
    ).write_or_check(folder)
    write_trained_hashes(folder, hashes[split.positive_parts == TRAIN], None if older is None else older.directory)
    served = _make_fallback_wrapper(dataset, split, config)
    outcome = train(
        problem,
        config.model,
        config.training,
        folder,
        validate=partial(_validate, cases=split.valid, n_items=problem.n_items, wrap_with_fallback=served),
        init_weights=_make_initializer(known, model),
    )
    TrainedModel(outcome.towers, known).save(folder / MODEL_DIR)
    judged = evaluate_scorer(
        served(TowerScorer(outcome.towers, problem)), split.test, problem.n_items, config.evaluation.ks
    )
    seconds = outcome.seconds
    if config.training.refit:
        seconds += _refit(dataset, config, folder / REFIT_DIR, epochs=outcome.best_epoch + 1, init_run=older)
    summary = RunSummary(
        best_epoch=outcome.best_epoch,
        epochs=outcome.epochs,
        seconds=round(seconds, 2),
        protocol=split.protocol,
        dropped=dict(dataset.dropped_counts) | dict(split.dropped_counts),
        metrics=judged.as_json(),
        refit=config.training.refit,
    )
    atomic_write(folder / SUMMARY_FILE, summary.model_dump_json(indent=1).encode())
    delete_checkpoints(folder)
    return Run.open(folder)


def _build_training_data(
    dataset: Dataset, train_histories: RaggedArray, negatives: LabeledNegatives, init_model: TrainedModel | None
) -> tuple[TrainingData, ModelVocabulary]:
    items, users = dataset.fit_feature_encoders(train_histories.values, np.flatnonzero(train_histories.lengths))
    problem = TrainingData.from_catalogue(dataset.catalogue, (items, users), train_histories, negatives)
    vocabulary = dataset.catalogue.items
    if init_model is not None and init_model.vocabulary.item_id_map.id_type == vocabulary.id_type:
        found = init_model.vocabulary.item_id_map.column_to_rows(dataset.catalogue.item_ids)
        problem = dataclasses.replace(problem, warm_started_items=np.flatnonzero(found != UNKNOWN_ROW))
    return problem, ModelVocabulary(vocabulary, items, users)


def _make_fallback_wrapper(dataset: Dataset, split: Split, config: Config) -> Callable[[Scorer], FallbackScorer]:
    """Makes of a model's scores what is served: popular items to those of whom it knows nothing."""
    return partial(
        FallbackScorer,
        popularity=Popularity(split.train, len(dataset.catalogue.items)).item_counts,
        reads_history=config.model.history.encoder != "none",
        has_features=~is_empty_row(dataset.catalogue.user_features),
    )


def _validate(
    scorer: Scorer, *, cases: EvalCases, n_items: int, wrap_with_fallback: Callable[[Scorer], FallbackScorer]
) -> Mapping[str, float]:
    k = min(_MONITORED_K, max(1, n_items // 10))  # deeper, a small catalogue is found whole
    judged = evaluate_scorer(wrap_with_fallback(scorer), cases, n_items, (k,), max_sample_users=0).primary_metrics
    recall, ndcg = judged[f"recall@{k}"], judged["ndcg@10"]
    # One per cent more at the top counts as one per cent more in depth.
    return {MONITORED_METRIC: math.sqrt(recall * ndcg), "valid_recall": recall, "valid_ndcg@10": ndcg}


def _make_initializer(
    vocabulary: ModelVocabulary, init_model: TrainedModel | None
) -> Callable[[TwoTower], None] | None:
    return (
        None
        if init_model is None
        else partial(
            warm_start, vocabulary=vocabulary, old_weights=init_model.state_dict(), old_vocabulary=init_model.vocabulary
        )
    )


def _refit(dataset: Dataset, config: Config, refit_dir: Path, *, epochs: int, init_run: Run | None) -> float:
    """Train again on all interactions for the chosen number of epochs; returns the seconds."""
    logger.info("training again on all interactions for %d epochs", epochs)
    model = None if init_run is None else init_run.load_final_model()
    problem, known = _build_training_data(
        dataset, dataset.histories, select_labeled_negatives(dataset.interactions), model
    )
    outcome = train(
        problem,
        config.model,
        config.training,
        refit_dir,
        max_epochs=epochs,
        init_weights=_make_initializer(known, model),
    )
    TrainedModel(outcome.towers, known).save(refit_dir)
    delete_checkpoints(refit_dir)
    return outcome.seconds
