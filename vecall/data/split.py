"""Split of interactions into training, validation and test. No part holds data from later than its own period."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.interactions import Interactions
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.settings import DataSettings, Timestamp
from vecall.data.timestamps import to_unix_micros
from vecall.errors import DataError

# A time in the unit of the time column; int where the column is one: a float would lose digits beyond 2^53.
ColumnTime = int | float

TRAIN, VALID, TEST = 0, 1, 2

_MIN_POSITIVES = 3  # leave-one-out: at least one for each part


@dataclass(frozen=True)
class HardNegatives:
    """Interactions that are not positive: impressions that were not taken, and labels below the threshold.

    Attributes:
        users: [n] User rows.
        items: [n] Item rows.
        prior_positive_counts: [n] Number of positives of the same user that came before.
    """

    users: Rows
    items: Rows
    prior_positive_counts: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Training data, and the cases held out for validation and test.

    Attributes:
        protocol: Sentence about the split, for reports; not a code.
        train: U histories of training positives, by user row, oldest first.
        hard_negatives: Those of the training period.
        valid: Validation cases; their histories are those of `train`.
        test: Test cases; their histories hold all positives before the test, those of validation included.
        user_counts_by_reason: Number of users who are not evaluated, or are evaluated without a history, by reason.
        positive_parts: [positives] The part of each positive of the interactions: `TRAIN`, `VALID` or `TEST`.
    """

    protocol: str
    train: RaggedArray
    hard_negatives: HardNegatives
    valid: EvalCases
    test: EvalCases
    user_counts_by_reason: Mapping[str, int]
    positive_parts: NDArray[np.int8]


def split_interactions(interactions: Interactions, n_users: int, settings: DataSettings) -> Split:
    """Split as `settings.split` says.

    Args:
        interactions: All interactions.
        n_users: U, number of users of the catalogue, those without interactions included.
        settings: The kind of split and its cutoffs.

    Raises:
        DataError: A part is empty, or a cutoff is not of the kind of the time column.
    """
    if settings.split == "leave_one_out":
        result = split_last_positives(interactions, n_users)
    else:
        valid_from = _parse_cutoff("data.valid_from", settings.valid_from, interactions)
        test_from = _parse_cutoff("data.test_from", settings.test_from, interactions)
        result = split_global_time(interactions, n_users, valid_from, test_from)
    sizes = {"train": len(result.train.values), "validation": len(result.valid), "test": len(result.test)}
    for part, size in sizes.items():
        if size == 0:
            first, last = (
                _format_time(bound.item(), interactions)
                for bound in (interactions.times.min(), interactions.times.max())
            )
            users = dict(result.user_counts_by_reason) or n_users
            raise DataError(
                f"{result.protocol}: the {part} part is empty. There are {int(interactions.is_positive.sum())} "
                f"positives, and times go from {first} to {last}; users: {users}"
            )
    return result


def split_last_positives(interactions: Interactions, n_users: int) -> Split:
    """Split leave-one-out: each user's last positive is the test, the last but one the validation, the rest training.

    Users with fewer than three positives are in the training alone. A hard negative is in the training if it comes
    before the validation item of its user.
    """
    positives = interactions.filter(interactions.is_positive)
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    is_evaluated = histories.lengths >= _MIN_POSITIVES  # [U]
    evaluated_users = np.flatnonzero(is_evaluated)
    from_end = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.values))
    is_held_out = (from_end <= 1) & is_evaluated[positives.users]
    train = RaggedArray.from_sorted_pairs(positives.users[~is_held_out], positives.items[~is_held_out], n_users)
    is_before_test = (from_end >= 1) | ~is_held_out
    before_test = RaggedArray.from_sorted_pairs(
        positives.users[is_before_test], positives.items[is_before_test], n_users
    )
    ends = histories.offsets[1:][evaluated_users]
    valid_targets = RaggedArray.from_lists(histories.values[ends - 2, None])  # of [users, 1]: one target each
    test_targets = RaggedArray.from_lists(histories.values[ends - 1, None])
    train_mask = _count_positives_before(interactions) <= train.lengths[interactions.users]
    return Split(
        protocol="leave-one-out: each user's last positive is the test, the last but one the validation; "
        "all items are ranked",
        train=train,
        hard_negatives=select_hard_negatives(interactions, train_mask),
        valid=EvalCases(evaluated_users, train.take(evaluated_users), valid_targets),
        test=EvalCases(evaluated_users, before_test.take(evaluated_users), test_targets),
        user_counts_by_reason=_drop_zero_counts({"users with fewer than 3 positives": int((~is_evaluated).sum())}),
        positive_parts=np.where(is_held_out, TEST - from_end, TRAIN).astype(np.int8),
    )


def split_global_time(interactions: Interactions, n_users: int, valid_from: ColumnTime, test_from: ColumnTime) -> Split:
    """Split at two points in time: training before `valid_from`, test from `test_from` on, validation in between.

    Targets of a user are the distinct items of the positives within the period, the history all positives before it.

    Raises:
        DataError: The cutoffs are not in order.
    """
    if not valid_from < test_from:
        raise DataError(f"data.valid_from must lie before data.test_from, got {valid_from} and {test_from}")
    positives = interactions.filter(interactions.is_positive)
    before_valid, before_test = positives.times < valid_from, positives.times < test_from

    def group_by_user(mask: Mask) -> RaggedArray:
        return RaggedArray.from_sorted_pairs(positives.users[mask], positives.items[mask], n_users)

    train = group_by_user(before_valid)
    valid = _build_eval_cases(train, group_by_user(before_test & ~before_valid))
    test = _build_eval_cases(group_by_user(before_test), group_by_user(~before_test))
    return Split(
        protocol=f"global time: trained on interactions before {_format_time(valid_from, interactions)}, evaluated on "
        f"those from {_format_time(test_from, interactions)} on; all items are ranked",
        train=train,
        hard_negatives=select_hard_negatives(interactions, interactions.times < valid_from),
        valid=valid,
        test=test,
        user_counts_by_reason=_drop_zero_counts(
            {
                "users without positives in the test period": n_users - len(test),
                "test users without a history (evaluated nevertheless)": int((test.histories.lengths == 0).sum()),
            }
        ),
        positive_parts=np.where(before_valid, TRAIN, np.where(before_test, VALID, TEST)).astype(np.int8),
    )


def _build_eval_cases(histories: RaggedArray, period: RaggedArray) -> EvalCases:
    """Build the cases of the users with positives in a period.

    Args:
        histories: U lists by user row, the items that each user took before the period.
        period: U lists by user row, the items that each took in it.
    """
    users = np.flatnonzero(period.lengths)
    targets = RaggedArray.from_lists([np.unique(period[int(user)]) for user in users])
    return EvalCases(users, histories.take(users), targets)


def select_hard_negatives(interactions: Interactions, train_mask: Mask | None = None) -> HardNegatives:
    """Return the interactions that are not positive, see `HardNegatives`.

    Args:
        interactions: n interactions.
        train_mask: [n] Mask of those that may be trained on; None for all.
    """
    is_negative = ~interactions.is_positive if train_mask is None else ~interactions.is_positive & train_mask
    counts = _count_positives_before(interactions)[is_negative]
    return HardNegatives(interactions.users[is_negative], interactions.items[is_negative], counts)


def _count_positives_before(interactions: Interactions) -> NDArray[np.int64]:
    """Return [n] for each interaction the number of positives of the same user that come before it."""
    counts: NDArray[np.int64] = np.cumsum(interactions.is_positive) - interactions.is_positive  # over all users
    first_of_user = np.searchsorted(interactions.users, interactions.users)
    return counts - counts[first_of_user]


def _drop_zero_counts(counts: dict[str, int]) -> Mapping[str, int]:
    return MappingProxyType({reason: count for reason, count in counts.items() if count})


def _parse_cutoff(key: str, timestamp: Timestamp | None, interactions: Interactions) -> ColumnTime:
    """Convert a cutoff of the settings to the unit of the time column."""
    if timestamp is None:
        raise DataError(f"{key} is missing: split = 'global_time' needs valid_from and test_from")
    if isinstance(timestamp, str) != interactions.has_datetimes:
        actual, expected = (
            ("datetimes", "a date or datetime") if interactions.has_datetimes else ("numbers", "a number in their unit")
        )
        raise DataError(f"{key} is {timestamp!r}, but the interactions' times are {actual}: set it to {expected}")
    return to_unix_micros(datetime.fromisoformat(timestamp)) if isinstance(timestamp, str) else timestamp


def _format_time(time: ColumnTime, interactions: Interactions) -> str:
    """Format a time of the time column for people."""
    if not interactions.has_datetimes:
        return f"{time:.15g}" if isinstance(time, float) else str(time)
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)).isoformat()
    except OverflowError:  # outside the years that datetime supports
        return f"{time} microseconds since 1970"
