"""Held-out items are in their user's own history: a repeat, which is not ranked where seen items are excluded."""

import numpy as np

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message
from vecall.index.sampling import evenly_spaced_rows

_MAX_SHARE = 0.2
_INFO_SHARE = 0.01
_MAX_USERS = 20_000

_MESSAGE = Message(
    "{share:.1%} of the held-out test interactions are items that the user already had, in any kind of interaction. "
    "With seen items excluded they do not count, with seen items included they are found without learning anything, "
    'and the two recalls cannot be compared. If a repeat says nothing new, set data.repeats = "first"; if users do '
    "come back to items, read seen_included and add the repeat channel.",
    "测试集中 {share:.1%} 的留出交互是用户历史里已有的物品（任何行为都算）。排除已看物品时它们不计入，包含时不需学习就"
    '能找到，两种召回率因此不可比。若重复没有新信息，请设 data.repeats = "first"；若用户确实会回访，请看 '
    "seen_included，并启用 repeat 通道。",
)
_KINDS_MESSAGE = Message(
    "{share:.1%} of the held-out test interactions are items that the user already had, most often in an earlier kind "
    "of interaction, as an item is viewed before it is bought. With seen items excluded they do not count, with seen "
    "items included they are found without learning anything, and the two recalls cannot be compared. data.repeats "
    "does not change that, since it goes by kind. Read seen_included and add the repeat channel, or leave the earlier "
    "kinds out of schema.interactions.weights to learn and evaluate without them.",
    "测试集中 {share:.1%} 的留出交互是用户历史里已有的物品，多半来自更早的另一种行为，例如购买之前的浏览。排除已看物品"
    "时它们不计入，包含时不需学习就能找到，两种召回率因此不可比。data.repeats 按行为种类去重，改变不了这一点。请看 "
    "seen_included 并启用 repeat 通道，或从 schema.interactions.weights 中去掉更早的行为，学习与评测都不用它们。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count the test targets that are in the history of the same case."""
    if context.split is None or context.config is None or context.dataset is None:
        return []
    cases = context.split.test.take(evenly_spaced_rows(len(context.split.test), _MAX_USERS))
    n_items = len(context.dataset.catalogue.items)
    seen = cases.histories.segment_ids * n_items + cases.histories.values
    targets = cases.targets.segment_ids * n_items + cases.targets.values
    share = float(np.isin(targets, seen).mean())
    if share < _INFO_SHARE:
        return []
    is_kept, kinds = context.config.data.repeats == "keep", context.dataset.interactions.positives.kinds
    has_kinds = kinds is not None and bool((kinds != kinds[:1]).any())
    level: Level = "warning" if share >= _MAX_SHARE and (is_kept or has_kinds) else "info"
    message, setting = (_KINDS_MESSAGE, "schema.interactions.weights") if has_kinds else (_MESSAGE, "data.repeats")
    return [Finding("targets_in_histories", level, message.format(share=share), round(share, 4), setting)]
