"""Negatives of a step that are positives of the same user, or more negatives than items."""

import numpy as np

from vecall.data.ragged import RaggedArray, count_rows
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message
from vecall.training.settings import TrainingSettings

_MAX_SHARE = 0.1

_TOO_MANY = Message(
    "training.negatives.uniform = {uniform:,} is at least the number of items in training, {items:,}: each item is "
    'drawn several times a step. Set training.loss = "softmax", which uses each once and is exact.',
    "training.negatives.uniform = {uniform:,} 不小于训练中的物品数 {items:,}：每步中每个物品会被抽到多次。请设 "
    'training.loss = "softmax"，它对每个物品只用一次，而且精确。',
)
_COLLISIONS = Message(
    "{share:.1%} of the negatives of a step are items that the same user took ({items:,} items, histories of "
    "{length:.0f}): they are pushed away although they are liked. Set {setting}.",
    "一步的负样本中有 {share:.1%} 是同一用户选过的物品（{items:,} 个物品，历史长 {length:.0f}）：它们本受喜欢却被推"
    "远。请设 {setting}。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compute the expected share of a step's negatives that are positives of the same user."""
    config, split, dataset = context.config, context.split, context.dataset
    if config is None or split is None or dataset is None or config.training.loss not in ("sampled_softmax", "bce"):
        return []
    training = config.training
    counts = count_rows(split.train.values, len(dataset.catalogue.items))
    n_items = int(np.count_nonzero(counts))
    is_sampled = training.loss == "sampled_softmax"
    if is_sampled and training.negatives.uniform >= n_items:
        message = _TOO_MANY.format(uniform=training.negatives.uniform, items=n_items)
        value = round(training.negatives.uniform / n_items, 4)
        return [Finding("batch_collisions", "warning", message, value, "training.loss")]
    if is_sampled and training.mask_history:  # collisions are left out of the loss
        return []
    share = _compute_collision_share(split.train, counts / counts.sum(), n_items, training)
    if share < _MAX_SHARE:
        return []
    setting = "training.mask_history" if is_sampled else "training.loss"
    advice = f"{setting} = {'true' if is_sampled else chr(34) + 'auto' + chr(34)}"
    length = float(split.train.lengths[split.train.lengths > 0].mean())
    message = _COLLISIONS.format(share=share, items=n_items, length=length, setting=advice)
    return [Finding("batch_collisions", "warning", message, round(share, 4), setting)]


def _compute_collision_share(
    train: RaggedArray, frequencies: np.ndarray, n_items: int, training: TrainingSettings
) -> float:
    """Return the mean over positives of the share of negatives that are in the user's training history.

    Args:
        train: Histories.
        frequencies: [N] Share of each item among the positives.
        n_items: Items with an interaction in training.
        training: Numbers of negatives from each source.
    """
    codes = np.unique(train.segment_ids * len(frequencies) + train.values)
    users, items = np.divmod(codes, len(frequencies))
    uniform_shares = np.bincount(users, minlength=len(train)) / n_items  # [U]
    in_batch_shares = np.bincount(users, weights=frequencies[items], minlength=len(train))
    in_batch = min(training.negatives.in_batch, training.batch) if training.loss == "sampled_softmax" else 0
    uniform = training.negatives.uniform
    shares = (uniform * uniform_shares + in_batch * in_batch_shares) / max(uniform + in_batch, 1)
    return float(np.average(shares, weights=train.lengths))
