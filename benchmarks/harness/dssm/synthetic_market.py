"""Synthetic market with known preferences: latent factors determine features and labels.

Items gather around themes, as in real catalogues. Users and items have `N_FACTORS` latent factors; their features are a
noisy linear map of them. A user takes an item that is shown to them with probability

    sigmoid(SHARPNESS * (affinity - affinity_threshold))

where affinity is the inner product of the factors divided by its standard deviation. The threshold sets the share of
positive labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float32]

USER_FEATURE_DIM, ITEM_FEATURE_DIM = 50, 30
N_FACTORS, N_THEMES, SPREAD, NOISE_SCALE = 16, 200, 0.7, 0.3
SHARPNESS = 3.0
IMPRESSIONS_PER_USER = 60  # items shown to each user
CHUNK_ITEMS = 50_000  # items generated at a time; every pool is a prefix of the same endless catalogue
AFFINITY_THRESHOLDS = {"balanced": 0.0, "skewed": 1.0}  # half of the labels are positive; one in five

FEATURE_COLUMN = "profile"  # vector column of users and of items


@dataclass(frozen=True)
class SyntheticMarket:
    """Reproducible market. Its first n items are the same for every number of items.

    Attributes:
        affinity_threshold: affinity at which an item is taken with probability 0.5.
        seed: seed of all random streams.
    """

    affinity_threshold: float
    seed: int = 0

    def write_items(self, path: Path, n_items: int) -> None:
        """Write Parquet with the columns `item` and the features [30]."""
        features = [features for _, features in self._iterate_items(n_items)]
        table = {"item": to_item_ids(np.arange(n_items)), FEATURE_COLUMN: np.concatenate(features)}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_users(self, path: Path, n_users: int) -> None:
        """Write Parquet with the columns `user` and the features [50]."""
        table = {"user": np.arange(n_users), FEATURE_COLUMN: self._make_users("known", n_users)[1]}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_interactions(self, path: Path, n_users: int, n_items: int) -> float:
        """Write Parquet with the columns `user`, `item` and `label` (1.0 taken, 0.0 not).

        Returns:
            The share of positive labels.
        """
        items = np.concatenate([factors for factors, _ in self._iterate_items(n_items)])
        users = self._make_users("known", n_users)[0]
        rng = self._rng("labels")
        impression_rows = rng.integers(n_items, size=(n_users, IMPRESSIONS_PER_USER))  # [U, S]
        probabilities = self._compute_probabilities(np.einsum("ud,usd->us", users, items[impression_rows]))
        labels = (rng.random(impression_rows.shape) < probabilities).astype(np.float32)
        table = {
            "user": np.repeat(np.arange(n_users), IMPRESSIONS_PER_USER),
            "item": to_item_ids(impression_rows.ravel()),
            "label": labels.ravel(),
        }
        pl.DataFrame(table).write_parquet(path)
        return float(labels.mean())

    def make_unseen_users(self, n_users: int) -> Floats:
        """Return the features [n_users, 50] of users that are not in the training data."""
        return self._make_users("strangers", n_users)[1]

    def iterate_probabilities(self, n_users: int, n_items: int) -> Iterator[Floats]:
        """Yield, for each user of `make_unseen_users`, the probability [n_items] that they take an item."""
        items = np.concatenate([factors for factors, _ in self._iterate_items(n_items)])
        for user in self._make_users("strangers", n_users)[0]:
            yield self._compute_probabilities(items @ user)

    def _iterate_items(self, n_items: int) -> Iterator[tuple[Floats, Floats]]:
        """Yield latent factors [C, 16] and features [C, 30], chunk by chunk."""
        shared_rng = self._rng("items")
        themes = shared_rng.standard_normal((N_THEMES, N_FACTORS), dtype=np.float32)
        feature_map = shared_rng.standard_normal((N_FACTORS, ITEM_FEATURE_DIM), dtype=np.float32) / np.sqrt(
            N_FACTORS, dtype=np.float32
        )
        for start in range(0, n_items, CHUNK_ITEMS):
            rng = self._rng("items", start)
            theme = themes[rng.integers(N_THEMES, size=CHUNK_ITEMS)]
            deviation = rng.standard_normal((CHUNK_ITEMS, N_FACTORS), dtype=np.float32)
            factors = (theme + SPREAD * deviation) / np.sqrt(1 + SPREAD**2, dtype=np.float32)
            noise = rng.standard_normal((CHUNK_ITEMS, ITEM_FEATURE_DIM), dtype=np.float32)
            features = factors @ feature_map + NOISE_SCALE * noise
            remaining = n_items - start
            yield factors[:remaining], features[:remaining].astype(np.float32)

    def _make_users(self, stream: str, n_users: int) -> tuple[Floats, Floats]:
        """Return latent factors [n_users, 16] and features [n_users, 50]."""
        feature_map = self._rng("users").standard_normal((N_FACTORS, USER_FEATURE_DIM), dtype=np.float32)
        rng = self._rng(stream, n_users)
        factors = rng.standard_normal((n_users, N_FACTORS), dtype=np.float32)
        noise = NOISE_SCALE * rng.standard_normal((n_users, USER_FEATURE_DIM), dtype=np.float32)
        return factors, (factors @ feature_map / np.sqrt(N_FACTORS) + noise).astype(np.float32)

    def _compute_probabilities(self, products: Floats) -> Floats:
        """Return the probability of taking an item, given inner products of latent factors."""
        affinity = products / np.sqrt(N_FACTORS, dtype=np.float32)
        probabilities: Floats = 1 / (1 + np.exp(-SHARPNESS * (affinity - self.affinity_threshold), dtype=np.float32))
        return probabilities

    def _rng(self, stream: str, number: int = 0) -> np.random.Generator:
        # The stream's name is part of the seed: another spelling is another market.
        return np.random.default_rng([self.seed, *stream.encode(), number])


def to_item_ids(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ids that ascend with the rows and differ from them."""
    return 100_000_007 + 3 * rows
