"""Synthetic training data as arrays, without tables: for timings of training steps over catalogues of any size."""

import numpy as np
from numpy.typing import NDArray

from vecall.data.feature_encoder import EncodedFeatures, FeatureSpec
from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.training.data import TrainingData

_ZIPF_OFFSET_SHARE = 0.001  # P(item of popularity rank r) ~ 1 / (r + a thousandth of the items)
_N_CATEGORIES, _N_TAGS, _TAGS_PER_ITEM, _N_TOKENS, _TOKENS_PER_ITEM = 500, 5_000, 4, 65_537, 42


def make_training_data(n_items: int, n_rows: int, *, with_features: bool = False, seed: int = 0) -> TrainingData:
    """Make histories of 20 items on average, with Zipf popularity of items, and encoded features of all items.

    Args:
        n_items: N.
        n_rows: number of interactions.
        with_features: whether items have a category, tags, a title and a price.
        seed: seed of all random streams.
    """
    rng = np.random.default_rng(seed)
    n_users = max(1, n_rows // 20)
    users = np.sort(rng.integers(n_users, size=n_rows))
    offset = max(10.0, _ZIPF_OFFSET_SHARE * n_items)
    ranks = offset * ((n_items + offset) / offset) ** rng.random(n_rows) - offset
    # A multiplication by a number without a common factor scatters the popular items over the table.
    items = np.minimum(ranks.astype(np.int64), n_items - 1) * 7919 % n_items
    no_pairs = np.empty(0, dtype=np.int64)
    return TrainingData(
        histories=RaggedArray.from_sorted_pairs(users, items, n_users),
        hard_negatives=HardNegatives(no_pairs, no_pairs, no_pairs),
        n_items=n_items,
        item_features=_make_features(rng, n_items) if with_features else {},
        user_features={},
        item_specs=_FEATURE_SPECS if with_features else {},
        user_specs={},
    )


_FEATURE_SPECS = {
    "category": FeatureSpec("categorical", _N_CATEGORIES + 2),
    "tags": FeatureSpec("multi_value", _N_TAGS + 2),
    "title": FeatureSpec("multi_value", _N_TOKENS),
    "price": FeatureSpec("dense", 2),
}


def _make_features(rng: np.random.Generator, n_items: int) -> EncodedFeatures:
    """Return encoded features [N, ...] by name."""

    def draw_rows(size: int, width: int) -> NDArray[np.int32]:
        return rng.integers(2, size, (n_items, width), dtype=np.int32)

    return {
        "category": draw_rows(_N_CATEGORIES + 2, 1)[:, 0],
        "tags": draw_rows(_N_TAGS + 2, _TAGS_PER_ITEM),
        "title": draw_rows(_N_TOKENS, _TOKENS_PER_ITEM),
        "price": rng.standard_normal((n_items, 2), dtype=np.float32),
    }
