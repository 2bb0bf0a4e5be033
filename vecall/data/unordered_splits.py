"""Splits whose parts overlap in time: a random one, and one that a column of the table gives."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask
from vecall.data.interactions import Interactions
from vecall.data.newest_tenth import has_targets, is_before_validation, is_test_later, mark_newest_tenth
from vecall.data.ragged import RaggedArray, offsets_from_lengths
from vecall.data.random_pairs import MIN_ITEMS, draw_held_out, draw_validation
from vecall.data.split import (
    TEST,
    TRAIN,
    VALID,
    HardNegatives,
    Split,
    build_eval_cases,
    describe_target_kinds,
    drop_zero_counts,
)
from vecall.errors import DataError


def split_at_random(interactions: Interactions, n_users: int, seed: int) -> Split:
    """Split each user's items at random, see `draw_held_out`; histories are the training part.

    All positives of an item of a user lie in the same part, those of kinds that may not be held out, too. A hard
    negative is in the training unless its user took the item and that is held out.
    """
    positives = interactions.positives
    is_valid, is_test = draw_held_out(positives.users, positives.items, positives.is_target, n_users, seed)
    parts = np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN)).astype(np.int8)
    may_train = ~_are_pairs_of(interactions, positives.filter(parts != TRAIN))
    kinds = describe_target_kinds(interactions)
    split = _split_by_parts(interactions, n_users, parts, may_train, reads_validation=False)
    return replace(
        split,
        protocol=f"random: of each user's items{kinds}, 10 % are the test and 10 % the validation (seed {seed}); "
        "histories are the training part; all items are ranked",
        user_counts_by_reason=drop_zero_counts(
            {f"users with fewer than {MIN_ITEMS} items{kinds}": n_users - len(split.test)}
        ),
    )


def split_by_column(interactions: Interactions, n_users: int) -> Split:
    """Split into the parts that the table names; a tenth of the training is the validation if the table has none.

    It is each user's newest where the test comes after the training, else a random tenth. Histories of the test are the
    training and the validation part, in their order.

    Raises:
        DataError: The table names no parts.
    """
    if interactions.parts is None:
        raise DataError("data.split_column is missing: split = 'given' needs the column with train, valid or test")
    positives = interactions.positives
    assert positives.parts is not None  # noqa: S101 - for mypy
    parts, kinds = positives.parts, describe_target_kinds(interactions)
    may_train = interactions.parts == TRAIN
    protocol = "given: the parts that the table names"
    if not (parts == VALID).any():
        is_train = parts == TRAIN
        train = positives.filter(is_train)
        parts = parts.copy()
        if is_test_later(positives, parts, n_users) and has_targets(
            train, is_newest := mark_newest_tenth(train, n_users)
        ):
            parts[is_train] = np.where(is_newest, VALID, TRAIN)
            may_train &= is_before_validation(interactions, positives.filter(parts == VALID), n_users)
            protocol += ", and the newest tenth of each user's training as the validation, as the test is later"
        else:
            is_drawn = draw_validation(train.users, train.items, train.is_target, n_users)
            parts[is_train] = np.where(is_drawn, VALID, TRAIN)
            may_train &= ~_are_pairs_of(interactions, positives.filter(parts == VALID))
            protocol += ", and a random tenth of the training as the validation"
    split = _split_by_parts(interactions, n_users, parts, may_train, reads_validation=True)
    return replace(
        split,
        protocol=f"{protocol}{'; evaluated on positives' + kinds if kinds else ''}; all items are ranked",
        user_counts_by_reason=drop_zero_counts(
            {
                f"users without positives{kinds} in the test part": n_users - len(split.test),
                "test users without a history (evaluated nevertheless)": int((split.test.histories.lengths == 0).sum()),
            }
        ),
    )


def _are_pairs_of(interactions: Interactions, others: Interactions) -> Mask:
    """Return [n] whether user and item of an interaction are those of any other one."""
    n_items = int(interactions.items.max(initial=0)) + 1
    pairs, other_pairs = (log.users.astype(np.int64) * n_items + log.items for log in (interactions, others))
    return np.isin(pairs, other_pairs)


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
        build_eval_cases(positives, parts == part, history.values, history.offsets[:-1], history.offsets[1:])
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
    counts = offsets_from_lengths(is_train_positive.astype(np.int64))  # [n + 1]
    positions = np.flatnonzero(~interactions.is_positive & is_train)
    users = interactions.users[positions]
    firsts = np.searchsorted(interactions.users, users)
    context = None if interactions.context is None else interactions.context[positions]
    return HardNegatives(users, interactions.items[positions], counts[positions] - counts[firsts], context)
