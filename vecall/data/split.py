"""Training, validation and test, cut so that nothing is judged with the help of its own future."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vecall.data.interactions import Interactions
from vecall.data.ragged import Cases, Rows, Sequences
from vecall.data.settings import DataSettings, Moment
from vecall.data.timestamps import moment_to_microseconds
from vecall.errors import DataError

Cut = int | float  # in the numbers of the time column: an integer stays one, or it would lose digits beyond 2^53

TRAIN, VALID, TEST = 0, 1, 2

# Leave-one-out needs one item to learn from, one to choose by and one to judge by.
_LEAST_POSITIVES = 3


@dataclass(frozen=True)
class Pairs:
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
        dropped: what takes no part in judging, by reason.
        parts: [positives] which part each positive of the interactions is in, see `TRAIN`, `VALID`, `TEST`.
    """

    protocol: str
    train: Sequences
    negatives: Pairs
    valid: Cases
    test: Cases
    dropped: Mapping[str, int]
    parts: NDArray[np.int8]


def split(interactions: Interactions, n_users: int, settings: DataSettings) -> Split:
    """Cut as `settings.split` says.

    Raises:
        DataError: nothing is left to learn from, to choose by or to judge by.
    """
    if settings.split == "leave_one_out":
        made = leave_one_out(interactions, n_users)
    else:
        valid_from = _cut("data.valid_from", settings.valid_from, interactions)
        test_from = _cut("data.test_from", settings.test_from, interactions)
        made = global_time(interactions, n_users, valid_from, test_from)
    for name, count in (
        ("train", len(made.train.rows)),
        ("validation", len(made.valid)),
        ("test", len(made.test)),
    ):
        if count == 0:
            ends = interactions.times.min(), interactions.times.max()
            first, last = (_written(end.item(), interactions) for end in ends)
            raise DataError(
                f"{made.protocol}: nothing falls into {name}. There are {int(interactions.positive.sum())} positives, "
                f"and times go from {first} to {last}; dropped: {dict(made.dropped) or 'nothing'}"
            )
    return made


def leave_one_out(interactions: Interactions, n_users: int) -> Split:
    """The last positive of each user is the test, the last but one the validation, the rest is learned from.

    Users with fewer than three positives are learned from and not judged. A labelled negative is learned from
    if it comes before its user's validation item.
    """
    positives = interactions.where(interactions.positive)
    everything = Sequences.grouped(positives.users, positives.items, n_users)
    judged = np.flatnonzero(everything.lengths >= _LEAST_POSITIVES)
    from_end = np.repeat(everything.offsets[1:], everything.lengths) - 1 - np.arange(len(everything.rows))
    held_out = (from_end <= 1) & (everything.lengths >= _LEAST_POSITIVES)[positives.users]
    train = Sequences.grouped(positives.users[~held_out], positives.items[~held_out], n_users)
    parts = np.where(held_out, TEST - from_end, TRAIN).astype(np.int8)
    upto_valid = (from_end >= 1) | ~held_out
    before_test = Sequences.grouped(positives.users[upto_valid], positives.items[upto_valid], n_users)
    ends = everything.offsets[1:][judged]
    learned = _positives_before(interactions) <= train.lengths[interactions.users]
    return Split(
        protocol="leave-one-out: each user's last positive is the test, the last but one the validation; "
        "all items are ranked",
        train=train,
        negatives=labelled_negatives(interactions, learned),
        valid=Cases(judged, train.take(judged), Sequences.of(everything.rows[ends - 2, None])),
        test=Cases(judged, before_test.take(judged), Sequences.of(everything.rows[ends - 1, None])),
        dropped=_counted({"users with fewer than 3 positives": int((everything.lengths < _LEAST_POSITIVES).sum())}),
        parts=parts,
    )


def global_time(interactions: Interactions, n_users: int, valid_from: Cut, test_from: Cut) -> Split:
    """Learn before `valid_from`, choose on what came up to `test_from`, judge by what came after.

    Targets of a user are the distinct items taken within the window; the history is all that came before it.

    Raises:
        DataError: the cuts are not in order.
    """
    if not valid_from < test_from:
        raise DataError(f"data.valid_from must lie before data.test_from, got {valid_from} and {test_from}")
    positives = interactions.where(interactions.positive)
    before_valid, before_test = positives.times < valid_from, positives.times < test_from

    def sequences(keep: NDArray[np.bool_]) -> Sequences:
        return Sequences.grouped(positives.users[keep], positives.items[keep], n_users)

    train = sequences(before_valid)
    valid = _window(train, sequences(before_test & ~before_valid))
    test = _window(sequences(before_test), sequences(~before_test))
    return Split(
        protocol=f"global time: learned before {_written(valid_from, interactions)}, judged by what came from "
        f"{_written(test_from, interactions)} on; all items are ranked",
        train=train,
        negatives=labelled_negatives(interactions, interactions.times < valid_from),
        valid=valid,
        test=test,
        dropped=_counted(
            {
                "users with nothing in the test window": n_users - len(test),
                "test users without a history (judged all the same)": int((test.histories.lengths == 0).sum()),
            }
        ),
        parts=np.where(before_valid, TRAIN, np.where(before_test, VALID, TEST)).astype(np.int8),
    )


def _window(before: Sequences, within: Sequences) -> Cases:
    users = np.flatnonzero(within.lengths)
    distinct = Sequences.of([np.unique(within[int(user)]) for user in users])
    return Cases(users, before.take(users), distinct)


def labelled_negatives(interactions: Interactions, learned: NDArray[np.bool_] | None = None) -> Pairs:
    """The interactions that are no positives, of those marked as learned from (all, without a mark)."""
    kept = ~interactions.positive if learned is None else ~interactions.positive & learned
    return Pairs(interactions.users[kept], interactions.items[kept], _positives_before(interactions)[kept])


def _positives_before(interactions: Interactions) -> Rows:
    """[n] how many of the same user's positives come before each interaction."""
    before: Rows = np.cumsum(interactions.positive) - interactions.positive
    first_of_user = np.searchsorted(interactions.users, interactions.users)
    return before - before[first_of_user]


def _counted(reasons: dict[str, int]) -> Mapping[str, int]:
    return MappingProxyType({reason: count for reason, count in reasons.items() if count})


def _cut(key: str, moment: Moment | None, interactions: Interactions) -> Cut:
    """A cut in the numbers of the time column: see `vecall.data.casting.cast_time`."""
    if moment is None:
        raise DataError(f"{key} is missing: split = 'global_time' needs valid_from and test_from")
    if isinstance(moment, str) != interactions.dated:
        have, need = ("datetimes", "a date or datetime") if interactions.dated else ("numbers", "a number in its unit")
        raise DataError(f"{key} is {moment!r}, but the interactions' times are {have}: give {need}")
    return moment_to_microseconds(datetime.fromisoformat(moment)) if isinstance(moment, str) else moment


def _written(time: Cut, interactions: Interactions) -> str:
    """A time for people, in the kind of the time column."""
    if not interactions.dated:
        return f"{time:.15g}" if isinstance(time, float) else str(time)
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)).isoformat()
    except OverflowError:  # beyond the years that Python has
        return f"{time} microseconds since 1970"
