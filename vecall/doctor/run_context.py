"""Context of a run: its tables, its training, and its evaluated model."""

import dataclasses

import numpy as np

from vecall import progress
from vecall.config import Config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.frames import is_empty_row
from vecall.data.split import Split
from vecall.doctor.answer_facts import describe_answers
from vecall.doctor.context import DoctorContext, TrainingFacts
from vecall.doctor.finding import Message
from vecall.doctor.known_gaps import KnownGaps
from vecall.doctor.label_range import read_label_range
from vecall.doctor.model_facts import draw_trained_items, measure_model
from vecall.errors import TrainingError
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.fallback import FallbackScorer
from vecall.pipeline.evaluate import has_same_items
from vecall.pipeline.interaction_hashes import hash_positives
from vecall.pipeline.lineage import compute_leak_share, select_time_key
from vecall.pipeline.run import Run

_NO_INDEX = Message(
    "a run has no index and serves nothing: publish it and examine the store (--store DIR --config FILE) for ANN "
    "recall and served vectors.",
    "运行没有索引，也不提供服务：请发布后再诊断存储（--store DIR --config FILE），以检查 ANN 召回率和线上向量。",
)
_OTHER_ITEMS = Message(
    "the tables have other items now than when the run was fitted, so its model was not measured: fit again.",
    "表中的物品与训练时不同，因此没有测量模型：请重新训练。",
)
_NO_HASHES = Message(
    "whether --init has seen the held-out part is not known: {reason}", "无法得知 --init 是否见过留出部分：{reason}"
)


def build_run_context(run: Run, config: Config | None, known: KnownGaps | None) -> DoctorContext:
    """Read a run's tables and measure its evaluated model.

    Args:
        run: The run.
        config: Settings that name the tables; None for the run's own.
        known: The model beside the baselines; None for what `fit` has recorded, or to measure it where it has not.

    Raises:
        DataError: A table does not match the schema.
        TrainingError: The model cannot be read.
    """
    tables = config or run.config
    progress.announce("reading the tables")
    dataset = read_dataset(tables.data, tables.schema_)
    split = dataset.split(tables.data)
    training, unexamined = _describe_training(run, dataset, split)
    model = run.load_evaluated_model()
    context = DoctorContext(
        config=run.config,
        dataset=dataset,
        split=split,
        encoders=(model.vocabulary.item_encoder, model.vocabulary.user_encoder),
        labels=read_label_range(tables.data, tables.schema_.interactions),
        training=training,
        answers=describe_answers(
            split.test.histories, dataset.catalogue.item_attributes, len(dataset.catalogue.items), run.config.index
        ),
        unexamined=(*unexamined, _NO_INDEX),
    )
    if not has_same_items(model.vocabulary.item_id_map, dataset):
        return dataclasses.replace(context, unexamined=(*context.unexamined, _OTHER_ITEMS))
    progress.announce("encoding the items")
    scorer = model.build_scorer(dataset, split)
    item_counts = Popularity(split.counted_train, len(dataset.catalogue.items)).item_counts
    with_fallback = FallbackScorer(
        scorer,
        item_counts,
        reads_history=model.towers.reads_history,
        has_features_by_user=~is_empty_row(dataset.catalogue.user_features),
    )
    if known is None and config is None:
        known = KnownGaps.from_summary(run.summary)
    ranking, order = measure_model(with_fallback, dataset, split, known)
    rows = draw_trained_items(split, len(dataset.catalogue.items))
    vectors = np.asarray(scorer.item_vectors[rows].float().cpu().numpy())
    return dataclasses.replace(context, ranking=ranking, order=order, item_vectors=vectors)


def _describe_training(run: Run, dataset: Dataset, split: Split) -> tuple[TrainingFacts, tuple[Message, ...]]:
    """Return the course of the training, and what is not known of it."""
    epochs = tuple(run.read_epoch_metrics())
    try:
        hashes = hash_positives(dataset, select_time_key(dataset, run.directory))
        share = compute_leak_share(run.directory, hashes, split)
    except TrainingError as error:
        return TrainingFacts(epochs, run.summary.best_epoch), (_NO_HASHES.format(reason=error),)
    return TrainingFacts(epochs, run.summary.best_epoch, share), ()
