"""The loss rises from epoch to epoch, or has not fallen at all: the learning rate is too high, or too low."""

import math
from itertools import pairwise

import numpy as np

from vecall.data.ragged import count_rows
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Message

_MAX_RISE = 1.05  # of the loss within an epoch
_CHANCE_SHARE = 0.98  # of the loss of guessing
_MIN_EPOCHS = 2

_HIGH = Message(
    "the loss rose from {before:.3f} to {after:.3f} in epoch {epoch}: steps are too large. Lower training.lr (it is "
    "{lr:g}) by a factor of 3, or raise training.temperature.",
    "第 {epoch} 轮损失从 {before:.3f} 升到 {after:.3f}：步长过大。请把 training.lr（现为 {lr:g}）降到约三分之一，或提"
    "高 training.temperature。",
)
_LOW = Message(
    "after {epochs} epochs the loss is {loss:.3f}, that of guessing among {items:,} items {chance:.3f}: nothing has "
    "been learned. Raise training.lr (it is {lr:g}) by a factor of 3 to 10, lower training.batch, or train longer.",
    "{epochs} 轮后损失为 {loss:.3f}，在 {items:,} 个物品中猜测的损失为 {chance:.3f}：什么也没学到。请把 training.lr（"
    "现为 {lr:g}）提高 3 到 10 倍、减小 training.batch，或延长训练。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare the losses of successive epochs, and the last one with chance."""
    config, training, split, dataset = context.config, context.training, context.split, context.dataset
    if config is None or training is None or len(training.epochs) < _MIN_EPOCHS:
        return []
    losses, lr = [line["loss"] for line in training.epochs], config.training.lr
    rises = [(later / earlier, index) for index, (earlier, later) in enumerate(pairwise(losses)) if earlier > 0]
    rise, index = max(rises, default=(0.0, 0))
    if rise > _MAX_RISE:
        message = _HIGH.format(before=losses[index], after=losses[index + 1], epoch=index + 2, lr=lr)
        return [Finding("learning_rate_off", "warning", message, round(rise, 4), "training.lr")]
    is_sum = config.model.history.encoder == "set"  # over all items of a user: no loss of guessing is known
    if split is None or dataset is None or config.training.loss == "bce" or is_sum:
        return []
    n_items = int(np.count_nonzero(count_rows(split.train.values, len(dataset.catalogue.items))))
    chance = math.log(max(n_items, 2))  # with weights of events, too: training scales them to a mean of 1
    if losses[-1] < _CHANCE_SHARE * chance:
        return []
    message = _LOW.format(epochs=len(losses), loss=losses[-1], items=n_items, chance=chance, lr=lr)
    return [Finding("learning_rate_off", "error", message, round(losses[-1] / chance, 4), "training.lr")]
