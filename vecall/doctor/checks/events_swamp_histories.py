"""Kinds of interactions that are not predicted fill the histories and the loss: views drown purchases."""

import numpy as np

from vecall.arrays import Mask
from vecall.data.interactions import Interactions
from vecall.data.ragged import RaggedArray
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_HISTORY_SHARE, _LOSS_SHARE = 0.9, 0.8  # of other kinds in what is read, and in the weight of the loss
_INFO_SHARE = 0.5

_MESSAGE = Message(
    "{history:.0%} of what the user tower reads ({length} newest interactions) and {loss:.0%} of the weight of the "
    "loss are of kinds that are not held out ({targets} are): the model learns what is viewed, not what is taken. "
    "Lower the other kinds in schema.interactions.weights (0 is history alone), leave the most frequent one out, or "
    'set data.repeats = "last".',
    "用户塔读取的内容（最新 {length} 次交互）中有 {history:.0%}、损失权重中有 {loss:.0%} 属于不作为目标的行为（目标为 "
    "{targets}）：模型学到的是浏览而不是选择。请在 schema.interactions.weights 中降低其他行为的权重（0 表示只作历"
    '史），去掉最频繁的行为，或设 data.repeats = "last"。',
)
_ALL_TARGETS = Message(
    "schema.interactions.event is named, but neither weights nor targets: each kind weighs 1 and is held out, so a "
    "view counts as much as a purchase. Name what you want to predict in schema.interactions.targets.",
    "指定了 schema.interactions.event，但没有 weights 和 targets：每种行为权重都为 1 且都会被留出，浏览与购买同等对"
    "待。请在 schema.interactions.targets 中写明要预测的行为。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Measure the share of kinds that are not held out, in histories and in the loss."""
    if context.dataset is None or context.config is None:
        return []
    schema, positives = context.dataset.schema.interactions, context.dataset.interactions.positives
    if schema.event is None:
        return []
    if positives.is_target is None:
        if schema.weights is None and not schema.targets:
            setting = "schema.interactions.targets"
            return [Finding("events_swamp_histories", "info", _ALL_TARGETS, None, setting)]
        return []
    length = context.config.model.history.length
    history_share = _compute_history_share(positives, positives.is_target, len(context.dataset.catalogue.users), length)
    weights = np.ones(len(positives.users)) if positives.weights is None else positives.weights
    loss_share = float(weights[~positives.is_target].sum() / max(weights.sum(), 1e-12))
    if history_share < _INFO_SHARE and loss_share < _INFO_SHARE:
        return []
    message = _MESSAGE.format(
        history=history_share, loss=loss_share, length=length, targets=", ".join(positives.target_kinds)
    )
    level: Level = "warning" if history_share >= _HISTORY_SHARE and loss_share >= _LOSS_SHARE else "info"
    return [Finding("events_swamp_histories", level, message, round(history_share, 4), "schema.interactions.weights")]


def _compute_history_share(positives: Interactions, is_target: Mask, n_users: int, length: int) -> float:
    """Return the share of other kinds among the newest interactions of all users."""
    positions = RaggedArray.from_sorted_pairs(positives.users, np.arange(len(positives.users)), n_users)
    newest = positions.truncate_to_last(length).values
    return float(1 - is_target[newest].mean())
