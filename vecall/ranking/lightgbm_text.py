"""Trees in LightGBM's own text format."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_VERSION, _OBJECTIVE = "v4", "lambdarank"  # whose scores are the plain sums of leaves
_TREE_MARK = "\nTree="
_CATEGORY, _DEFAULT_LEFT, _MISSING_SHIFT = 1, 2, 2  # bits of a decision type


@dataclass(frozen=True)
class Tree:
    """A tree of S splits and S + 1 leaves. A child below 0 is the leaf of that bitwise complement.

    Attributes:
        features: [S] Position of the feature that each split reads.
        thresholds: [S] Values up to it go left; of a category split the position among `category_bounds`.
        is_category: [S] Whether a split goes by sets of categories.
        goes_left_if_missing: [S] Where a missing value goes.
        missing_kinds: [S] What is missing: 0 nothing, and NaN counts as 0; 1 zero and NaN; 2 NaN.
        left_children: [S].
        right_children: [S].
        leaf_values: [S + 1].
        category_bounds: Bounds of the sets among `category_words`.
        category_words: Bits of the categories that go left, 32 a word.
    """

    features: NDArray[np.int32]
    thresholds: NDArray[np.float64]
    is_category: NDArray[np.bool_]
    goes_left_if_missing: NDArray[np.bool_]
    missing_kinds: NDArray[np.int8]
    left_children: NDArray[np.int32]
    right_children: NDArray[np.int32]
    leaf_values: NDArray[np.float64]
    category_bounds: NDArray[np.int32]
    category_words: NDArray[np.uint32]

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> Self:
        """Parse the fields of a tree."""

        def read(name: str, dtype: type[np.generic]) -> NDArray[np.generic]:
            return np.array(fields.get(name, "").split(), dtype=dtype)

        decisions = read("decision_type", np.int32).astype(np.int32)
        return cls(
            features=read("split_feature", np.int32).astype(np.int32),
            thresholds=read("threshold", np.float64).astype(np.float64),
            is_category=(decisions & _CATEGORY) > 0,
            goes_left_if_missing=(decisions & _DEFAULT_LEFT) > 0,
            missing_kinds=(decisions >> _MISSING_SHIFT & 3).astype(np.int8),
            left_children=read("left_child", np.int32).astype(np.int32),
            right_children=read("right_child", np.int32).astype(np.int32),
            leaf_values=read("leaf_value", np.float64).astype(np.float64),
            category_bounds=read("cat_boundaries", np.int32).astype(np.int32),
            category_words=read("cat_threshold", np.uint32).astype(np.uint32),
        )


def parse_trees(model_text: str) -> list[Tree] | None:
    """Return the trees of a model that LightGBM accepts, in the order in which it adds them.

    None if it is of another version or objective than those that `vecall fit` trains, or has linear models in its
    leaves: its scores may be more than sums of leaves.
    """
    header, *parts = model_text.split(_TREE_MARK)
    facts = _parse_fields(header)
    is_known = facts.get("version") == _VERSION and facts.get("objective", "").split(" ")[0] == _OBJECTIVE
    if not is_known or facts.get("num_tree_per_iteration") != "1" or "average_output" in header:
        return None
    trees = [_parse_fields(part.split("\n\n", 1)[0]) for part in parts]
    return None if any(fields.get("is_linear") == "1" for fields in trees) else [Tree.parse(part) for part in trees]


def _parse_fields(text: str) -> dict[str, str]:
    return {name: value for name, mark, value in (line.partition("=") for line in text.splitlines()) if mark}
