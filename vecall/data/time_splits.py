"""Splits by time, leave-one-out and global. No part holds data from later than its own period."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.interactions import Interactions
from vecall.data.ragged import EvalCases, RaggedArray, RaggedView, offsets_from_lengths
from vecall.data.split import (
    TEST,
    TRAIN,
    VALID,
    ColumnTime,
    Split,
    build_eval_cases,
    describe_target_kinds,
    drop_zero_counts,
    format_time,
    select_hard_negatives,
)
from vecall.errors import DataError

_MIN_POSITIVES = 3  # leave-one-out: at least one for each part


def split_last_positives(interactions: Interactions, n_users: int) -> Split:
    """Split leave-one-out: each user's last positive is the test, the last but one the validation, the rest training.

    Users with fewer than three positives are in the training alone. A hard negative is in the training if it comes
    before the validation item of its user. Where only some kinds may be held out, positives of the others belong to the
    part of the last held-out one before them.
    """
    positives = interactions.positives
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    evaluated_users, valid_positions, test_positions = _find_last_targets(histories, positives.is_target)
    starts, ends = histories.offsets[evaluated_users], histories.offsets[evaluated_users + 1]
    steps = np.zeros(len(histories.values) + 1, dtype=np.int8)
    steps[valid_positions] += VALID - TRAIN
    steps[test_positions] += TEST - VALID
    steps[ends] -= TEST - TRAIN
    parts = np.cumsum(steps[:-1], dtype=np.int8)
    train_ends = histories.offsets[1:].copy()
    train_ends[evaluated_users] = valid_positions
    train = RaggedArray(offsets_from_lengths(train_ends - histories.offsets[:-1]), histories.values[parts == TRAIN])
    negatives = select_hard_negatives(interactions)

    def build_cases(positions: NDArray[np.int64]) -> EvalCases:
        """Build the cases of the evaluated users from the positions of their targets."""
        targets = RaggedArray(np.arange(len(positions) + 1), histories.values[positions])
        context = None if positives.context is None else positives.context[positions]
        return EvalCases(evaluated_users, RaggedView(histories.values, starts, positions - starts), targets, context)

    kinds, reason = describe_target_kinds(interactions), "users with fewer than 3 positives"
    if kinds:
        reason = f"users with fewer than 2 positives{kinds} after the first positive"
    return Split(
        protocol=f"leave-one-out: each user's last positive{kinds} is the test, the last but one the validation; "
        "all items are ranked",
        train=train,
        hard_negatives=negatives.filter(negatives.prior_positive_counts <= train.lengths[negatives.users]),
        valid=build_cases(valid_positions),
        test=build_cases(test_positions),
        user_counts_by_reason=drop_zero_counts({reason: n_users - len(evaluated_users)}),
        positive_parts=parts,
    )


def _find_last_targets(histories: RaggedArray, is_target: Mask | None) -> tuple[Rows, Rows, Rows]:
    """Find the last two positives of each user that may be held out, where a positive comes before them.

    Args:
        histories: U histories of positives.
        is_target: [positives] Whether each may be held out; None if all may.

    Returns:
        [u] rows of the users who have such, and [u] positions in `histories.values` of the last but one and the last.
    """
    if is_target is None:
        users = np.flatnonzero(histories.lengths >= _MIN_POSITIVES)
        ends = histories.offsets[users + 1]
        return users, ends - 2, ends - 1
    positions = np.flatnonzero(is_target)
    ends = np.searchsorted(positions, histories.offsets[1:])  # [U] in `positions`, like the starts
    starts = np.searchsorted(positions, histories.offsets[:-1])
    users = np.flatnonzero(ends - starts >= _MIN_POSITIVES - 1)
    valid_positions, test_positions = positions[ends[users] - 2], positions[ends[users] - 1]
    has_history = valid_positions > histories.offsets[users]
    return users[has_history], valid_positions[has_history], test_positions[has_history]


def split_global_time(interactions: Interactions, n_users: int, valid_from: ColumnTime, test_from: ColumnTime) -> Split:
    """Split at two points in time: training before `valid_from`, test from `test_from` on, validation in between.

    Targets of a user are the distinct items of the positives within the period, the history all positives before it.

    Raises:
        DataError: The cutoffs are not in order.
    """
    if not valid_from < test_from:
        texts = [
            np.datetime64(int(cut), "us") if interactions.has_datetimes else cut for cut in (valid_from, test_from)
        ]
        raise DataError(f"data.valid_from must lie before data.test_from, got {texts[0]} and {texts[1]}")
    positives = interactions.positives
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    before_valid, before_test = positives.times < valid_from, positives.times < test_from
    train = RaggedArray.from_sorted_pairs(positives.users[before_valid], positives.items[before_valid], n_users)
    # Times ascend within a user, so each part of a history is a segment of it.
    starts = histories.offsets[:-1]
    valid_starts = starts + train.lengths
    test_starts = starts + _count_by_user(positives.users[before_test], n_users)
    parts = np.where(before_valid, TRAIN, np.where(before_test, VALID, TEST)).astype(np.int8)
    valid, test = (
        build_eval_cases(positives, parts == part, histories.values, starts, period_starts)
        for part, period_starts in ((VALID, valid_starts), (TEST, test_starts))
    )
    kinds = describe_target_kinds(interactions)
    return Split(
        protocol=f"global time: trained on interactions before {format_time(valid_from, interactions)}, evaluated on "
        f"those{kinds} from {format_time(test_from, interactions)} on; all items are ranked",
        train=train,
        hard_negatives=select_hard_negatives(interactions, interactions.times < valid_from),
        valid=valid,
        test=test,
        user_counts_by_reason=drop_zero_counts(
            {
                f"users without positives{kinds} in the test period": n_users - len(test),
                "test users without a history (evaluated nevertheless)": int((test.histories.lengths == 0).sum()),
            }
        ),
        positive_parts=parts,
    )


def _count_by_user(users: Rows, n_users: int) -> NDArray[np.int64]:
    """Return how often each user occurs among ascending users, [n_users]."""
    return RaggedArray.from_sorted_pairs(users, users, n_users).lengths
