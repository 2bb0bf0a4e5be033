"""Logs and splits in the form that tests compare."""

import numpy as np

from support.ragged import to_lists
from vecall.data.interactions import Interactions


def make_interactions(users, times, is_positive=None, items=None, *, has_datetimes=False):
    """Interactions in order. By default the item of each is its position in that order, so items are unique."""
    users, times = np.asarray(users, dtype=np.int64), np.asarray(times)
    order = np.lexsort((times, users))
    items = np.arange(len(users)) if items is None else np.asarray(items)[order]
    is_positive = np.ones(len(users), bool) if is_positive is None else np.asarray(is_positive, dtype=bool)[order]
    time_unit = "us" if has_datetimes else None
    return Interactions(users[order], items.astype(np.int64), times[order], is_positive, has_datetimes, time_unit)


def to_tuples(negatives):
    """(user, item, number of prior positives) of each hard negative."""
    arrays = (negatives.users, negatives.items, negatives.prior_positive_counts)
    return list(zip(*(array.tolist() for array in arrays), strict=True))


def by_user(cases):
    """History and targets by user."""
    histories, targets = to_lists(cases.histories), to_lists(cases.targets)
    return dict(zip(cases.users.tolist(), zip(histories, targets, strict=True), strict=True))
