"""Comparison of the tags of candidates with those of the newest items of the history."""

from collections import Counter
from collections.abc import Sequence, Set
from functools import cached_property
from itertools import chain, repeat

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Scores


class TagComparison:
    """Compares the tags of C candidates with those of the newest items; what several columns need is computed once.

    In Python: an expression of Polars starts its thread pool, which takes longer than all of this.

    Args:
        values: [C] lists of tags of the candidates.
        history_values: Lists of tags of the newest items, the oldest first.
        close_count: Number of the newest of these that are compared one by one.
    """

    def __init__(self, values: pl.Series, history_values: pl.Series, close_count: int) -> None:
        self._tag_lists: list[Sequence[object]] = [tags or () for tags in values.to_list()]
        self._history: list[Sequence[object]] = [tags or () for tags in history_values.to_list()]
        self._close_count = close_count

    def compute_shares(self) -> Scores:
        """Return [C] means over a candidate's tags of the share of items with the tag, of those that have any tag."""
        known = [tags for tags in self._history if tags]
        if not known:
            return self._nothing
        counts = Counter(tag for tags in known for tag in set(tags))
        lengths = _count(self._tag_lists)
        found = map(counts.get, chain.from_iterable(self._tag_lists), repeat(0))
        shares = np.fromiter(found, np.float64, int(lengths.sum())) / len(known)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        means = np.bincount(owners, shares, minlength=len(lengths)) / np.maximum(lengths, 1)
        return np.where(lengths > 0, means, np.nan).astype(np.float32)

    @cached_property
    def overlaps(self) -> tuple[Scores, Scores, Scores]:
        """Jaccard index [C] with the newest item, the largest and the mean; NaN where one of the two has no tag."""
        close = self._history[-self._close_count :]
        known = [set(tags) for tags in close if tags]
        if not known:
            return self._nothing, self._nothing, self._nothing
        overlaps = compute_overlaps([set(tags) for tags in self._tag_lists], known)
        return overlaps[:, -1] if close[-1] else self._nothing, overlaps.max(axis=1), overlaps.mean(axis=1)

    @property
    def _nothing(self) -> Scores:
        return np.full(len(self._tag_lists), np.nan, dtype=np.float32)


def compute_overlaps(tag_sets: Sequence[Set[object]], others: Sequence[Set[object]]) -> Scores:
    """Return the Jaccard indices [C, m] of C sets with m others that are not empty; NaN for an empty set."""
    # Which of the others have a tag, a row per tag, of which the last is that of all other tags: [T + 1, m].
    numbers = {tag: number for number, tag in enumerate(set().union(*others))}
    has_tag = np.zeros((len(numbers) + 1, len(others)), dtype=np.float32)
    for index, tags in enumerate(others):
        has_tag[[numbers[tag] for tag in tags], index] = 1
    lengths = _count(tag_sets)
    found = np.fromiter(
        map(numbers.get, chain.from_iterable(tag_sets), repeat(len(numbers))), np.int64, int(lengths.sum())
    )
    # The sum of a set's rows is a difference of running sums, also of an empty set.
    sums = np.concatenate([np.zeros((1, len(others)), np.float32), has_tag[found].cumsum(axis=0)])  # [total + 1, m]
    ends = lengths.cumsum()
    common = sums[ends] - sums[ends - lengths]  # [C, m]
    union = lengths[:, None] + _count(others) - common
    return np.where(lengths[:, None] > 0, common / union, np.nan).astype(np.float32)


def _count(collections: Sequence[Sequence[object] | Set[object]]) -> NDArray[np.int64]:
    return np.fromiter(map(len, collections), np.int64, len(collections))
