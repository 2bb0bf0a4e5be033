"""Evaluate a run or a release against the baselines: `vecall evaluate`."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Vectors
from vecall.channels.merge_plan import MergePlan
from vecall.config import Config, check_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.frames import is_empty_row
from vecall.data.id_map import IdMap
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError, StoreError, TrainingError
from vecall.evaluation.compare import EvaluationReport, ServedModel, evaluate_all
from vecall.evaluation.sampling import sample_cases
from vecall.evaluation.scorer import Scorer, VectorScorer
from vecall.index.builder import build_index
from vecall.index.planner import DEFAULT_COSTS
from vecall.index.stored_vectors import StoredVectors
from vecall.pipeline.channel_evaluation import add_channels
from vecall.pipeline.channel_recall import select_user_features
from vecall.pipeline.feature_check import describe_missing_features
from vecall.pipeline.lineage import check_not_trained_on
from vecall.pipeline.run import Run
from vecall.release.encoder import OnnxEncoder
from vecall.release.golden import UserTowerInputs
from vecall.release.release import Release, open_release
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked

logger = logging.getLogger(__name__)

_VECTORS_READ = 65_536  # item vectors read from an index at once


def evaluate(
    *,
    run: str | Path | None = None,
    store: str | Path | None = None,
    config: Config | None = None,
    all_users: bool = False,
) -> dict[str, object]:
    """Evaluate a run or a release: model, index, channels and their merge, and the baselines on the same test split.

    Exactly one of `run` and `store` is given. All users are evaluated while users x items are at most 10^10; beyond
    that, a fixed sample of 10,000 users is, and `protocol` gives the standard error. Baselines that do not fit into
    memory are None, and `protocol` says why. Channels are evaluated on at most 10,000 users.

    Args:
        run: Directory of a finished run. Its evaluated model has not seen the test interactions.
        store: Directory of a store, whose current release is evaluated through its exported towers and its index.
        config: Settings that name the tables. A run has its own; a store needs them.
        all_users: Whether to evaluate all users, however long it takes.

    Returns:
        The object that `vecall evaluate --json` prints.

    Raises:
        ConfigError: Neither or both of `run` and `store` are given, a store without `config`, or invalid settings.
        TrainingError: The run cannot be read, its tables have other items now, or it was trained on what the settings
            hold out.
        StoreError: The release has no towers, was trained on the test interactions (`refit`), or has other items than
            the tables.
    """
    return evaluate_run_or_store(run=run, store=store, config=config, all_users=all_users).as_json()


def evaluate_run_or_store(
    *,
    run: str | Path | None = None,
    store: str | Path | None = None,
    config: Config | None = None,
    all_users: bool = False,
) -> EvaluationReport:
    """Evaluate as `evaluate` does, and return all that an HTML report needs."""
    check_not_forked()
    config = None if config is None else check_config(config)
    if (run is None) == (store is None):
        raise ConfigError(f"evaluate needs either a run or a store, got {'neither' if run is None else 'both'}")
    if run is not None:
        return _evaluate_run(Run.open(run), config, all_users=all_users)
    if config is None:
        raise ConfigError("evaluating a store needs the config that names the tables: --config vecall.toml")
    return _evaluate_release(open_release(Store.open(Path(str(store)))), config, all_users=all_users)


def _evaluate_run(run: Run, config: Config | None, *, all_users: bool) -> EvaluationReport:
    """Evaluate a run through an index that is built as `publish` builds it, but tuned on the validation users."""
    config = config or run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.load_evaluated_model()
    if not has_same_items(model.vocabulary.item_id_map, dataset):
        raise TrainingError(f"{run.directory}: its tables have other items now; fit again to evaluate")
    check_not_trained_on(run.directory, dataset, split)
    scorer = model.build_scorer(dataset, split)
    validation_vectors = scorer.encode_users(sample_cases(split.valid))
    built = build_index(
        scorer.item_vectors.numpy(), validation_vectors if len(validation_vectors) > 1 else None, config.index
    )
    tuning = built.tuning
    served_model = ServedModel(
        encode_users=scorer.encode_users,
        index=built.index,
        search_param_curve=None if tuning is None else tuning.curve,
        engine=built.engine,
        cost_model=DEFAULT_COSTS if tuning is None else tuning.costs,
        has_features_by_user=~is_empty_row(dataset.catalogue.user_features),
        reads_history=model.towers.reads_history,
        tuning_points=() if tuning is None else [dataclasses.asdict(point) for point in tuning.trials],
    )
    config = _resolve_second_order(config, run.summary.similar.second_order)
    return _evaluate_with_channels(config, dataset, split, scorer, served_model, run.summary.merge, all_users=all_users)


def _evaluate_release(release: Release, config: Config, *, all_users: bool) -> EvaluationReport:
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    encoder, user_features = release.encoder, dataset.catalogue.user_features
    if encoder is None:
        raise StoreError(
            f"release {release.name!r} has no towers, so users cannot be encoded; evaluate a release of a run"
        )
    if release.manifest.metrics.get("refit"):
        raise StoreError(
            f"release {release.name!r} was trained again on all interactions, the test split included, so its metrics "
            "would be too high; evaluate its run instead (the release's manifest holds those metrics)"
        )
    release.check_id_types(dataset.schema)
    if release.vectors.size != len(dataset.catalogue.items) or not has_same_items(release.item_ids, dataset):
        raise StoreError(f"release {release.name!r} has other items than the tables; publish again to evaluate")
    encode_users = build_user_encoder(encoder, release.vectors, dataset)
    served_model = ServedModel(
        encode_users=encode_users,
        index=release.index,
        search_param_curve=release.search_param_curve,
        engine=release.manifest.index.engine,
        cost_model=release.cost_model,
        has_features_by_user=~is_empty_row(user_features),
        reads_history=encoder.history_length > 0,
        tuning_points=cast("list[dict[str, float]]", (release.manifest.ann or {}).get("frontier", [])),
    )
    scorer = VectorScorer(encode_users, read_item_vectors(release.vectors))
    config = _resolve_second_order(config, release.channels.facts.second_order)
    report = _evaluate_with_channels(
        config, dataset, split, scorer, served_model, release.merge_plan, all_users=all_users
    )
    trained_split = release.manifest.metrics.get("split")
    if trained_split in (None, split.protocol):
        return report
    note = (
        f"Release {release.name!r} was trained with another split ({trained_split}): its metrics are too high if it "
        "has learned what is held out here."
    )
    logger.warning("%s", note)
    return dataclasses.replace(report, protocol=(*report.protocol, note))


def _resolve_second_order(config: Config, weight: float) -> Config:
    """Return the settings by which channels are built as those of the run or release were."""
    return config.model_copy(update={"channels": config.channels.resolve_second_order(weight)})


def _evaluate_with_channels(
    config: Config,
    dataset: Dataset,
    split: Split,
    scorer: Scorer,
    served_model: ServedModel,
    plan: MergePlan,
    *,
    all_users: bool,
) -> EvaluationReport:
    ks, ann_ks, segments = config.evaluation.ks, config.index.ks, config.evaluation.segments
    report = evaluate_all(dataset, split, scorer, served_model, ks, ann_ks, segments=segments, all_users=all_users)
    return add_channels(report, config.channels, plan, dataset, split, served_model, ks)


def build_user_encoder(
    encoder: OnnxEncoder, vectors: StoredVectors, dataset: Dataset
) -> Callable[[EvalCases], Vectors]:
    """Return a function that encodes the users of B cases, with their context, as requests are: → [B, D].

    Raises:
        StoreError: The tables have not all features that the encoder reads.
    """
    user_features = dataset.catalogue.user_features
    if missing := describe_missing_features({}, encoder.state.users.features, dataset.schema, reads_context=False):
        raise StoreError(f"the release reads other features than the settings name: {missing}; publish again")

    def encode_users(cases: EvalCases) -> Vectors:
        features = select_user_features(user_features, cases)
        return UserTowerInputs(cases.histories, features).encode(encoder, vectors.get_vectors)

    return encode_users


def read_item_vectors(stored_vectors: StoredVectors) -> NDArray[np.float32]:
    """Return the [N, D] stored vectors, without a further copy of them in between."""
    rows = np.arange(stored_vectors.size)
    vectors = np.empty((stored_vectors.size, stored_vectors.dim), dtype=np.float32)
    for start in range(0, len(rows), _VECTORS_READ):
        vectors[start : start + _VECTORS_READ] = stored_vectors.get_vectors(rows[start : start + _VECTORS_READ])
    return vectors


def has_same_items(item_ids: IdMap, dataset: Dataset) -> bool:
    """Return whether the ids are those of the tables' items, in the same rows."""
    return item_ids.to_column().equals(dataset.catalogue.items.to_column())
