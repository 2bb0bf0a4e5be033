"""The same interaction stands in the table twice, held out and in an earlier part: the test is in what is learned."""

import numpy as np

from vecall.data.ragged import count_rows
from vecall.data.split import TRAIN
from vecall.doctor.context import DoctorContext
from vecall.doctor.finding import Finding, Level, Message

_MIN_SHARE = 0.002  # of the held-out interactions: a few rows written twice are in every log
_SERIOUS_SHARE = 0.01
_MAX_USERS = 20_000  # examined

_MESSAGE = Message(
    "{count:,} of {total:,} held-out interactions ({share:.1%}) are in an earlier part of the split too, with the "
    "same user, item and time: rows were written twice, for example by files that overlap. Metrics with seen items "
    'included are too high. Set data.repeats = "first", or remove the duplicate rows.',
    "{total:,} 条留出交互中有 {count:,} 条（{share:.1%}）以相同的用户、物品和时间也出现在更早的部分：有些行写了两次，"
    '例如文件之间有重叠。包含已看物品的指标因此偏高。请设 data.repeats = "first"，或删除重复的行。',
)


def check(context: DoctorContext) -> list[Finding]:
    """Compare user, item, time and kind of held-out interactions with those of earlier parts; needs times."""
    dataset, split = context.dataset, context.split
    if dataset is None or split is None or not dataset.has_timestamps:
        return []
    positives, parts = dataset.interactions.positives, split.positive_parts
    has_held_out = count_rows(positives.users[parts != TRAIN], len(dataset.catalogue.users)) > 0
    users = np.flatnonzero(has_held_out)
    if len(users) > _MAX_USERS:
        users = np.random.default_rng(0).choice(users, _MAX_USERS, replace=False)
    is_examined = np.zeros(len(has_held_out), dtype=np.bool_)
    is_examined[users] = True
    rows = np.flatnonzero(is_examined[positives.users])
    columns = [positives.users, positives.times, positives.items]
    if positives.kinds is not None:  # an item that was viewed and bought on the same day is not written twice
        columns.append(positives.kinds)
    # Equal interactions follow each other: by user, time, item, kind, and training first.
    order = rows[np.lexsort((parts[rows], *(column[rows] for column in reversed(columns))))]
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    is_start = np.concatenate([[True], ~same])[: len(order)]
    earliest_parts = parts[order][is_start][np.cumsum(is_start) - 1]
    is_held_out = parts[order] != TRAIN
    if positives.is_target is not None:  # others of that time are in histories alone
        is_held_out &= positives.is_target[order]
    count, total = int((earliest_parts < parts[order])[is_held_out].sum()), int(is_held_out.sum())
    share = count / total if total else 0.0
    if share < _MIN_SHARE:
        return []
    message = _MESSAGE.format(count=count, total=total, share=share)
    level: Level = "error" if share >= _SERIOUS_SHARE else "warning"
    return [Finding("duplicates_over_splits", level, message, round(share, 4), "data.repeats")]
