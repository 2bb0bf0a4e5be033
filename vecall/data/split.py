"""Parts of a split of interactions, and what every kind of split builds them from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.interactions import Interactions
from vecall.data.ragged import EvalCases, RaggedArray, RaggedView
from vecall.data.timestamps import NS_PER_UNIT

# A time in the unit of the time column; int where the column is one: a float would lose digits beyond 2^53.
ColumnTime = int | float

TRAIN, VALID, TEST = 0, 1, 2


@dataclass(frozen=True)
class HardNegatives:
    """Interactions that are not positive: impressions that were not taken, and labels below the threshold.

    Attributes:
        users: [n] User rows.
        items: [n] Item rows.
        prior_positive_counts: [n] Number of positives of the same user that came before.
        context: [n] Rows with a column per context feature; None without such.
    """

    users: Rows
    items: Rows
    prior_positive_counts: NDArray[np.int64]
    context: pl.DataFrame | None = None

    def filter(self, mask: Mask) -> "HardNegatives":
        """Return those where the mask [n] is true, in the same order."""
        context = None if self.context is None else self.context.filter(pl.Series(mask))
        return HardNegatives(self.users[mask], self.items[mask], self.prior_positive_counts[mask], context)


_NOTHING = np.empty(0, dtype=np.int64)
NO_HARD_NEGATIVES = HardNegatives(_NOTHING, _NOTHING, _NOTHING)


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
        train_weights: Weight in the loss of each value of `train`; None if all weigh the same.
        train_context: Context features of each value of `train`; None without such.
    """

    protocol: str
    train: RaggedArray
    hard_negatives: HardNegatives
    valid: EvalCases
    test: EvalCases
    user_counts_by_reason: Mapping[str, int]
    positive_parts: NDArray[np.int8]
    train_weights: NDArray[np.float32] | None = None
    train_context: pl.DataFrame | None = None

    @property
    def counted_train(self) -> RaggedArray:
        """`train` without the positives of weight 0, which are history alone: what baselines and popularity count."""
        if self.train_weights is None or self.train_weights.all():
            return self.train
        is_counted = self.train_weights > 0
        return RaggedArray.from_sorted_pairs(
            self.train.segment_ids[is_counted], self.train.values[is_counted], len(self.train)
        )


def build_eval_cases(
    positives: Interactions,
    is_held_out: Mask,
    values: Rows,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> EvalCases:
    """Build the cases of the users with held-out positives of the kinds that may be.

    Args:
        positives: n positives.
        is_held_out: [n] Whether each is held out.
        values: Items of all histories.
        starts: [U] Start of each user's history in `values`.
        ends: [U] Its end.
    """
    if positives.is_target is not None:
        is_held_out = is_held_out & positives.is_target
    targets = RaggedArray.from_sorted_pairs(positives.users[is_held_out], positives.items[is_held_out], len(starts))
    users = np.flatnonzero(targets.lengths)
    histories = RaggedView(values, starts[users], ends[users] - starts[users])
    first_targets = np.flatnonzero(is_held_out)[targets.offsets[users]]
    context = None if positives.context is None else positives.context[first_targets]
    return EvalCases(users, histories, _sort_distinct(targets.take(users)), context)


def _sort_distinct(lists: RaggedArray) -> RaggedArray:
    """Return the distinct rows of each list, ascending."""
    n_rows = int(lists.values.max(initial=0)) + 1
    owners, rows = np.divmod(np.unique(lists.segment_ids * n_rows + lists.values), n_rows)
    return RaggedArray.from_sorted_pairs(owners, rows.astype(lists.values.dtype), len(lists))


def add_train_columns(split: Split, interactions: Interactions) -> Split:
    """Return a split of interactions with `train_weights` and `train_context`, where they have such."""
    if interactions.weights is None and interactions.context is None:
        return split
    positives, is_train = interactions.positives, split.positive_parts == TRAIN
    return replace(
        split,
        train_weights=None if positives.weights is None else positives.weights[is_train],
        train_context=None if positives.context is None else positives.context.filter(pl.Series(is_train)),
    )


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
    context = None if interactions.context is None else interactions.context[positions]
    negatives = HardNegatives(users, interactions.items[positions], counts, context)
    return negatives if train_mask is None else negatives.filter(train_mask[positions])


def describe_target_kinds(interactions: Interactions) -> str:
    """Return " of kind ..." where only positives of some kinds are held out, else nothing."""
    return "" if interactions.is_target is None else f" of kind {' or '.join(interactions.target_kinds)}"


def drop_zero_counts(counts: dict[str, int]) -> Mapping[str, int]:
    """Return the counts above 0."""
    return MappingProxyType({reason: count for reason, count in counts.items() if count})


def format_time(time: ColumnTime, interactions: Interactions) -> str:
    """Format a time of the time column for people."""
    if interactions.time_unit is None:
        return f"{time:.15g}" if isinstance(time, float) else str(time)
    microseconds = time * NS_PER_UNIT[interactions.time_unit] / NS_PER_UNIT["us"]
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).isoformat()
    except OverflowError:  # outside the years that datetime supports
        return f"{time} {interactions.time_unit} since 1970"
