"""Train a model from the tables and evaluate it on the held-out split: `vecall fit`."""

import dataclasses
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Mask
from vecall.config import Config, check_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.frames import is_empty_row
from vecall.data.hashing import Hashes
from vecall.data.id_map import UNKNOWN_ROW
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import TRAIN, HardNegatives, Split, select_hard_negatives
from vecall.errors import ConfigError, TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.evaluator import EvaluationResult, evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.metrics import limit_depth
from vecall.evaluation.sampling import describe_users, sample_cases, select_test_cases
from vecall.pipeline.data_summary import count_data, describe_data
from vecall.pipeline.fit_baselines import FitBaselines, evaluate_baselines
from vecall.pipeline.fit_ranker import check_ranker_installed
from vecall.pipeline.fit_serving import fit_serving
from vecall.pipeline.interaction_hashes import hash_positives
from vecall.pipeline.launcher import launch_fit
from vecall.pipeline.lineage import DataFingerprint, check_no_leak, select_time_key, write_trained_hashes
from vecall.pipeline.run import (
    MODEL_DIR,
    REFIT_DIR,
    SUMMARY_FILE,
    Run,
    RunSummary,
    TrainedModel,
    check_run_dir,
    delete_checkpoints,
    enter_run_dir,
)
from vecall.pipeline.selection import resolve_preset
from vecall.pipeline.selection_trial import TrialRunner
from vecall.pipeline.validation_score import ValidationScore
from vecall.runtime.durable_files import atomic_write
from vecall.runtime.fork_safety import check_not_forked
from vecall.runtime.paths import to_absolute_path
from vecall.runtime.process_rank import ProcessRank
from vecall.runtime.quiet_logger import quiet_logger
from vecall.towers.two_tower import TwoTower
from vecall.training.callbacks import MONITORED_METRIC
from vecall.training.data import TrainingData
from vecall.training.distributed import ProcessGroup, is_main, join_process_group, run_on_main
from vecall.training.fit import TrainResult, train
from vecall.training.loggers import check_logger_installed
from vecall.training.scoring import Scorer, TowerScorer
from vecall.training.warm_start import ModelVocabulary, warm_start

logger = logging.getLogger(__name__)

_MONITORED_K = 100


def fit(config: Config, run_dir: str | Path, *, init: str | Path | None = None) -> Run:
    """Train the two-tower model on the tables and evaluate it on the held-out split, beside the baselines.

    Args:
        config: Settings, see `vecall.load_config`.
        run_dir: A new directory, or that of an interrupted `fit` with equal settings and tables, which is resumed with
            bit-equal results.
        init: Directory of a run to initialize the weights from, also of ids and feature values that are new to it, see
            `vecall.training.warm_start.warm_start`.

    Raises:
        DataError: A table does not match the schema.
        ConfigError: The settings are invalid or contradict each other, or the package of `training.logger` or
            `ranking.ranker` is not installed.
        LockedError: Another fit writes the run directory.
        TrainingError: The run directory holds a finished run, or an interrupted fit of other settings or tables; `init`
            has other layers or was trained on interactions that this run holds out; or there is too little to train on.
    """
    check_not_forked()
    config = check_config(config)
    check_logger_installed(config.training.logger)
    check_ranker_installed(config.ranking)
    directory = to_absolute_path(run_dir)
    process_rank = ProcessRank.from_environment()
    if process_rank is None and config.training.devices > 1:
        check_run_dir(directory, config)  # before the processes have started
        launch_fit(config, directory, None if init is None else to_absolute_path(init))
        return Run.open(directory)
    if process_rank is not None and config.training.devices not in (1, process_rank.local_size):
        raise ConfigError(
            f"training.devices: {config.training.devices}, but {process_rank.local_size} processes were started on "
            "this machine; set it to 1, which takes the number of started processes, or to the same number"
        )
    with join_process_group() as group, ExitStack() as stack:
        if not is_main(group):
            stack.enter_context(progress.report_to(None))
            stack.enter_context(quiet_logger("vecall"))
        return _fit_in_group(config, directory, init, group, stack)


def _fit_in_group(
    config: Config, directory: Path, init: str | Path | None, group: ProcessGroup | None, resources: ExitStack
) -> Run:
    run_on_main(group, partial(check_run_dir, directory, config))  # before minutes of reading
    init_run = None if init is None else Run.open(init)
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    data_counts = _count_and_announce(dataset, split)
    time_key = select_time_key(dataset, None if init_run is None else init_run.directory)
    hashes = hash_positives(dataset, time_key)
    if init_run is not None:
        check_no_leak(init_run.directory, hashes, split)
    run_on_main(group, partial(enter_run_dir, directory, config, resources))
    # The refitted model may have been trained on interactions that this run holds out.
    init_model = None if init_run is None else init_run.load_evaluated_model()
    training_data, vocabulary = _build_training_data(
        dataset, split.train, split.hard_negatives, (split.train_weights, split.train_context), init_model
    )
    init_weights = None if init_run is None else init_run.weights_path
    fingerprint = DataFingerprint.compute(dataset, split, training_data, vocabulary, init_weights, time_key)
    _write_or_check_lineage(fingerprint, hashes[split.positive_parts == TRAIN], directory, init_run, group)
    del hashes  # 8 bytes for each positive
    popularity = Popularity(split.counted_train, training_data.n_items)
    trial_runner = TrialRunner(directory, _make_fallback_wrapper(dataset, popularity, config), group)
    config = resolve_preset(config, training_data, split, trial_runner, None if init_run is None else init_run.config)
    wrap_with_fallback = _make_fallback_wrapper(dataset, popularity, config)
    dataset = dataset if config.training.refit else dataset.without_item_features()  # which are encoded by now
    n_items = training_data.n_items
    initialize = _make_initializer(vocabulary, init_model)
    result = _train_and_validate(config, training_data, split, wrap_with_fallback, directory, initialize, group)
    run_on_main(group, partial(TrainedModel(result.towers, vocabulary).save, directory / MODEL_DIR))
    tower_scorer = TowerScorer(result.towers, training_data)
    scorer = wrap_with_fallback(tower_scorer)
    test_result, protocol = _evaluate_test(scorer, split, n_items, config.evaluation.ks, group)
    baselines = _evaluate_baselines(config, split, popularity, test_result, group)
    similar, merge, ranker = run_on_main(group, partial(fit_serving, config, dataset, split, tower_scorer, directory))
    best_epoch, epochs, seconds = result.best_epoch, result.epochs, result.seconds
    if config.training.refit:
        chosen = best_epoch + 1, result.towers.spectral_share
        del result, scorer, tower_scorer, training_data  # the refit has the memory of the first training
        seconds += _refit_and_time(dataset, config, directory, chosen, init_run, group)
    summary = RunSummary(
        best_epoch=best_epoch,
        epochs=epochs,
        seconds=round(seconds, 2),
        protocol=protocol,
        dropped=dict(dataset.dropped_counts) | dict(split.user_counts_by_reason),
        data=data_counts,
        metrics=test_result.as_json(),
        baselines=baselines.metrics,
        baseline_notes=baselines.notes,
        comparison=baselines.comparison,
        similar=similar,
        merge=merge,
        refit=config.training.refit,
        ranker=ranker,
    )
    run_on_main(group, partial(_write_summary, summary, directory))
    return Run.open(directory)


def _train_and_validate(
    config: Config,
    training_data: TrainingData,
    split: Split,
    wrap_with_fallback: Callable[[Scorer], FallbackScorer],
    directory: Path,
    initialize: Callable[[TwoTower], None] | None,
    group: ProcessGroup | None,
) -> TrainResult:
    """Train on the training part, and stop by the validation users."""
    validate = partial(
        _validate,
        cases=sample_cases(split.valid),
        n_items=training_data.n_items,
        wrap_with_fallback=wrap_with_fallback,
        group=group,
    )
    return train(
        training_data, config.model, config.training, directory, validate=validate, init_weights=initialize, group=group
    )


def _count_and_announce(dataset: Dataset, split: Split) -> dict[str, int]:
    """Return the sizes of the data, and announce them."""
    data_counts = count_data(dataset, split)
    for line in describe_data(dataset, split, data_counts):
        progress.announce(line)
    return data_counts


def _write_or_check_lineage(
    fingerprint: DataFingerprint,
    trained_hashes: Hashes,
    directory: Path,
    init_run: Run | None,
    group: ProcessGroup | None,
) -> None:
    """Write what the run is trained on, or check that an interrupted run was trained on the same."""
    run_on_main(group, partial(fingerprint.write_or_check, directory))
    _check_equal_data(fingerprint, group)
    init_directory = None if init_run is None else init_run.directory
    run_on_main(group, partial(write_trained_hashes, directory, trained_hashes, init_directory))


def _check_equal_data(fingerprint: DataFingerprint, group: ProcessGroup | None) -> None:
    """Check that all processes read the same tables."""
    if group is None:
        return
    differing = [
        name
        for name, digest in group.broadcast_object(fingerprint.digests).items()
        if fingerprint.digests[name] != digest
    ]
    if differing:
        raise TrainingError(
            f"the processes of this training read different {', '.join(differing)}: the tables were changed meanwhile, "
            "or differ between machines; start again when they are at rest"
        )


def _write_summary(summary: RunSummary, directory: Path) -> None:
    atomic_write(directory / SUMMARY_FILE, summary.model_dump_json(indent=1).encode())
    delete_checkpoints(directory)


def _build_training_data(
    dataset: Dataset,
    train_histories: RaggedArray,
    negatives: HardNegatives,
    columns: tuple[NDArray[np.float32] | None, pl.DataFrame | None],
    init_model: TrainedModel | None,
) -> tuple[TrainingData, ModelVocabulary]:
    """Fit the feature encoders to the training histories and encode the catalogue with them.

    Args:
        dataset: The tables.
        train_histories: U histories.
        negatives: Hard negatives of the training.
        columns: Weights and context features of the values of the histories; None if there are none.
        init_model: The initial model; None without one.
    """
    weights, context = columns
    item_encoder, user_encoder = dataset.fit_feature_encoders(
        train_histories.values, np.flatnonzero(train_histories.lengths), context
    )
    training_data = TrainingData.from_catalogue(
        dataset.catalogue, (item_encoder, user_encoder), train_histories, negatives, weights, context
    )
    item_ids = dataset.catalogue.items
    if init_model is not None and init_model.vocabulary.item_id_map.id_type == item_ids.id_type:
        training_data = dataclasses.replace(
            training_data, warm_started_items=_find_warm_started_items(dataset.catalogue.item_ids, init_model)
        )
    return training_data, ModelVocabulary(item_ids, item_encoder, user_encoder)


def _find_warm_started_items(item_ids: pl.Series, init_model: TrainedModel) -> NDArray[np.int64]:
    """Return the ascending rows of the items that an older model has trained id vectors of."""
    init_rows = init_model.vocabulary.item_id_map.column_to_rows(item_ids)
    known = np.flatnonzero(init_rows != UNKNOWN_ROW)
    is_learned: Mask = init_model.towers.mark_items_with_ids().numpy()
    return known[is_learned[init_rows[known]]]


def _make_fallback_wrapper(
    dataset: Dataset, popularity: Popularity, config: Config
) -> Callable[[Scorer], FallbackScorer]:
    """Return a function that wraps a scorer: users without history and features get popular items, as from recall."""
    return partial(
        FallbackScorer,
        popularity=popularity.item_counts,
        reads_history=config.model.history.encoder != "none",
        has_features_by_user=~is_empty_row(dataset.catalogue.user_features),
    )


def _validate(
    scorer: Scorer,
    *,
    cases: EvalCases,
    n_items: int,
    wrap_with_fallback: Callable[[Scorer], FallbackScorer],
    group: ProcessGroup | None,
) -> Mapping[str, float]:
    """Return the monitored metric, which is `ValidationScore`, and both of its parts."""
    k = limit_depth(n_items, _MONITORED_K)
    result = evaluate_scorer(wrap_with_fallback(scorer), cases, n_items, (k,), max_sample_users=0, processes=group)
    score = ValidationScore.compute(result, k)
    return {MONITORED_METRIC: score.score, "valid_recall": score.recall, "valid_ndcg@10": score.ndcg}


def _evaluate_test(
    scorer: Scorer, split: Split, n_items: int, ks: Sequence[int], group: ProcessGroup | None
) -> tuple[EvaluationResult, str]:
    """Evaluate on the test users, or on a sample of very many; return the metrics and the protocol."""
    result = evaluate_scorer(scorer, select_test_cases(split.test, n_items), n_items, ks, processes=group)
    if result.evaluated_user_count == len(split.test):
        return result, split.protocol
    return result, (
        f"{split.protocol}; {describe_users(result.evaluated_user_count, len(split.test))} evaluated: standard error "
        f"of {result.headline_key} {result.standard_errors[result.headline_key]:.4f}"
    )


def _evaluate_baselines(
    config: Config, split: Split, popularity: Popularity, model_result: EvaluationResult, group: ProcessGroup | None
) -> FitBaselines:
    """Evaluate the baselines on the test users of the model, unless the settings leave them out."""
    if not config.evaluation.baselines:
        return FitBaselines({}, (), None)
    return run_on_main(group, partial(evaluate_baselines, split, popularity, config.evaluation.ks, model_result))


def _make_initializer(
    vocabulary: ModelVocabulary, init_model: TrainedModel | None
) -> Callable[[TwoTower], None] | None:
    """Return a function that copies the weights of `init_model` into new towers; None without one."""
    if init_model is None:
        return None
    return partial(
        warm_start, vocabulary=vocabulary, old_weights=init_model.state_dict(), old_vocabulary=init_model.vocabulary
    )


def _refit_and_time(
    dataset: Dataset,
    config: Config,
    run_dir: Path,
    chosen: tuple[int, float | None],
    init_run: Run | None,
    group: ProcessGroup | None,
) -> float:
    """Train again on all interactions, with what the validation chose, and save the model; return the seconds.

    Args:
        dataset: The tables.
        config: Settings.
        run_dir: Directory of the run.
        chosen: Number of epochs, and the share of the spectral part.
        init_run: Run that training starts from; None for none.
        group: The processes.
    """
    gc.collect()  # of the trainer, which refers to itself
    epochs, spectral_share = chosen
    refit_dir = run_dir / REFIT_DIR
    logger.info("refitting on all interactions for %d epochs", epochs)
    init_model = None if init_run is None else init_run.load_final_model()
    training_data, vocabulary = _build_training_data(
        dataset,
        dataset.histories,
        select_hard_negatives(dataset.interactions),
        (dataset.history_weights, dataset.history_context),
        init_model,
    )
    result = train(
        training_data,
        config.model,
        config.training,
        refit_dir,
        max_epochs=epochs,
        init_weights=_make_initializer(vocabulary, init_model),
        spectral_share=spectral_share,
        group=group,
    )
    run_on_main(group, partial(TrainedModel(result.towers, vocabulary).save, refit_dir))
    run_on_main(group, partial(delete_checkpoints, refit_dir))
    return result.seconds
