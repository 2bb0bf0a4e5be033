"""Split of interactions into training, validation and test.

By time, no part holds data from later than its own period; a random split and one that the table names know no periods.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.interactions import Interactions
from vecall.data.ragged import EvalCases, RaggedArray, RaggedView, offsets_from_lengths
from vecall.data.random_pairs import MIN_ITEMS, draw_held_out, draw_validation
from vecall.data.settings import DataSettings, Timestamp
from vecall.data.timestamps import NS_PER_UNIT, to_unix_micros
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

    def filter(self, mask: Mask) -> "HardNegatives":
        """Return those where the mask [n] is true, in the same order."""
        return HardNegatives(self.users[mask], self.items[mask], self.prior_positive_counts[mask])


@dataclass(frozen=True)
class Split:
    """Training data, and the cases held out for validation and test.

    Attributes:
        protocol: Sentence about the split, for reports; not a code.
        train: U histories of training positives, by user row, oldest first.
        hard_negatives: Those of the training period.
        valid: Validation cases; their histories are those of `train`.
        test: Test cases; their histories hold all positives before the test, those of validation included; with a
            random split they are those of `train`.
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
    elif settings.split == "random":
        result = split_at_random(interactions, n_users, settings.split_seed)
    elif settings.split == "given":
        result = split_as_given(interactions, n_users)
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
    positives = interactions.positives
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    is_evaluated = histories.lengths >= _MIN_POSITIVES  # [U]
    evaluated_users = np.flatnonzero(is_evaluated)
    starts, ends = histories.offsets[evaluated_users], histories.offsets[evaluated_users + 1]
    parts = np.full(len(histories.values), TRAIN, dtype=np.int8)
    parts[ends - 2], parts[ends - 1] = VALID, TEST
    train_offsets = offsets_from_lengths(histories.lengths - 2 * is_evaluated)
    train = RaggedArray(train_offsets, histories.values[parts == TRAIN])
    negatives = select_hard_negatives(interactions)

    def build_cases(n_after: int) -> EvalCases:
        """Build the cases whose targets are followed by `n_after` positives."""
        targets = RaggedArray(np.arange(len(ends) + 1), histories.values[ends - 1 - n_after])
        views = RaggedView(histories.values, starts, ends - 1 - n_after - starts)
        return EvalCases(evaluated_users, views, targets)

    return Split(
        protocol="leave-one-out: each user's last positive is the test, the last but one the validation; "
        "all items are ranked",
        train=train,
        hard_negatives=negatives.filter(negatives.prior_positive_counts <= train.lengths[negatives.users]),
        valid=build_cases(1),
        test=build_cases(0),
        user_counts_by_reason=_drop_zero_counts({"users with fewer than 3 positives": int((~is_evaluated).sum())}),
        positive_parts=parts,
    )


def split_global_time(interactions: Interactions, n_users: int, valid_from: ColumnTime, test_from: ColumnTime) -> Split:
    """Split at two points in time: training before `valid_from`, test from `test_from` on, validation in between.

    Targets of a user are the distinct items of the positives within the period, the history all positives before it.

    Raises:
        DataError: The cutoffs are not in order.
    """
    if not valid_from < test_from:
        raise DataError(f"data.valid_from must lie before data.test_from, got {valid_from} and {test_from}")
    positives = interactions.positives
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    before_valid, before_test = positives.times < valid_from, positives.times < test_from
    train = RaggedArray.from_sorted_pairs(positives.users[before_valid], positives.items[before_valid], n_users)
    # Times ascend within a user, so each part of a history is a segment of it.
    starts, ends = histories.offsets[:-1], histories.offsets[1:]
    valid_starts = starts + train.lengths
    test_starts = starts + _count_by_user(positives.users[before_test], n_users)
    values = histories.values
    valid = _build_eval_cases(
        values, starts, valid_starts, RaggedView(values, valid_starts, test_starts - valid_starts)
    )
    test = _build_eval_cases(values, starts, test_starts, RaggedView(values, test_starts, ends - test_starts))
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


def _count_by_user(users: Rows, n_users: int) -> NDArray[np.int64]:
    """Return how often each user occurs among ascending users, [n_users]."""
    return RaggedArray.from_sorted_pairs(users, users, n_users).lengths


def split_at_random(interactions: Interactions, n_users: int, seed: int) -> Split:
    """Split each user's items at random, see `draw_held_out`; histories are the training part.

    A hard negative is in the training unless its user took the item and that is held out.
    """
    positives = interactions.positives
    is_valid, is_test = draw_held_out(positives.users, positives.items, None, n_users, seed)
    parts = np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN)).astype(np.int8)
    n_items = int(interactions.items.max(initial=0)) + 1
    pairs, held_out = (
        log.users.astype(np.int64) * n_items + log.items for log in (interactions, positives.filter(parts != TRAIN))
    )
    is_train = ~np.isin(pairs, held_out)
    split = _split_by_parts(interactions, n_users, parts, is_train, reads_validation=False)
    return replace(
        split,
        protocol=f"random: of each user's items, 10 % are the test, 10 % the validation, drawn with seed {seed}; "
        "histories are the training part; all items are ranked",
        user_counts_by_reason=_drop_zero_counts(
            {f"users with fewer than {MIN_ITEMS} items": n_users - len(split.test)}
        ),
    )


def split_as_given(interactions: Interactions, n_users: int) -> Split:
    """Split into the parts that the table names; a tenth of the training is the validation if the table has none.

    Histories of the test are the training and the validation part, in their order.

    Raises:
        DataError: The table names no parts.
    """
    if interactions.parts is None:
        raise DataError("data.split_column is missing: split = 'given' needs the column with train, valid or test")
    positives = interactions.positives
    assert positives.parts is not None  # noqa: S101 - for mypy
    parts, protocol = positives.parts, "given: the parts that the table names"
    if not (parts == VALID).any():
        is_train = parts == TRAIN
        train = positives.filter(is_train)
        parts = parts.copy()
        parts[is_train] = np.where(draw_validation(train.users, train.items, None, n_users), VALID, TRAIN)
        protocol += ", and a random tenth of the training as the validation"
    split = _split_by_parts(interactions, n_users, parts, interactions.parts == TRAIN, reads_validation=True)
    return replace(
        split,
        protocol=f"{protocol}; all items are ranked",
        user_counts_by_reason=_drop_zero_counts(
            {
                "users without positives in the test part": n_users - len(split.test),
                "test users without a history (evaluated nevertheless)": int((split.test.histories.lengths == 0).sum()),
            }
        ),
    )


def _split_by_parts(
    interactions: Interactions, n_users: int, parts: NDArray[np.int8], is_train: Mask, *, reads_validation: bool
) -> Split:
    """Split into parts that overlap in time.

    Args:
        interactions: n interactions.
        n_users: U.
        parts: [positives] Part of each positive.
        is_train: [n] Whether an interaction may be trained on, if it is not positive.
        reads_validation: Whether the histories of the test hold the validation part, too.
    """
    positives = interactions.positives

    def select(mask: Mask) -> RaggedArray:
        return RaggedArray.from_sorted_pairs(positives.users[mask], positives.items[mask], n_users)

    train = select(parts == TRAIN)
    before_test = select(parts != TEST) if reads_validation else train
    valid, test = (
        _build_eval_cases(history.values, history.offsets[:-1], history.offsets[1:], select(parts == part))
        for part, history in ((VALID, train), (TEST, before_test))
    )
    return Split(
        protocol="",
        train=train,
        hard_negatives=_select_train_negatives(interactions, parts, is_train),
        valid=valid,
        test=test,
        user_counts_by_reason={},
        positive_parts=parts,
    )


def _select_train_negatives(interactions: Interactions, parts: NDArray[np.int8], is_train: Mask) -> HardNegatives:
    """Return the hard negatives where the mask [n] is true, at their positions among the training positives.

    Args:
        interactions: n interactions.
        parts: [positives] Part of each positive.
        is_train: [n] Whether an interaction may be trained on.
    """
    is_train_positive = interactions.is_positive.copy()
    is_train_positive[is_train_positive] = parts == TRAIN
    counts = offsets_from_lengths(is_train_positive)  # [n + 1]
    positions = np.flatnonzero(~interactions.is_positive & is_train)
    users = interactions.users[positions]
    firsts = np.searchsorted(interactions.users, users)
    return HardNegatives(users, interactions.items[positions], counts[positions] - counts[firsts])


def _build_eval_cases(
    values: Rows, starts: NDArray[np.int64], ends: NDArray[np.int64], targets: RaggedArray
) -> EvalCases:
    """Build the cases of the users with targets.

    Args:
        values: Items of all histories.
        starts: [U] Start of each user's history in `values`.
        ends: [U] Its end.
        targets: U lists of held-out items, with repeats.
    """
    users = np.flatnonzero(targets.lengths)
    histories = RaggedView(values, starts[users], ends[users] - starts[users])
    return EvalCases(users, histories, _sort_distinct(targets.take(users)))


def _sort_distinct(lists: RaggedArray) -> RaggedArray:
    """Return the distinct rows of each list, ascending."""
    n_rows = int(lists.values.max(initial=0)) + 1
    owners, rows = np.divmod(np.unique(lists.segment_ids * n_rows + lists.values), n_rows)
    return RaggedArray.from_sorted_pairs(owners, rows.astype(lists.values.dtype), len(lists))


def select_hard_negatives(interactions: Interactions, train_mask: Mask | None = None) -> HardNegatives:
    """Return the interactions that are not positive, see `HardNegatives`.

    Args:
        interactions: n interactions.
        train_mask: [n] Mask of those that may be trained on; None for all.
    """
    positions = np.flatnonzero(~interactions.is_positive)
    users = interactions.users[positions]
    firsts = np.searchsorted(interactions.users, users)  # position of the user's first interaction
    # Of the interactions before a position, those are positive that are not among the negatives.
    counts = positions - np.arange(len(positions)) - (firsts - np.searchsorted(positions, firsts))
    negatives = HardNegatives(users, interactions.items[positions], counts)
    return negatives if train_mask is None else negatives.filter(train_mask[positions])


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
    if interactions.time_unit is None:
        return f"{time:.15g}" if isinstance(time, float) else str(time)
    microseconds = time * NS_PER_UNIT[interactions.time_unit] / NS_PER_UNIT["us"]
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:  # outside the years that datetime supports
        return f"{time} {interactions.time_unit} since 1970"
