"""Context of a store: its current release and, with settings that name the tables, the users who ask now."""

import dataclasses

import numpy as np

from vecall import progress
from vecall.config import Config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.frames import is_empty_row
from vecall.data.ragged import RaggedArray
from vecall.data.split import Split
from vecall.doctor.answer_facts import describe_answers
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Message
from vecall.doctor.known_gaps import KnownGaps
from vecall.doctor.label_range import read_label_range
from vecall.doctor.model_facts import draw_trained_items, measure_model
from vecall.doctor.recall_samples import draw_cases
from vecall.doctor.release_facts import compare_served_vectors, measure_ann
from vecall.doctor.trained_settings import apply_trained_settings
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.fallback import FallbackScorer
from vecall.evaluation.scorer import VectorScorer
from vecall.index.settings import IndexSettings
from vecall.pipeline.evaluate import build_user_encoder, has_same_items, read_item_vectors
from vecall.pipeline.feature_check import describe_missing_features
from vecall.release.release import Release

_NO_CONFIG = Message(
    "a store does not know its tables: without --config vecall.toml neither data, baselines, order nor present users "
    "were examined, only the release itself.",
    "存储不知道它的表：没有 --config vecall.toml，只检查了发布版本本身，没有检查数据、基线、顺序和当前用户。",
)
_NO_TOWERS = Message(
    "the release has no towers (publish_vectors): users cannot be encoded, so the model was not measured.",
    "发布版本没有塔（publish_vectors）：无法编码用户，因此没有测量模型。",
)
_REFIT = Message(
    "the release was trained again on all interactions (refit), the test included: the model was not measured; "
    "examine its run instead (--run).",
    "发布版本用全部交互重新训练过（refit），包含测试集：没有测量模型；请诊断它的运行（--run）。",
)
_OTHER_ITEMS = Message(
    "the tables have other items than the release, so the model was not measured: publish again.",
    "表中的物品与发布版本不同，因此没有测量模型：请重新发布。",
)
_OTHER_FEATURES = Message(
    "the towers of the release read features that the settings do not name, or name with another kind: neither users "
    "nor items were encoded. Give the settings that it was trained with, or fit and publish again.",
    "发布版本的塔读取的特征在配置中不存在或类型不同：没有编码用户和物品。请使用训练时的配置，或重新训练并发布。",
)
_NO_TRAINING = Message(
    "a release has no record of its training: examine its run for loss, epochs and learning rate (--run).",
    "发布版本不含训练记录：损失、轮数和学习率请诊断它的运行（--run）。",
)


def build_store_context(release: Release, config: Config | None, known: KnownGaps | None) -> DoctorContext:
    """Measure a release, and what it ranks for the users of the tables.

    Args:
        release: The current release of a store.
        config: Settings that name the tables; None to examine the release alone.
        known: The model beside the baselines; None to measure it.

    Raises:
        DataError: A table does not match the schema.
        StoreError: The settings have ids of other types than the release.
    """
    if config is not None:
        release.check_id_types(config.schema_)
    settings = IndexSettings.model_validate(release.manifest.index.settings)
    trained_config, notes = _apply_trained_settings(config, release)
    progress.announce(f"examining release {release.name}")
    histories = RaggedArray.from_lists([]) if release.users is None else release.users.histories
    context = DoctorContext(
        config=trained_config,
        served=compare_served_vectors(release, None),
        answers=describe_answers(histories, release.attributes, release.vectors.size, settings),
        ann=measure_ann(release, None, settings.target_recall),
        unexamined=(_NO_TRAINING, *notes),
    )
    if config is None:
        return context
    progress.announce("reading the tables")
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    context = dataclasses.replace(
        context,
        dataset=dataset,
        split=split,
        labels=read_label_range(config.data, config.schema_.interactions),
    )
    reasons = _list_reasons(release, dataset)
    if _OTHER_FEATURES not in reasons:
        context = dataclasses.replace(context, served=compare_served_vectors(release, dataset))
    if reasons:
        return dataclasses.replace(context, unexamined=(*context.unexamined, *reasons))
    return _measure(context, release, dataset, split, settings, known)


def _apply_trained_settings(config: Config | None, release: Release) -> tuple[Config | None, tuple[Message, ...]]:
    """Return the settings for the checks, and what is to be told of them."""
    if config is None:
        return None, (_NO_CONFIG,)
    return apply_trained_settings(config, release.manifest.trained_settings)


def _list_reasons(release: Release, dataset: Dataset) -> list[Message]:
    """Return why the release cannot be measured on the tables."""
    if release.encoder is None:
        return [_NO_TOWERS]
    state = release.encoder.state
    if describe_missing_features(state.items.features, state.users.features, dataset.schema, reads_context=False):
        return [_OTHER_FEATURES]
    if not has_same_items(release.item_ids, dataset):
        return [_OTHER_ITEMS]
    return [_REFIT] if release.manifest.metrics.get("refit") else []


def _measure(
    context: DoctorContext,
    release: Release,
    dataset: Dataset,
    split: Split,
    settings: IndexSettings,
    known: KnownGaps | None,
) -> DoctorContext:
    """Add what the release ranks for the test users, and its ANN recall for them."""
    encoder, user_features = release.encoder, dataset.catalogue.user_features
    assert encoder is not None  # noqa: S101 - see `_list_reasons`
    encode_users = build_user_encoder(encoder, release.vectors, dataset)
    scorer = FallbackScorer(
        VectorScorer(encode_users, read_item_vectors(release.vectors)),
        Popularity(split.counted_train, len(dataset.catalogue.items)).item_counts,
        reads_history=encoder.history_length > 0,
        has_features_by_user=~is_empty_row(user_features),
    )
    ranking, order = measure_model(scorer, dataset, split, known)
    cases = draw_cases(split.test)
    has_vector = np.flatnonzero(~scorer.get_unknown_user_mask(cases))
    progress.announce("measuring the index")
    return dataclasses.replace(
        context,
        encoders=(FeatureEncoder(encoder.state.items), FeatureEncoder(encoder.state.users)),
        ranking=ranking,
        order=order,
        item_vectors=release.vectors.get_vectors(draw_trained_items(split, release.vectors.size)),
        ann=measure_ann(
            release, encode_users(cases.take(has_vector)) if len(has_vector) else None, settings.target_recall
        ),
    )
