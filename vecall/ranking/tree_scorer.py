"""Scores of boosted trees for some hundred rows in one thread, equal to LightGBM's own bit by bit and much faster.

Each tree keeps for each row the set of leaves that it can still end in, as bits. Every split, whether on the row's path
or not, clears the leaves of its left side where its test fails; the first leaf that is left is the one (QuickScorer,
Lucchese et al.: SIGIR 2015). All rows take the same steps, so that a step is a vector instruction for 8 or 16 of them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

from vecall.ranking.lightgbm_text import Tree
from vecall.runtime.numba_cache import compile_cached

intrinsic: Any = typed_intrinsic  # declared for a calling convention that differs from its use here

MAX_LEAVES = 32  # of a tree: bits of a mask; `vecall fit` trains 15
_NO_LEAF, _ALL_LEAVES = np.uint32(0), np.uint32(2**MAX_LEAVES - 1)
_BLOCK_ROWS = 512  # whose columns stay in the processor's cache
_NOTHING, _ZERO_OR_NAN = 0, 1  # kinds of missing values; the third is NaN
_ZERO = np.float32(1e-35)  # numbers up to it count as zero
_WORD_BITS, _WORD_SHIFT, _LAST_BIT, _BIT = 32, np.uint32(5), np.uint32(31), np.uint32(1)  # of a set of categories

_Masks = NDArray[np.uint32]  # leaves that are left where a test fails
_ColumnT = TypeVar("_ColumnT", bound=Hashable)

_jit = compile_cached()


@dataclass(frozen=True)
class TreeScorer:
    """T trees, laid out for the kernel: N splits of numbers read V columns, and M splits of categories read K.

    Attributes:
        number_features: [V] Feature that each column of numbers is made of.
        missing_kinds: [V] As of `Tree`.
        goes_left: [V] Where missing values go.
        numbers: Bounds [T + 1] of the trees among the splits; column, threshold and mask [N] of each split.
        category_features: [K] Feature that each column of categories is made of.
        categories: Bounds [T + 1] of the trees among the splits; column, mask [M] and set [M, W] of each split. A set
            is the bits of the categories that go left; the last word of each is 0.
        leaf_starts: [T + 1] Bounds of the trees among the leaves.
        leaf_values: Values of the leaves, from left to right in each tree.
    """

    number_features: NDArray[np.int64]
    missing_kinds: NDArray[np.int8]
    goes_left: NDArray[np.bool_]
    numbers: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], _Masks]
    category_features: NDArray[np.int64]
    categories: tuple[NDArray[np.int64], NDArray[np.int64], _Masks, NDArray[np.uint32]]
    leaf_starts: NDArray[np.int64]
    leaf_values: NDArray[np.float64]

    @classmethod
    def build(cls, trees: Sequence[Tree]) -> Self | None:
        """Lay out trees; None if there is none, or one has more leaves than a mask has bits."""
        n_leaves = max((len(tree.leaf_values) for tree in trees), default=MAX_LEAVES + 1)
        if n_leaves > MAX_LEAVES:
            return None
        numbers, categories = _Splits[tuple[int, int, bool]](), _Splits[int]()
        thresholds, sets, leaves = list[float](), list[NDArray[np.uint32]](), list[NDArray[np.float64]]()
        for tree in trees:
            order, masks = _order_leaves(tree)
            leaves.append(tree.leaf_values[order])
            for split, mask in enumerate(masks):
                feature, threshold = int(tree.features[split]), float(tree.thresholds[split])
                if tree.is_category[split]:
                    categories.append(feature, mask)
                    first, last = tree.category_bounds[int(threshold) :][:2]
                    sets.append(tree.category_words[first:last])
                else:
                    key = (feature, int(tree.missing_kinds[split]), bool(tree.goes_left_if_missing[split]))
                    numbers.append(key, mask)
                    thresholds.append(threshold)
            numbers.end_tree()
            categories.end_tree()
        keys = np.array(list(numbers.positions), dtype=np.int64).reshape(-1, 3)
        return cls(
            number_features=keys[:, 0],
            missing_kinds=keys[:, 1].astype(np.int8),
            goes_left=keys[:, 2].astype(np.bool_),
            numbers=(*numbers.to_arrays(), _round_down(np.array(thresholds)), numbers.to_masks()),
            category_features=np.array(list(categories.positions), dtype=np.int64),
            categories=(*categories.to_arrays(), categories.to_masks(), _pad(sets)),
            leaf_starts=np.cumsum([0, *(len(part) for part in leaves)]),
            leaf_values=np.concatenate(leaves),
        )

    @cached_property
    def used_features(self) -> list[int]:
        """Positions of the features that the trees read, ascending."""
        return sorted({*self.number_features.tolist(), *self.category_features.tolist()})

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return [C] sums of the leaves of all trees.

        Args:
            features: [F, C] Features of C rows, contiguous; those that no tree reads are ignored.
        """
        length = features.shape[1]
        columns = np.empty((len(self.number_features), length), dtype=np.float32)
        _fill_numbers(features, self.number_features, self.missing_kinds, self.goes_left, columns)
        codes = np.empty((len(self.category_features), length), dtype=np.uint32)
        _fill_codes(features, self.category_features, _WORD_BITS * (self.categories[-1].shape[1] - 1), codes)
        totals, block = np.zeros(length), np.empty(_BLOCK_ROWS, dtype=np.uint32)
        leaves = self.leaf_starts, self.leaf_values
        _add_trees((columns, *self.numbers), (codes, *self.categories), leaves, block, totals)
        return totals


class _Splits(Generic[_ColumnT]):
    """Splits of all trees, one after the other, and the columns that they read."""

    def __init__(self) -> None:
        self.positions: dict[_ColumnT, int] = {}  # of the columns
        self._starts, self._columns, self._masks = [0], list[int](), list[int]()

    def append(self, column: _ColumnT, mask: int) -> None:
        self._columns.append(self.positions.setdefault(column, len(self.positions)))
        self._masks.append(mask)

    def end_tree(self) -> None:
        self._starts.append(len(self._columns))

    def to_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array(self._starts, dtype=np.int64), np.array(self._columns, dtype=np.int64)

    def to_masks(self) -> _Masks:
        return np.array(self._masks, dtype=np.uint32)


def _order_leaves(tree: Tree) -> tuple[list[int], list[int]]:
    """Return the leaves from left to right, and for each split the bits of the leaves that are not on its left side."""
    order: list[int] = []
    masks = [0] * len(tree.features)
    pending = [(0, False)] if masks else []  # splits, and whether their left side is done
    order = [] if masks else [0]
    starts = [0] * len(masks)
    while pending:
        split, is_left_done = pending.pop()
        if split < 0:
            order.append(~split)
        elif is_left_done:
            masks[split] = int(_ALL_LEAVES) ^ ((1 << len(order)) - (1 << starts[split]))
            pending.append((int(tree.right_children[split]), False))
        else:
            starts[split] = len(order)
            pending += [(split, True), (int(tree.left_children[split]), False)]
    return order, masks


def _round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 thresholds that the same float32 values are up to."""
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def _pad(sets: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Return sets of equal length, with at least one word of zeros at the end of each."""
    padded = np.zeros((len(sets), 1 + max(map(len, sets), default=0)), dtype=np.uint32)
    for row, words in zip(padded, sets, strict=True):
        row[: len(words)] = words
    return padded


@intrinsic
def _count_trailing_zeros(_typing: Any, bits: Any) -> Any:  # noqa: ANN401 - numba's protocol
    """Position of the lowest set bit of a number other than 0."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return bits(bits), generate


@_jit
def _fill_numbers(features, column_features, missing_kinds, goes_left, columns):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the columns such that `value <= threshold` is the whole test: NaN fails it, and -inf passes it."""
    for column in range(columns.shape[0]):
        values, missing = features[column_features[column]], missing_kinds[column]
        for i in range(columns.shape[1]):
            value = values[i]
            if missing == _NOTHING and np.isnan(value):
                value = np.float32(0)
            if missing == _ZERO_OR_NAN and abs(value) <= _ZERO:
                value = np.float32(np.nan)
            if goes_left[column] and np.isnan(value):
                value = np.float32(-np.inf)
            columns[column, i] = value


@_jit
def _fill_codes(features, column_features, end, codes):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Write the codes of categories, `end` for those that are in no set."""
    for column in range(codes.shape[0]):
        values = features[column_features[column]]
        for i in range(codes.shape[1]):
            codes[column, i] = np.uint32(values[i]) if -1 < values[i] < end else np.uint32(end)


@_jit
def _test_numbers(values, threshold, mask, alive):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(alive.shape[0]):
        alive[i] &= _ALL_LEAVES if values[i] <= threshold else mask


@_jit
def _test_categories(codes, words, mask, alive):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for i in range(alive.shape[0]):
        bit = words[codes[i] >> _WORD_SHIFT] >> (codes[i] & _LAST_BIT) & _BIT
        # All bits if the category is in the set; a branch would take ten times as long.
        alive[i] &= mask | (_NO_LEAF - bit)


@_jit
def _add_trees(numbers, categories, leaves, block, totals):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    columns, number_starts, number_columns, thresholds, number_masks = numbers
    codes, category_starts, category_columns, category_masks, sets = categories
    leaf_starts, leaf_values = leaves
    for first in range(0, totals.shape[0], block.shape[0]):
        last = min(first + block.shape[0], totals.shape[0])
        alive = block[: last - first]
        for tree in range(number_starts.shape[0] - 1):
            alive[:] = _ALL_LEAVES
            for split in range(number_starts[tree], number_starts[tree + 1]):
                values = columns[number_columns[split], first:last]
                _test_numbers(values, thresholds[split], number_masks[split], alive)
            for split in range(category_starts[tree], category_starts[tree + 1]):
                own_codes = codes[category_columns[split], first:last]
                _test_categories(own_codes, sets[split], category_masks[split], alive)
            start = leaf_starts[tree]
            for i in range(alive.shape[0]):
                totals[first + i] += leaf_values[start + np.int64(_count_trailing_zeros(alive[i]))]
