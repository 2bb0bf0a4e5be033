"""Training, validation and test, cut so that nothing is judged with the help of its own future."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.interactions import Interactions
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.settings import DataSettings, Timestamp
from vecall.data.timestamps import to_unix_micros
from vecall.errors import DataError

Cutoff = int | float  # in the numbers of the time column: an integer stays one, or it would lose digits beyond 2^53

TRAIN, VALID, TEST = 0, 1, 2

# Leave-one-out needs one item to learn from, one to choose by and one to judge by.
_MIN_POSITIVES = 3


@dataclass(frozen=True)
class LabeledNegatives:
    """(user, item) pairs that were shown or rated, and not taken or not liked.

    Attributes:
        users: [n] user rows.
        items: [n] item rows.
        positions: [n] how many of the user's positives came before.
    """

    users: Rows
    items: Rows
    positions: Rows


@dataclass(frozen=True)
class Split:
    """What may be learned from, and what is held out.

    Attributes:
        protocol: how time was cut, in words for people.
        train: U histories of positives, by user row, oldest first.
        negatives: labelled negatives of the training time.
        valid: cases to choose by; their histories are the training ones.
        test: cases to judge by; their histories hold all that came before the test.
        dropped_counts: what takes no part in judging, by reason.
        positive_parts: [positives] which part each positive of the interactions is in, see `TRAIN`, `VALID`, `TEST`.
    """

    protocol: str
    train: RaggedArray
    negatives: LabeledNegatives
    valid: EvalCases
    test: EvalCases
    dropped_counts: Mapping[str, int]
    positive_parts: NDArray[np.int8]


def split_interactions(interactions: Interactions, n_users: int, settings: DataSettings) -> Split:
    """Cut as `settings.split` says.

    Raises:
        DataError: nothing is left to learn from, to choose by or to judge by.
    """
    if settings.split == "leave_one_out":
        made = split_leave_one_out(interactions, n_users)
    else:
        valid_from = _parse_cutoff("data.valid_from", settings.valid_from, interactions)
        test_from = _parse_cutoff("data.test_from", settings.test_from, interactions)
        made = split_global_time(interactions, n_users, valid_from, test_from)
    for name, count in (
        ("train", len(made.train.values)),
        ("validation", len(made.valid)),
        ("test", len(made.test)),
    ):
        if count == 0:
            ends = interactions.times.min(), interactions.times.max()
            first, last = (_format_time(end.item(), interactions) for end in ends)
            raise DataError(
                f"{made.protocol}: nothing falls into {name}. There are {int(interactions.is_positive.sum())} positives, "
                f"and times go from {first} to {last}; dropped: {dict(made.dropped_counts) or 'nothing'}"
            )
    return made


def split_leave_one_out(interactions: Interactions, n_users: int) -> Split:
    """The last positive of each user is the test, the last but one the validation, the rest is learned from.

    Users with fewer than three positives are learned from and not judged. A labelled negative is learned from
    if it comes before its user's validation item.
    """
    positives = interactions.filter(interactions.is_positive)
    everything = RaggedArray.from_groups(positives.users, positives.items, n_users)
    judged = np.flatnonzero(everything.lengths >= _MIN_POSITIVES)
    from_end = np.repeat(everything.offsets[1:], everything.lengths) - 1 - np.arange(len(everything.values))
    held_out = (from_end <= 1) & (everything.lengths >= _MIN_POSITIVES)[positives.users]
    train = RaggedArray.from_groups(positives.users[~held_out], positives.items[~held_out], n_users)
    parts = np.where(held_out, TEST - from_end, TRAIN).astype(np.int8)
    upto_valid = (from_end >= 1) | ~held_out
    before_test = RaggedArray.from_groups(positives.users[upto_valid], positives.items[upto_valid], n_users)
    ends = everything.offsets[1:][judged]
    learned = _count_positives_before(interactions) <= train.lengths[interactions.users]
    return Split(
        protocol="leave-one-out: each user's last positive is the test, the last but one the validation; "
        "all items are ranked",
        train=train,
        negatives=select_labeled_negatives(interactions, learned),
        valid=EvalCases(judged, train.take(judged), RaggedArray.from_lists(everything.values[ends - 2, None])),
        test=EvalCases(judged, before_test.take(judged), RaggedArray.from_lists(everything.values[ends - 1, None])),
        dropped_counts=_drop_zero_counts(
            {"users with fewer than 3 positives": int((everything.lengths < _MIN_POSITIVES).sum())}
        ),
        positive_parts=parts,
    )


def split_global_time(interactions: Interactions, n_users: int, valid_from: Cutoff, test_from: Cutoff) -> Split:
    """Learn before `valid_from`, choose on what came up to `test_from`, judge by what came after.

    Targets of a user are the distinct items taken within the window; the history is all that came before it.

    Raises:
        DataError: the cuts are not in order.
    """
    if not valid_from < test_from:
        raise DataError(f"data.valid_from must lie before data.test_from, got {valid_from} and {test_from}")
    positives = interactions.filter(interactions.is_positive)
    before_valid, before_test = positives.times < valid_from, positives.times < test_from

    def group_by_user(mask: NDArray[np.bool_]) -> RaggedArray:
        return RaggedArray.from_groups(positives.users[mask], positives.items[mask], n_users)

    train = group_by_user(before_valid)
    valid = _build_eval_cases(train, group_by_user(before_test & ~before_valid))
    test = _build_eval_cases(group_by_user(before_test), group_by_user(~before_test))
    return Split(
        protocol=f"global time: learned before {_format_time(valid_from, interactions)}, judged by what came from "
        f"{_format_time(test_from, interactions)} on; all items are ranked",
        train=train,
        negatives=select_labeled_negatives(interactions, interactions.times < valid_from),
        valid=valid,
        test=test,
        dropped_counts=_drop_zero_counts(
            {
                "users with nothing in the test window": n_users - len(test),
                "test users without a history (judged all the same)": int((test.histories.lengths == 0).sum()),
            }
        ),
        positive_parts=np.where(before_valid, TRAIN, np.where(before_test, VALID, TEST)).astype(np.int8),
    )


def _build_eval_cases(histories: RaggedArray, window: RaggedArray) -> EvalCases:
    users = np.flatnonzero(window.lengths)
    distinct = RaggedArray.from_lists([np.unique(window[int(user)]) for user in users])
    return EvalCases(users, histories.take(users), distinct)


def select_labeled_negatives(
    interactions: Interactions, train_mask: NDArray[np.bool_] | None = None
) -> LabeledNegatives:
    """The interactions that are no positives, of those marked as learned from (all, without a mark)."""
    kept = ~interactions.is_positive if train_mask is None else ~interactions.is_positive & train_mask
    return LabeledNegatives(
        interactions.users[kept], interactions.items[kept], _count_positives_before(interactions)[kept]
    )


def _count_positives_before(interactions: Interactions) -> Rows:
    """[n] how many of the same user's positives come before each interaction."""
    before: Rows = np.cumsum(interactions.is_positive) - interactions.is_positive
    first_of_user = np.searchsorted(interactions.users, interactions.users)
    return before - before[first_of_user]


def _drop_zero_counts(reasons: dict[str, int]) -> Mapping[str, int]:
    return MappingProxyType({reason: count for reason, count in reasons.items() if count})


def _parse_cutoff(key: str, timestamp: Timestamp | None, interactions: Interactions) -> Cutoff:
    """A cut in the numbers of the time column: see `vecall.data.casting.cast_timestamp`."""
    if timestamp is None:
        raise DataError(f"{key} is missing: split = 'global_time' needs valid_from and test_from")
    if isinstance(timestamp, str) != interactions.has_datetimes:
        have, need = (
            ("datetimes", "a date or datetime") if interactions.has_datetimes else ("numbers", "a number in its unit")
        )
        raise DataError(f"{key} is {timestamp!r}, but the interactions' times are {have}: give {need}")
    return to_unix_micros(datetime.fromisoformat(timestamp)) if isinstance(timestamp, str) else timestamp


def _format_time(time: Cutoff, interactions: Interactions) -> str:
    """A time for people, in the kind of the time column."""
    if not interactions.has_datetimes:
        return f"{time:.15g}" if isinstance(time, float) else str(time)
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)).isoformat()
    except OverflowError:  # beyond the years that Python has
        return f"{time} microseconds since 1970"
