"""Repeats fill what the user tower reads of a history: the same few items instead of many."""

import numpy as np

from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message
from vecall.index.sampling import evenly_spaced_rows

_MAX_USERS = 20_000
_WARNING_SHARE, _INFO_SHARE = 0.4, 0.15  # of the positions that the tower reads

_MESSAGE = Message(
    "{share:.0%} of what the user tower reads of a history ({length} newest interactions) repeats an item that it has "
    "read already: {distinct:.1f} different items a user, of {positions:.1f} positions. Repeats push older interests "
    'out. Set data.repeats = "last" (or "first"), or raise model.history.length.',
    "用户塔读取的历史（最新 {length} 次交互）中有 {share:.0%} 是重复物品：每个用户 {positions:.1f} 个位置里只有 "
    '{distinct:.1f} 个不同物品。重复会挤掉较早的兴趣。请设 data.repeats = "last"（或 "first"），或加大 '
    "model.history.length。",
)


def check(context: DoctorContext) -> list[Finding]:
    """Count repeats within the newest items of the test histories."""
    if context.split is None or context.config is None or context.dataset is None:
        return []
    if context.config.model.history.encoder in ("none", "set"):  # a set is read without repeats
        return []
    length = context.config.model.history.length
    cases = context.split.test.take(evenly_spaced_rows(len(context.split.test), _MAX_USERS))
    histories = cases.histories.truncate_to_last(length)
    positions = len(histories.values)
    distinct = len(np.unique(histories.segment_ids * len(context.dataset.catalogue.items) + histories.values))
    share = 1 - distinct / positions if positions else 0.0
    if share < _INFO_SHARE:
        return []
    n_histories = max(int(np.count_nonzero(histories.lengths)), 1)
    message = _MESSAGE.format(
        share=share, length=length, distinct=distinct / n_histories, positions=positions / n_histories
    )
    level: Level = "warning" if share >= _WARNING_SHARE else "info"
    return [Finding("repeats_swamp_histories", level, message, round(share, 4), "data.repeats")]
