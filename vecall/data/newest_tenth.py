"""The validation part of a given split whose test comes later: the newest tenth of each user's training."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask
from vecall.data.interactions import Interactions
from vecall.data.ragged import count_rows, offsets_from_lengths
from vecall.data.split import TEST, TRAIN

# Of the users with both parts: whose test begins at the end of their training or later, and whose begins later, since
# equal times say nothing of an order.
_MIN_LATER_OR_EQUAL_SHARE, _MIN_LATER_SHARE = 0.95, 0.5
_VALID_SHARE = 0.1
_SEED = 0


def is_test_later(positives: Interactions, parts: NDArray[np.int8], n_users: int) -> bool:
    """Return whether the test of a split comes after its training, by the times of the users who have both.

    Args:
        positives: n positives.
        parts: [n] Part of each, none of them the validation.
        n_users: U.
    """
    if not positives.has_times:
        return False
    times = positives.times.astype(np.float64)
    ends, starts = np.full(n_users, -np.inf), np.full(n_users, np.inf)  # of the training and of the test
    is_train, is_test = parts == TRAIN, parts == TEST
    np.maximum.at(ends, positives.users[is_train], times[is_train])
    np.minimum.at(starts, positives.users[is_test], times[is_test])
    has_both = np.isfinite(ends) & np.isfinite(starts)
    ends, starts = ends[has_both], starts[has_both]
    if not len(ends):
        return False
    return bool((starts >= ends).mean() >= _MIN_LATER_OR_EQUAL_SHARE and (starts > ends).mean() >= _MIN_LATER_SHARE)


def has_targets(train: Interactions, mask: Mask) -> bool:
    """Return whether any positive where the mask [n] is true may be evaluated."""
    return bool(mask.any() if train.is_target is None else (mask & train.is_target).any())


def mark_newest_tenth(train: Interactions, n_users: int) -> Mask:
    """Return [n] whether a positive of the training is in the validation; each user keeps at least one in the training.

    A tenth is rounded up or down at random, so that the validation is about a tenth of all. All positives from the
    first one in the validation on are in it, those of kinds that are not evaluated, too: they are later.

    Args:
        train: n positives, ordered by user, then time.
        n_users: U.
    """
    counts = count_rows(train.users, n_users)
    tenths = np.floor(_VALID_SHARE * counts + np.random.default_rng(_SEED).random(n_users)).astype(np.int64)
    n_valid = np.minimum(tenths, np.maximum(counts - 1, 0))
    positions = np.arange(len(train.users)) - np.repeat(offsets_from_lengths(counts)[:-1], counts)
    is_newest: Mask = positions >= np.repeat(counts - n_valid, counts)
    return is_newest


def is_before_validation(interactions: Interactions, validation: Interactions, n_users: int) -> Mask:
    """Return [n] whether an interaction is earlier than all of its user's validation.

    Args:
        interactions: n interactions.
        validation: Positives of the validation.
        n_users: U.
    """
    starts = np.full(n_users, np.inf)
    np.minimum.at(starts, validation.users, validation.times.astype(np.float64))
    is_before: Mask = interactions.times.astype(np.float64) < starts[interactions.users]
    return is_before
