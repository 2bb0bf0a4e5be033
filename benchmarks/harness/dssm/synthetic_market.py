"""A made-up market with a planted taste: hidden factors stand behind the features, and the labels come from them.

Items gather around themes, as catalogues do. A user and an item each have `FACTORS` hidden numbers; features are a
noisy linear view of them, and a shown item is taken with probability sigmoid(SHARPNESS · (affinity − border)), where
the affinity is the inner product of the hidden numbers over its own standard deviation. The border says how many of
the labels are positive.
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
IMPRESSIONS_PER_USER = 60  # items that each user was shown
CHUNK_ITEMS = 50_000  # items made at a time; a pool is a prefix of one endless catalogue
AFFINITY_THRESHOLDS = {"balanced": 0.0, "skewed": 1.0}  # half of the shown items are taken; one in five

FEATURE_COLUMN = "profile"  # the column that holds the features, on both sides


@dataclass(frozen=True)
class SyntheticMarket:
    """One world by its seed; its items do not depend on how many of them are looked at.

    Attributes:
        affinity_threshold: the affinity at which half of those who are shown an item take it.
        seed: of everything.
    """

    affinity_threshold: float
    seed: int = 0

    def write_items(self, path: Path, n_items: int) -> None:
        """Parquet with `item` and the features [n_items, 30]."""
        features = [features for _, features in self._iterate_items(n_items)]
        table = {"item": to_item_ids(np.arange(n_items)), FEATURE_COLUMN: np.concatenate(features)}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_users(self, path: Path, n_users: int) -> None:
        """Parquet with `user` and the features [n_users, 50]."""
        table = {"user": np.arange(n_users), FEATURE_COLUMN: self._make_users("known", n_users)[1]}
        pl.DataFrame(table).write_parquet(path, compression="uncompressed")

    def write_interactions(self, path: Path, n_users: int, n_items: int) -> float:
        """Parquet with `user`, `item` and `label` (1 taken, 0 not); returns the share that was taken."""
        items = np.concatenate([hidden for hidden, _ in self._iterate_items(n_items)])
        users = self._make_users("known", n_users)[0]
        rng = self._rng("labels")
        shown = rng.integers(n_items, size=(n_users, IMPRESSIONS_PER_USER))
        chances = self._compute_probabilities(np.einsum("ud,usd->us", users, items[shown]))
        label = (rng.random(shown.shape) < chances).astype(np.float32)
        table = {
            "user": np.repeat(np.arange(n_users), IMPRESSIONS_PER_USER),
            "item": to_item_ids(shown.ravel()),
            "label": label.ravel(),
        }
        pl.DataFrame(table).write_parquet(path)
        return float(label.mean())

    def make_unseen_users(self, n_users: int) -> Floats:
        """[n_users, 50] features of users whom training never saw."""
        return self._make_users("strangers", n_users)[1]

    def iterate_probabilities(self, n_users: int, n_items: int) -> Iterator[Floats]:
        """[n_items] the chance that an item is taken if it is shown, for one of the strangers after the other."""
        items = np.concatenate([hidden for hidden, _ in self._iterate_items(n_items)])
        for user in self._make_users("strangers", n_users)[0]:
            yield self._compute_probabilities(items @ user)

    def _iterate_items(self, n_items: int) -> Iterator[tuple[Floats, Floats]]:
        """Hidden factors [c, 16] and features [c, 30], chunk by chunk."""
        fixed = self._rng("items")
        themes = fixed.standard_normal((N_THEMES, N_FACTORS), dtype=np.float32)
        view = fixed.standard_normal((N_FACTORS, ITEM_FEATURE_DIM), dtype=np.float32) / np.sqrt(
            N_FACTORS, dtype=np.float32
        )
        for start in range(0, n_items, CHUNK_ITEMS):
            rng = self._rng("items", start)
            chosen = themes[rng.integers(N_THEMES, size=CHUNK_ITEMS)]
            own = rng.standard_normal((CHUNK_ITEMS, N_FACTORS), dtype=np.float32)
            hidden = (chosen + SPREAD * own) / np.sqrt(1 + SPREAD**2, dtype=np.float32)
            features = hidden @ view + NOISE_SCALE * rng.standard_normal(
                (CHUNK_ITEMS, ITEM_FEATURE_DIM), dtype=np.float32
            )
            left = n_items - start
            yield hidden[:left], features[:left].astype(np.float32)

    def _make_users(self, stream: str, n_users: int) -> tuple[Floats, Floats]:
        """Hidden factors [n, 16] and features [n, 50]."""
        view = self._rng("users").standard_normal((N_FACTORS, USER_FEATURE_DIM), dtype=np.float32)
        rng = self._rng(stream, n_users)
        hidden = rng.standard_normal((n_users, N_FACTORS), dtype=np.float32)
        noise = NOISE_SCALE * rng.standard_normal((n_users, USER_FEATURE_DIM), dtype=np.float32)
        return hidden, (hidden @ view / np.sqrt(N_FACTORS) + noise).astype(np.float32)

    def _compute_probabilities(self, products: Floats) -> Floats:
        affinity = products / np.sqrt(N_FACTORS, dtype=np.float32)
        chances: Floats = 1 / (1 + np.exp(-SHARPNESS * (affinity - self.affinity_threshold), dtype=np.float32))
        return chances

    def _rng(self, stream: str, number: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode(), number])


def to_item_ids(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids that are not row numbers, ascending with them."""
    return 100_000_007 + 3 * rows
