"""Segments of an evaluation: parts of the held-out items, by their users, by themselves, or by a column of either.

Buckets, which are left out where they hold no target:

user_age         Time from the first training positive of the user to the last of all: quarters of those evaluated, and
                 "untrained" users without one. Left out where the tables have no times.
history_length   Number of items in the history that is ranked for: 0, 1-4, 5-9, 10-19, 20-49, 50-199, 200+.
item_popularity  Of the target, by its number of training users: "head" items have half of the training interactions,
                 "torso" items the next 30 %, "tail" items the last 20 %; "untrained" ones have none.
a column         Numbers and dates: quarters of the targets, or each value of at most five. Others: the five most
                 frequent values, and "other". A target with several tags is in several buckets. "missing" has no value.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Mask, Scores
from vecall.data.dataset import Dataset
from vecall.data.frames import null_column
from vecall.data.ragged import EvalCases
from vecall.data.split import TRAIN, Split
from vecall.evaluation.settings import (
    GROUPED_FEATURE_KINDS,
    HISTORY_LENGTH,
    ITEM_POPULARITY,
    USER_AGE,
    find_segment_column,
)

logger = logging.getLogger(__name__)

_HISTORY_EDGES = (0, 1, 5, 10, 20, 50, 200)
_QUARTERS = (0.25, 0.5, 0.75)
_AGE_LABELS = ("newest quarter", "second quarter", "third quarter", "oldest quarter")
_POPULAR_SHARES = (("head", 0.5), ("torso", 0.8))  # of the training interactions, from the most popular item on
_MAX_VALUES = 5  # of a column that have a bucket each
_UNTRAINED, _MISSING, _OTHER = "untrained", "missing", "other"

Buckets = dict[str, Mask]


@dataclass(frozen=True)
class Segment:
    """Some of the held-out targets.

    Attributes:
        name: What the targets are divided by, such as "history_length".
        bucket: Which part this is, such as "5-9".
        target_mask: [targets] whether a target belongs to it.
    """

    name: str
    bucket: str
    target_mask: Mask


def build_segments(
    names: Sequence[str], dataset: Dataset, split: Split, cases: EvalCases, item_counts: Scores
) -> list[Segment]:
    """Divide the targets of test cases by each of the names.

    Args:
        names: `evaluation.segments`.
        dataset: Supplies the times and columns.
        split: The split that the cases are of.
        cases: Test cases.
        item_counts: [N] number of training users of each item.
    """
    segments = []
    for name in names:
        if name == USER_AGE:
            buckets = _divide_by_user_age(dataset, split, cases) if dataset.has_timestamps else {}
        elif name == HISTORY_LENGTH:
            buckets = _divide_by_history_length(cases)
        elif name == ITEM_POPULARITY:
            buckets = _divide_by_popularity(item_counts, cases)
        else:
            buckets = _divide_by_column(name, _read_column(name, dataset, cases))
        segments += [Segment(name, bucket, mask) for bucket, mask in buckets.items() if mask.any()]
    return segments


def _divide_by_user_age(dataset: Dataset, split: Split, cases: EvalCases) -> Buckets:
    positives = dataset.interactions.positives
    is_train = split.positive_parts == TRAIN
    users, times = positives.users[is_train], positives.times[is_train]  # by user, then time
    first_positions = np.minimum(np.searchsorted(users, cases.users), len(users) - 1)
    is_trained = users[first_positions] == cases.users
    ages = float(times.max()) - times[first_positions].astype(np.float64)
    quarters = _find_quarters(ages, is_trained)
    by_case = {_UNTRAINED: ~is_trained} | {
        label: is_trained & (quarters == quarter) for quarter, label in enumerate(_AGE_LABELS)
    }
    return _spread_over_targets(by_case, cases)


def _divide_by_history_length(cases: EvalCases) -> Buckets:
    lengths = cases.histories.lengths
    buckets = np.searchsorted(_HISTORY_EDGES, lengths, side="right") - 1
    labels = [
        f"{low}" if low == next_low - 1 else f"{low}-{next_low - 1}" for low, next_low in pairwise(_HISTORY_EDGES)
    ]
    by_case = {label: buckets == bucket for bucket, label in enumerate([*labels, f"{_HISTORY_EDGES[-1]}+"])}
    return _spread_over_targets(by_case, cases)


def _divide_by_popularity(item_counts: Scores, cases: EvalCases) -> Buckets:
    """Divide by thresholds of the count, so that items of equal popularity are in the same bucket."""
    target_counts = item_counts[cases.targets.values]
    descending = np.sort(item_counts)[::-1].astype(np.float64)
    cumulative = np.cumsum(descending)
    buckets, is_left = {}, target_counts > 0
    for label, share in _POPULAR_SHARES:
        threshold = descending[np.searchsorted(cumulative, share * cumulative[-1])]
        buckets[label] = is_left & (target_counts >= threshold)
        is_left = is_left & ~buckets[label]
    return buckets | {"tail": is_left, _UNTRAINED: target_counts == 0}


def _spread_over_targets(by_case: Mapping[str, Mask], cases: EvalCases) -> Buckets:
    owners = cases.targets.segment_ids
    return {label: mask[owners] for label, mask in by_case.items()}


def _read_column(name: str, dataset: Dataset, cases: EvalCases) -> pl.Series:
    """Return the value of a column for each target, [targets]: of its user, or of itself."""
    table, column = find_segment_column(name, dataset.schema)
    catalogue = dataset.catalogue
    if table == "users":
        return catalogue.user_features[column].gather(cases.users[cases.targets.segment_ids])
    feature = dataset.schema.items.features.get(column)
    is_grouped = feature is not None and feature.kind in GROUPED_FEATURE_KINDS
    frame = catalogue.item_features if is_grouped else catalogue.item_attributes
    if column not in frame.columns:  # the schema describes an items table that the settings do not name
        return null_column(len(cases.targets.values), pl.String)
    return frame[column].gather(cases.targets.values)


def _divide_by_column(name: str, values: pl.Series) -> Buckets:
    """Divide targets by their values [targets], or leave the segment out where values of the type cannot be grouped."""
    if isinstance(values.dtype, pl.Array):
        values = values.arr.to_list()
    dtype = values.dtype.inner if isinstance(values.dtype, pl.List) else values.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        logger.warning(
            "evaluation.segments: %r has values of type %s and is left out; expected numbers, text, booleans, times or "
            "lists of them",
            name, values.dtype,
        )  # fmt: skip
        return {}
    return divide_by_value(values)


def divide_by_value(values: pl.Series) -> Buckets:
    """Divide targets by the values [targets] of a column, see the top of this module."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    missing = values.is_null()
    if isinstance(values.dtype, pl.List):
        missing |= (values.list.len() == 0).fill_null(value=True)
        buckets = _divide_by_tag(values)
    elif (values.dtype.is_numeric() or values.dtype.is_temporal()) and values.drop_nulls().n_unique() > _MAX_VALUES:
        buckets = dict(_divide_into_quarters(values))
    else:
        buckets = _divide_by_frequency(values.cast(pl.String))
    return buckets | {_MISSING: missing.to_numpy()}


def _divide_into_quarters(values: pl.Series) -> Iterator[tuple[str, Mask]]:
    """Yield the quarters of numbers or dates, with their least and greatest value."""
    numbers = values.to_physical().cast(pl.Float64)
    is_present = numbers.is_not_null().to_numpy()
    quarters = _find_quarters(numbers.fill_null(0.0).to_numpy(), is_present)
    for quarter in range(len(_QUARTERS) + 1):
        mask = is_present & (quarters == quarter)
        if mask.any():
            part = values.filter(pl.Series(mask))
            low, high = (f"{end:.10g}" if isinstance(end, float) else str(end) for end in (part.min(), part.max()))
            yield (low if low == high else f"{low} to {high}"), mask


def _find_quarters(numbers: NDArray[np.float64], is_present: Mask) -> NDArray[np.int64]:
    """Return the quarter, 0 to 3, of each number among the present ones; equal numbers are in the same one."""
    if not is_present.any():
        return np.zeros(len(numbers), dtype=np.int64)
    edges = np.quantile(numbers[is_present], _QUARTERS, method="lower")
    return np.searchsorted(edges, numbers, side="left")


def _divide_by_frequency(values: pl.Series) -> Buckets:
    frequent = _select_frequent(values)
    buckets = {value: (values == value).fill_null(value=False).to_numpy() for value in frequent}
    return buckets | {_OTHER: (values.is_not_null() & ~values.is_in(frequent)).fill_null(value=False).to_numpy()}


def _divide_by_tag(values: pl.Series) -> Buckets:
    tags = values.cast(pl.List(pl.String))
    frequent = _select_frequent(tags.explode())
    buckets = {tag: tags.list.contains(tag).fill_null(value=False).to_numpy() for tag in frequent}
    is_other = (tags.list.len() > 0).fill_null(value=False).to_numpy() & ~np.any([*buckets.values()], axis=0)
    return buckets | {_OTHER: is_other}


def _select_frequent(values: pl.Series) -> list[str]:
    """Return the most frequent values, of equally frequent ones the first by text; none that a bucket is called."""
    named = values.filter(~values.is_in([_OTHER, _MISSING])).drop_nulls()
    counts = named.alias("value").value_counts(name="count")
    return counts.sort(["count", "value"], descending=[True, False])["value"].head(_MAX_VALUES).to_list()
