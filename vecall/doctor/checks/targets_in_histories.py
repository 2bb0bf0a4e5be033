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
    is_kept = context.config.data.repeats == "keep"
    level: Level = "warning" if share >= _MAX_SHARE and is_kept else "info"
    return [Finding("targets_in_histories", level, _MESSAGE.format(share=share), round(share, 4), "data.repeats")]
